"""The processes of one run: split work among them, and end all of them if one fails.

If one process failed alone, the others would wait in a collective call until its timeout. So failures are gathered where work
is split, and elsewhere published in the process group's store. The process that failed raises its own error; the others raise
PeerError. Knows nothing of models, trainers or pairs.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, TypeVar

import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from differad.errors import DifferadError, PeerError

_FAILURE = "differad/failure"
Item = TypeVar("Item")
Result = TypeVar("Result")


class RaisingTogether:
    """A `with` block that every process enters: if it raises in one process, it raises in all at its end.

    The process that failed raises its own error, the others PeerError with the reason of the first that failed.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if PartialState().num_processes == 1 or not _is_failure(error):
            return
        failure = None if error is None or isinstance(error, PeerError) else _describe(error)
        first = next((text for text in gather_object([failure]) if text is not None), None)
        if error is None and first is not None:
            raise PeerError(first)


class EndingTogether:
    """A `with` block around a whole run: an error in one process ends all, whatever the others are waiting for.

    The first process that fails publishes its reason before it exits. Its exit breaks the others' collective calls; they then
    read the reason and raise PeerError. The first process's error keeps its type; its message names the process.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if PartialState().num_processes == 1 or error is None or isinstance(error, PeerError):
            return
        if not _is_failure(error):
            return
        failure = _describe(error)
        first = _publish(failure)
        if first != failure:
            raise PeerError(first) from None
        if isinstance(error, DifferadError):
            error.args = (failure,)


def take_share(items: Sequence[Item]) -> list[Item]:
    """The items of this process: every `num_processes`-th one, starting at its rank."""
    state = PartialState()
    return list(items[state.process_index :: state.num_processes])


def gather_shares(share: Sequence[Result]) -> list[Result]:
    """Gather the results of all shares, in the order of all items, on every process."""
    shares = gather_object([list(share)])
    return [shares[number % len(shares)][number // len(shares)] for number in range(sum(map(len, shares)))]


def broadcast_from_main(value: Any) -> Any:
    """Return the main process's value on every process."""
    return broadcast_object_list([value])[0]


def _is_failure(error: BaseException | None) -> bool:
    """Whether a block ended or failed; an interrupt is neither, and reaches every process by itself."""
    return error is None or isinstance(error, Exception)


def _describe(error: BaseException) -> str:
    state = PartialState()
    reason = str(error) if isinstance(error, DifferadError) else f"{type(error).__name__}: {error}"
    return " ".join(f"process {state.process_index} of {state.num_processes}: {reason}".split())


def _publish(failure: str) -> str:
    """Publish a failure and return the first published one; return this one if the store cannot be reached."""
    if not dist.is_initialized():
        return failure
    try:
        first: bytes = dist.distributed_c10d._get_default_store().compare_set(_FAILURE, "", failure)
    except dist.DistError:  # the process that held the store is gone
        return failure
    return first.decode()
