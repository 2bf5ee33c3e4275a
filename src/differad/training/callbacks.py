"""Callbacks around the optimiser's loop: complete checkpoints, held-out evaluation, samples.

Callbacks read the trainer; none changes its mathematics or its random state.
"""

import html
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback

from differad.core import Location, Pair
from differad.data.manifest import read_pairs
from differad.drawing import jpeg_data_url, thumbnail
from differad.errors import DifferadError
from differad.evaluation.run import discard_evaluation, evaluate
from differad.files import AppendFile, make_folder, write_text
from differad.images import read_images
from differad.progress import is_quiet
from differad.training.model_card import MODEL_CARD, last_values, model_card
from differad.training.policy import CheckpointParts, InMemoryLocator, eval_mode
from differad.training.provenance import write_run_info
from differad.training.recipe import HeldOut
from differad.training.shared_locator import SharedLocator

_IMAGE_SIDE = 280
CURVES = "curves.jsonl"
LOGGED = ("miou", "acc_0.3", "f1_0.3", "detection_f1", "normal_accuracy", "valid")


class CheckpointMarker(TrainerCallback):
    """Marks a checkpoint as complete once every process has written its part."""

    def __init__(self, run: Mapping[str, Any]) -> None:
        self._run = run

    def on_save(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Replace PEFT's model card by differad's, then write run_info.json beside the weights."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            card = model_card(self._run, state.global_step, last_values(state.log_history))
            write_text(folder / MODEL_CARD, card)
            write_run_info(folder, self._run, state.global_step)


class Curves(TrainerCallback):
    """Appends each log entry to `curves.jsonl` in the run's folder, one line each: numbers by name, and the step."""

    def on_train_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Drop the lines of steps that a resumed run repeats."""
        path = Path(args.output_dir) / CURVES
        if state.is_world_process_zero and path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n") and "\0" not in line]
            kept = [line for line in whole if json.loads(line)["step"] <= state.global_step]
            write_text(path, "".join(kept if state.global_step else []))

    def on_log(self, args: Any, state: Any, *_: Any, logs: Mapping[str, Any] | None = None, **__: Any) -> None:
        """Write the line."""
        if state.is_world_process_zero and logs:
            with AppendFile(Path(args.output_dir) / CURVES) as file:
                file.append(json.dumps({"step": state.global_step, **logs}) + "\n")


class RecipeIntervals(TrainerCallback):
    """Logs and saves at the steps of the run's recipe; a resumed trainer would use those of its checkpoint."""

    def on_train_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Set the intervals from the trainer's arguments."""
        state.compute_steps(args, state.max_steps)


class StartMessage(TrainerCallback):
    """Prints one line about a run on stderr before its first step. `line` is called when training begins."""

    def __init__(self, line: Callable[[], str]) -> None:
        self._line = line

    def on_train_begin(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        """Print the line."""
        if state.is_world_process_zero and not is_quiet():
            print(f"differad: {self._line()}", file=sys.stderr, flush=True)


class _WithPolicy(TrainerCallback):
    """A callback that runs the policy in training. `trainer` is set once the trainer exists."""

    def __init__(self, checkpoint: CheckpointParts, held_out: HeldOut) -> None:
        self.trainer: Any = None
        self._checkpoint = checkpoint
        self._held_out = held_out

    @contextmanager
    def _locator(self) -> Iterator[SharedLocator]:
        """The policy as a locator that all processes share; see `SharedLocator`."""
        sharded = self.trainer.is_fsdp_enabled or self.trainer.is_deepspeed_enabled
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        with eval_mode(model):
            locator = InMemoryLocator(
                model,
                self._checkpoint,
                batch_size=self._held_out.batch_size,
                max_new_tokens=self._held_out.max_new_tokens,
            )
            yield SharedLocator(locator, lockstep=model if sharded else None)


class HeldOutEvaluation(_WithPolicy):
    """Locates the held-out pairs at regular steps and scores them as `differad evaluate` does, with its report."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate; the metrics join the curves as `eval_…`."""
        if not self._held_out.pairs or state.global_step % self._held_out.every:
            return
        due = control.should_log
        folder = Path(args.output_dir) / "evaluation" / f"step-{state.global_step}"
        with self._locator() as locator:
            metrics = locator.on_main(lambda shared: self._evaluate(shared, folder))
            if metrics is not None:  # inside the block: in evaluation mode, TRL keeps training metrics separate
                overall = metrics["overall"]
                self.trainer.log({f"eval_{name}": overall[name] for name in LOGGED if overall.get(name) is not None})
        # Logging clears the flag, but this step's own values are not logged yet.
        control.should_log = due

    def _evaluate(self, locator: SharedLocator, folder: Path) -> dict[str, Any]:
        # A killed run may have left predictions of a policy that no longer exists.
        discard_evaluation(folder)
        return evaluate(self._held_out.pairs, locator, folder, limit=self._held_out.limit, progress=False)


class Samples(_WithPolicy):
    """Writes the policy's answers on a few pairs, with their images, to `samples/step-N.html`."""

    def __init__(self, checkpoint: CheckpointParts, held_out: HeldOut, manifest: Path, every: int, count: int) -> None:
        super().__init__(checkpoint, held_out)
        self._manifest, self._every, self._count = manifest, every, count

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Write the page."""
        if not self._every or state.global_step % self._every:
            return
        path = Path(args.output_dir) / "samples" / f"step-{state.global_step:06d}.html"
        with self._locator() as locator:
            locator.on_main(lambda shared: self._write(shared, path, f"step {state.global_step}"))

    def _write(self, locator: SharedLocator, path: Path, title: str) -> None:
        pairs = list(islice((pair for pair in read_pairs(self._manifest) if pair.anomalous is not None), self._count))
        page = sample_page(zip(pairs, locator.locate_many(pairs), strict=True), title)
        make_folder(path.parent)
        write_text(path, page)


def sample_page(cases: Iterable[tuple[Pair, Location | DifferadError]], title: str) -> str:
    """One page with embedded images: reference, target with true (green) and predicted (orange) boxes, and the answer's text."""
    rows = "\n".join(_sample(pair, outcome) for pair, outcome in cases)
    return (
        f'<!doctype html>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        "<style>body{font:15px system-ui;margin:2em}section{display:flex;gap:1em;margin-bottom:1.5em}"
        "pre{white-space:pre-wrap;margin:0;flex:1}</style>\n"
        f"<h1>{html.escape(title)}</h1>\n<p>True boxes green, answers orange.</p>\n{rows}\n"
    )


def _sample(pair: Pair, outcome: Location | DifferadError) -> str:
    reference, target = read_images(pair.reference, pair.target)
    boxes = outcome.boxes if isinstance(outcome, Location) else None
    text = outcome.answer if isinstance(outcome, Location) else str(outcome)
    thumbnails = (thumbnail(reference, _IMAGE_SIDE), thumbnail(target, _IMAGE_SIDE, pair.boxes, boxes))
    images = "".join(
        f'<img alt="{name}" src="{jpeg_data_url(image)}">'
        for name, image in zip(("reference", "target"), thumbnails, strict=True)
    )
    suffix = " (abnormal, place unknown)" if pair.boxes is None and pair.anomalous else ""
    return f"<section>{images}<pre><b>{html.escape(pair.id)}</b>{suffix}\n{html.escape(text)}</pre></section>"
