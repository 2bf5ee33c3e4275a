"""A training run's output on stderr: one progress bar, one line per logging step, and no chatter of libraries.

Knows nothing of models, data or trainers' mathematics.
"""

import logging
import math
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any

import datasets
from rich.progress import Progress, TextColumn
from transformers import TrainerCallback

from differad.locators.library_output import without_bars
from differad.progress import is_quiet, is_verbose, progress_bar
from differad.training.clock import Clock

# Values of a line, by the trainer's names; of the held-out metrics only the first that the pairs define.
_TRAINING = ("loss", "reward", "kl")
_HELD_OUT = ("miou", "detection_f1", "normal_accuracy", "valid")
_WIDTH = 6  # of a value: "-0.012", "-4e-05"
_LIBRARIES = ("transformers", "trl", "datasets", "accelerate", "peft", "huggingface_hub")
# Warnings that need no action, by logger.
_CHATTER = {
    "transformers.trainer_utils": (
        "mtime may not be reliable",  # checkpoints are ordered by their numbers then
        "do not match the ones in the `trainer_state.json`",  # the recipe's intervals hold: RecipeIntervals
    ),
    "transformers.integrations.integration_utils": ('log a value of "None"',),  # TRL's, where no answer was clipped
}


class TrainingProgress(TrainerCallback):
    """Updates the bar and prints a line at each logging step.

    Held-out metrics are part of their step's line. `s/step` excludes evaluation and checkpoints; the time left includes them.
    """

    def __init__(self, bar: Progress, clock: Clock | None = None) -> None:
        self._bar, self._clock = bar, clock
        self._figures: list[str] = []
        self._held_out = ""

    def on_train_begin(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        """Start the bar, at its checkpoint's step in a resumed run."""
        self._first_step, self._began = state.global_step, time.monotonic()
        self._idle_until, self._busy, self._steps = self._began, 0.0, 0
        self._task = self._bar.add_task(
            "step", total=state.max_steps, completed=state.global_step, figures="", left="", start=True
        )

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Measure the step's time, without the callbacks at its end."""
        self._busy += time.monotonic() - self._idle_until
        self._steps += 1

    def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
        """Update the bar; held-out metrics of a step that is not logged get their own line."""
        if self._held_out and not control.should_log:
            self._print(state, [self._held_out])
        self._bar.update(self._task, completed=state.global_step, left=self._left(state), refresh=True)
        self._idle_until = time.monotonic()

    def on_log(self, _: Any, state: Any, *__: Any, logs: Mapping[str, Any] | None = None, **___: Any) -> None:
        """Print the step's line. Held-out metrics are logged earlier and wait for it; the final summary is left out."""
        logs = logs or {}
        metric = next((name for name in _HELD_OUT if f"eval_{name}" in logs), None)
        if metric is not None:
            self._held_out = f"{metric} {format_number(logs[f'eval_{metric}'], 2)} (held out)"
        elif "loss" in logs:
            figures = [
                f"{name} {format_number(logs[name]):{_WIDTH}}" for name in _TRAINING if logs.get(name) is not None
            ]
            speed = f"{format_number(self._busy / max(self._steps, 1), 2):>5} s/step"
            self._busy, self._steps = 0.0, 0
            self._bar.update(self._task, figures="  ".join(figures), refresh=True)
            self._print(state, [*figures, speed, f"{self._left(state):11}", self._held_out])
        self._idle_until = time.monotonic()

    def on_save(self, *_: Any, **__: Any) -> None:
        """Exclude the checkpoint from the next step's time."""
        self._idle_until = time.monotonic()

    def _left(self, state: Any) -> str:
        done = state.global_step - self._first_step
        seconds = (time.monotonic() - self._began) / max(done, 1)
        left = seconds * (state.max_steps - state.global_step)
        if self._clock is not None and self._clock.limit is not None:
            left = min(left, max(0.0, self._clock.limit - self._clock.spent))
        return f"{duration(left)} left"

    def _print(self, state: Any, columns: list[str]) -> None:
        self._held_out = ""
        if not is_quiet():
            step = f"step {state.global_step:{len(str(state.max_steps))}}/{state.max_steps}"
            line = "  ".join([step, *columns]).rstrip()
            self._bar.console.print(line, soft_wrap=True, markup=False, highlight=False)


@contextmanager
def reporting(trainer: Any, main: bool) -> Iterator[None]:
    """Report the trainer's progress inside the block, on the main process: a bar on a terminal, lines everywhere."""
    columns = (TextColumn("{task.fields[figures]}"), TextColumn("{task.fields[left]}"))
    with progress_bar(main, seconds_between_lines=None, after_bar=columns, threaded=False) as bar:
        if main:
            trainer.add_callback(TrainingProgress(bar, trainer.clock))
        yield


@contextmanager
def quiet_libraries(main: bool) -> Iterator[None]:
    """Hide libraries' bars and chatter inside the block; on other processes and with `-q`, show only their errors.

    `-v` shows everything on the main process. Libraries' stdout goes to stderr, because stdout belongs to the command's result.
    """
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(sys.stderr))
        stack.enter_context(_without_traces_of_writers())
        if not main or not is_verbose():
            stack.enter_context(_without_bars(downloads=main and not is_quiet() and sys.stderr.isatty()))
            stack.enter_context(_without_chatter() if main and not is_quiet() else _errors_only())
        yield


@contextmanager
def _without_traces_of_writers() -> Iterator[None]:
    """Hide tracebacks of failed writes in libraries' log threads: the library raises the error at its next call."""
    previous = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if not issubclass(arguments.exc_type, OSError):
            previous(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = previous


@contextmanager
def _without_bars(downloads: bool) -> Iterator[None]:
    """Disable libraries' progress bars, except those of hub `downloads`, which take long and end before the run's own bar."""
    were_enabled = datasets.utils.is_progress_bar_enabled()
    with without_bars(downloads=downloads):
        datasets.utils.disable_progress_bars()
        try:
            yield
        finally:
            (datasets.utils.enable_progress_bars if were_enabled else datasets.utils.disable_progress_bars)()


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Hide deprecations, which are for developers, and warnings that need no action."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        warnings.filterwarnings("ignore", message=".*pin_memory.*")
        filters = {logging.getLogger(name): _Without(texts) for name, texts in _CHATTER.items()}
        for logger, unwanted in filters.items():
            logger.addFilter(unwanted)
        try:
            yield
        finally:
            for logger, unwanted in filters.items():
                logger.removeFilter(unwanted)


class _Without(logging.Filter):
    """Drops messages that contain any of some texts."""

    def __init__(self, texts: tuple[str, ...]) -> None:
        super().__init__()
        self._texts = texts

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(text in message for text in self._texts)


@contextmanager
def _errors_only() -> Iterator[None]:
    """Hide all warnings and libraries' logs below errors."""
    levels = {logger: logger.level for logger in map(logging.getLogger, _LIBRARIES)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in levels:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in levels.items():
                logger.setLevel(level)


def format_number(value: float, digits: int = 3) -> str:
    """A number with `digits` significant digits, at most three decimals: 1.31, 0.002, 4e-05."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = min(max(digits - 1 - math.floor(math.log10(abs(value))), 0), 3)
    text = f"{value:.{decimals}f}"
    return text if float(text) else f"{value:.0e}"


def duration(seconds: float) -> str:
    """A time span in its one or two largest units: 45 s, 12 min, 3 h 20 min, 2 d 5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"
