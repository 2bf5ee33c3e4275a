"""Decode and prepare the images of a stream of pairs in threads: the next ones while a model answers the current ones.

Knows nothing of models: the caller prepares the two images of a pair.
"""

import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from differad.core import Pair
from differad.errors import DifferadError
from differad.images import RGB, ImageSource, decode_image, digest
from differad.locators.threads import usable_cores
from differad.scaling import Decoded, to_rgb

# Default number of reading threads with an accelerator: more would slow the thread that drives it.
_MAX_READERS = 8
Item = TypeVar("Item")
ItemMade = TypeVar("ItemMade", covariant=True)


class Prepare(Protocol[ItemMade]):
    """Prepares two images, (H, W, 3) each; `key` is the reference's digest, `once` computes what pairs share."""

    def __call__(self, reference: RGB, target: RGB, *, key: bytes, once: "ComputeOnce") -> ItemMade:
        """May raise DifferadError. Runs in several threads at once."""
        ...


def reading_threads(workers: int, device: str) -> tuple[int, bool]:
    """Number of reading threads, and whether they read while a model on `device` answers; 0 workers: a default for the device.

    A model on the CPU needs the cores itself, so that reading waits for it. The default never exceeds the usable cores, nor the
    threads that OMP_NUM_THREADS or the caller allows torch.
    """
    import torch

    if workers:
        return workers, True
    allowed = min(usable_cores(), torch.get_num_threads())
    return (allowed, False) if device.startswith("cpu") else (min(allowed, _MAX_READERS), True)


class ComputeOnce:
    """Values by key, each computed by the first thread that asks; others wait for it. Errors are stored like values."""

    def __init__(self) -> None:
        self._futures: dict[Hashable, Future[Any]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """The value. Raises what `compute` raised."""
        with self._lock:
            is_first = key not in self._futures
            future = self._futures.setdefault(key, Future())
        if is_first:
            try:
                future.set_result(compute())
            except BaseException as error:
                future.set_exception(error)
                raise
        return future.result()


class PairStream:
    """Pairs taken from a stream in the caller's thread, at most `size` at once."""

    def __init__(self, pairs: Iterable[Pair], size: int) -> None:
        self._pairs, self._size = iter(pairs), size
        self._error: Exception | None = None

    def take(self) -> list[Pair]:
        """The next pairs, none at the end. Raises what the stream raises, also what it raised in `take_early`."""
        if self._error is not None:
            raise self._error
        return list(islice(self._pairs, self._size))

    def take_early(self) -> list[Pair]:
        """As `take`, but before the current pairs are answered: if the stream fails, returns none, and the next `take` raises."""
        try:
            return self.take()
        except Exception as error:  # noqa: BLE001 - raised by the next `take`
            self._error = error
            return []


class PairReader(Generic[Item]):
    """Reads pairs window by window, in at most `threads` threads, which live until the context ends."""

    def __init__(self, prepare: Prepare[Item], threads: int) -> None:
        self._prepare, self._threads = prepare, threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="differad-reader")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def start(self, pairs: Sequence[Pair], *, ahead: bool = False) -> "Window[Item]":
        """Start reading pairs; `ahead`: the caller works in parallel."""
        in_threads = ahead or (self._threads > 1 and len(pairs) > 1)
        return Window(pairs, self._prepare, self._pool if in_threads else None)


class Window(Generic[Item]):
    """Pairs that are being read. An image that several of them share is decoded once."""

    def __init__(self, pairs: Sequence[Pair], prepare: Prepare[Item], pool: ThreadPoolExecutor | None) -> None:
        self._prepare, self._once = prepare, ComputeOnce()
        self._uses = Counter(_key(source) for pair in pairs for source in (pair.reference, pair.target))
        self._tasks: list[Callable[[], Item | DifferadError]] = [
            partial(self._read, pair) if pool is None else pool.submit(self._read, pair).result for pair in pairs
        ]

    def __len__(self) -> int:
        return len(self._tasks)

    def collect(self) -> tuple[dict[int, DifferadError], dict[int, Item]]:
        """Errors of pairs that cannot be read, and the prepared items of the others, by index. Waits; call it once."""
        errors: dict[int, DifferadError] = {}
        items: dict[int, Item] = {}
        for index, task in enumerate(self._tasks):
            item = task()
            if isinstance(item, DifferadError):
                errors[index] = item
            else:
                items[index] = item
        self._tasks, self._once = [], ComputeOnce()  # release the images
        return errors, items

    def _read(self, pair: Pair) -> Item | DifferadError:
        try:
            images = [self._decode(pair.reference), self._decode(pair.target)]
            reference, target, key = self._as_rgb(pair.reference, images)
            return self._prepare(reference, target, key=key, once=self._once)
        except DifferadError as error:
            return error

    def _decode(self, source: ImageSource) -> Decoded:
        key = _key(source)
        if self._uses[key] == 1:  # images of one pair only are not stored
            return decode_image(source)
        decoded: Decoded = self._once.get(("decoded", key), lambda: decode_image(source))
        return decoded

    def _as_rgb(self, source: ImageSource, images: list[Decoded]) -> tuple[RGB, RGB, bytes]:
        """The reference and the target as RGB, and the reference's digest."""
        if not all(image.is_plain for image in images) or self._uses[_key(source)] == 1:
            reference, target = to_rgb(images)
            key = digest(reference)
        else:
            (target,) = to_rgb(images[1:])
            reference, key = self._once.get(("reference", _key(source)), lambda: _with_digest(images[0]))
        return self._once.get(("image", key), lambda: reference), target, key


def _with_digest(image: Decoded) -> tuple[RGB, bytes]:
    (rgb,) = to_rgb([image])
    return rgb, digest(rgb)


class _ByIdentity:
    """An array or a PIL image as a key, by identity. It is referenced, so that its id is not reused."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __hash__(self) -> int:
        return id(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and self._value is other._value


def _key(source: ImageSource) -> Hashable:
    return str(source) if isinstance(source, str | Path) else _ByIdentity(source)
