"""A time limit for a run: it stops after some minutes, and its learning rate follows the elapsed time.

A schedule over steps needs their number in advance. With a time limit, progress is the elapsed share of the minutes, or of the
steps if that is larger. With several processes, the first one's clock counts. Knows nothing of models.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from differad.errors import OptionError

# Number of steps of the stock schedule whose shape is sampled.
_RESOLUTION = 100_000
SECONDS = "seconds"


class Clock(TrainerCallback):
    """Measures a run's training time `spent` in seconds, including earlier parts of a resumed run; stops it after `minutes`."""

    def __init__(self, minutes: float | None, run: dict[str, Any], earlier: Mapping[str, Any] | None = None) -> None:
        self.limit = None if minutes is None else 60.0 * minutes
        self.spent = self._before = float((earlier or {}).get(SECONDS, 0.0))
        self._run = run
        self._began = time.monotonic()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start counting."""
        self._began = time.monotonic()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Read the time, which sets the next step's learning rate and the end of the run."""
        self.spent = self._before + time.monotonic() - self._began
        processes = PartialState()
        if self.limit is not None and processes.num_processes > 1:
            spent = torch.tensor([self.spent], dtype=torch.float32, device=processes.device)
            self.spent = float(broadcast(spent)[0])
        self._run[SECONDS] = round(self.spent, 3)

    def on_step_end(self, _: Any, __: Any, control: Any, **___: Any) -> None:
        """Stop when the time is up."""
        if self.limit is not None and self.spent >= self.limit:
            control.should_training_stop = True


class ClockMixin:
    """Mixin for a trainer with an optional time limit: `clock`, set before training."""

    clock: Clock | None = None

    def _run_epoch(self: Any, *args: Any, **kwargs: Any) -> None:
        """As stock, but a run resumed after all its steps, or all its time, takes no step.

        The stock loop checks only after a step, so a run resumed because the disk was full at its end would take one step more.
        """
        clock: Clock | None = self.clock
        is_late = clock is not None and clock.limit is not None and clock.spent >= clock.limit
        if is_late or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)  # type: ignore[misc]

    def create_scheduler(self: Any, num_training_steps: int, optimizer: Any = None) -> Any:
        """As stock; with a time limit, the schedule's shape over time. Raises OptionError for a shape that needs the steps."""
        clock: Clock | None = self.clock
        if clock is None or clock.limit is None:
            return super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]
        warmup = self.args.get_warmup_steps(num_training_steps)
        stock = super().create_scheduler(_RESOLUTION + warmup, optimizer)  # type: ignore[misc]
        if type(stock) is not LambdaLR:
            raise OptionError(
                f"train.schedule={self.args.lr_scheduler_type}: not with train.minutes; expected cosine or linear"
            )
        stock.lr_lambdas = [_over_time(shape, clock, warmup, num_training_steps) for shape in stock.lr_lambdas]
        return stock


def _over_time(shape: Callable[[int], float], clock: Clock, warmup: int, steps: int) -> Callable[[int], float]:
    """A schedule's factor by step: warm-up by steps, then by the larger elapsed share of time and steps."""

    def factor(step: int) -> float:
        share = max(clock.spent / (clock.limit or 1.0), step / steps)
        return shape(step if step < warmup else warmup + int(min(share, 1.0) * _RESOLUTION))

    return factor
