"""The context of every stage of `gpu.py`: the device, the remaining time, and clocks that wait for the device.

A stage is a function `rows(context)` that yields one dictionary per measurement, with units in the names of keys.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

GIB = 1 << 30
RESULTS = "results.jsonl"
Row = dict[str, Any]


@dataclass(frozen=True)
class Context:
    """`tiny`: smallest sizes, seconds on a CPU. `out`: the run's folder, `folder` the stage's own. `deadline`: by `monotonic`."""

    device: torch.device
    tiny: bool
    out: Path
    folder: Path
    deadline: float

    def remaining(self) -> float:
        """Seconds left for the stage."""
        return self.deadline - time.monotonic()

    def has(self, seconds: float) -> bool:
        """Whether the stage has this many seconds left; always true with `tiny`."""
        return self.tiny or self.remaining() > seconds

    def synchronize(self) -> None:
        """Wait until the device has finished all its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], Any], repeats: int = 5, warm_up: int = 1) -> float:
        """Median seconds of some work, the device's included."""
        taken = []
        for number in range(warm_up + repeats):
            self.synchronize()
            start = time.perf_counter()
            work()
            self.synchronize()
            if number >= warm_up:
                taken.append(time.perf_counter() - start)
        return statistics.median(taken)

    def reset_peak(self) -> None:
        """Restart the measurement of peak device memory."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gib(self) -> float | None:
        """Peak GiB of tensors on the device since `reset_peak`; None on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) / GIB if self.device.type == "cuda" else None

    def held_gib(self) -> float | None:
        """GiB of tensors on the device now; None on a CPU."""
        return torch.cuda.memory_allocated(self.device) / GIB if self.device.type == "cuda" else None

    def earlier(self, stage: str, what: str) -> Row | None:
        """A row that an earlier stage of the same run wrote."""
        matching = [row for row in read_rows(self.out) if row.get("stage") == stage and row.get("what") == what]
        return matching[-1] if matching else None


def read_rows(out: Path) -> list[Row]:
    """All rows of a run so far."""
    path = out / RESULTS
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def attempt(what: str, work: Callable[[], Row]) -> Iterator[Row]:
    """The row of one measurement, or of the reason for its failure: running out of memory is a result too."""
    try:
        yield {"what": what, **work()}
    except torch.OutOfMemoryError:
        yield {"what": what, "error": "out of memory"}
    except Exception as error:  # noqa: BLE001 - any error: later measurements must still run
        yield {"what": what, "error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
