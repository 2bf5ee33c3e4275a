"""The processes of one run: work shared out among them, and one error that ends them all.

A process that fails alone would leave the others in a collective call until its timeout. So a failure is gathered where work
is shared out, and elsewhere it is published in the store that the processes met by. The process that failed says why; the
others raise PeerError. Knows nothing of models, trainers or pairs.
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
    """A `with` block that every process enters: where it raises on one, it raises on all at its end.

    The process that failed raises its own error, the others PeerError with the reason of the first that failed.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if PartialState().num_processes == 1 or not _is_failure(error):
            return
        own = None if error is None or isinstance(error, PeerError) else _describe(error)
        first = next((text for text in gather_object([own]) if text is not None), None)
        if error is None and first is not None:
            raise PeerError(first)


class EndingTogether:
    """A `with` block around a whole run: an error of one process ends all, whatever the others wait for.

    The first that fails publishes why before it leaves. Its leaving breaks the collective calls of the others, which then find
    the reason and raise PeerError in place of what broke. An error of the first keeps its type and is said to be this process's.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if PartialState().num_processes == 1 or error is None or isinstance(error, PeerError):
            return
        if not _is_failure(error):
            return
        own = _describe(error)
        first = _publish(own)
        if first != own:
            raise PeerError(first) from None
        if isinstance(error, DifferadError):
            error.args = (own,)


def take_share(items: Sequence[Item]) -> list[Item]:
    """The items of this process: every one of `world` items, from its rank on."""
    state = PartialState()
    return list(items[state.process_index :: state.num_processes])


def join_shares(share: Sequence[Result]) -> list[Result]:
    """What every process made of its share, in the order of all items, on every process."""
    shares = gather_object([list(share)])
    return [shares[number % len(shares)][number // len(shares)] for number in range(sum(map(len, shares)))]


def broadcast_from_main(value: Any) -> Any:
    """The main process's value, on every process."""
    return broadcast_object_list([value])[0]


def _is_failure(error: BaseException | None) -> bool:
    """Whether a block has come to its end or failed; an interrupt is neither, and reaches every process by itself."""
    return error is None or isinstance(error, Exception)


def _describe(error: BaseException) -> str:
    state = PartialState()
    reason = str(error) if isinstance(error, DifferadError) else f"{type(error).__name__}: {error}"
    return " ".join(f"process {state.process_index} of {state.num_processes}: {reason}".split())


def _publish(failure: str) -> str:
    """The failure that was published first, this one where there was none or nobody can be asked any more."""
    if not dist.is_initialized():
        return failure
    try:
        found: bytes = dist.distributed_c10d._get_default_store().compare_set(_FAILURE, "", failure)
    except dist.DistError:  # the process that kept the store is gone
        return failure
    return found.decode()
