"""Code of both phases: the recipe as TRL's arguments, the order of the data, start, resume and end of a run."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import cv2
import torch
from accelerate import PartialState
from peft import PeftModel
from torch.utils.data import Sampler
from transformers import AutoModelForImageTextToText, PrinterCallback, ProgressCallback

from differad.data.locks import exclusive_run
from differad.errors import DifferadError, OptionError, WriteError
from differad.files import atomic_folder, make_folder, unfinished, write_text
from differad.locators.tiny.processor import EvidenceProcessor
from differad.training.callbacks import CheckpointMarker, Curves, HeldOutEvaluation, RecipeIntervals, Samples
from differad.training.clock import Clock
from differad.training.data import checksum
from differad.training.inputs import read_inputs
from differad.training.launch import check_devices, raise_in_first
from differad.training.model_card import MODEL_CARD, last_values, model_card
from differad.training.output import quiet_libraries, reporting
from differad.training.peers import EndingTogether
from differad.training.policy import CheckpointParts, export, open_checkpoint
from differad.training.provenance import describe_run, discard_unfinished, find_start, read_run_info, write_run_info
from differad.training.recipe import Recipe
from differad.training.writing import library_writes

MODEL_FOLDER = "model"
Config = TypeVar("Config")


class EpochSampler(Sampler[int]):
    """A trainer's `stock` sampler with an order that depends only on seed and epoch.

    The stock sampler's generator continues from epoch to epoch, so a run resumed in a later epoch would repeat the first
    epoch's order. A sampler without a generator keeps its order. `epoch` returns the epoch when iteration begins.
    """

    def __init__(self, stock: Any, seed: int, epoch: Callable[[], int]) -> None:
        self._stock, self._seed, self._epoch = stock, seed, epoch

    def __iter__(self) -> Iterator[int]:
        if hasattr(self._stock, "generator"):
            self._stock.generator.manual_seed(self._seed + self._epoch())
        yield from self._stock

    def __len__(self) -> int:
        return len(self._stock)


class RunFoldersMixin:
    """Mixin for a trainer: it writes and reads the folders of a run as differad does.

    A checkpoint's weights are loaded by `from_pretrained`, completely or not at all. transformers saves Qwen2-VL and Qwen2.5-VL
    under their published weight names, which differ from the modules'; its trainer looks for the modules' names, warns, and
    continues with the start weights.
    """

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Do not write TRL's model card; the model and each checkpoint get differad's."""

    def _load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: Any = None) -> None:
        model = self.model if model is None else model
        if self.is_fsdp_enabled or isinstance(model, PeftModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
            return
        saved = AutoModelForImageTextToText.from_pretrained(
            resume_from_checkpoint, trust_remote_code=False, use_safetensors=True, dtype=model.dtype
        )
        model.load_state_dict(saved.state_dict())


def epoch_of(state: Any) -> int:
    """The current epoch of a trainer's state."""
    # At the end of an epoch, the sum of fractions may be slightly below the whole number.
    return int((state.epoch or 0.0) + 1e-6)


def trainer_config(kind: type[Config], recipe: Recipe, **settings: Any) -> Config:
    """The recipe and `settings` as TRL's configuration `kind`; `train.more` overrides both. Raises OptionError naming the key."""
    train = recipe.train
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    for key in train.more:
        if key not in names:
            raise OptionError(f"train.more.{key}: {kind.__name__} has no such field")
    values = {
        "output_dir": str(recipe.out),
        "max_steps": train.steps,
        "num_train_epochs": train.epochs,
        "per_device_train_batch_size": train.batch_size,
        "gradient_accumulation_steps": train.accumulate,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.schedule,
        "warmup_steps": train.warmup_steps,
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "gradient_checkpointing": train.gradient_checkpointing,
        "bf16": _bf16() if train.bf16 is None else train.bf16,
        "dataloader_num_workers": train.workers,
        "seed": train.seed,
        "logging_steps": train.log_every,
        "save_steps": train.save_every,
        "save_total_limit": max(2, train.keep),  # the newest is incomplete until its run_info.json is written
        "report_to": list(train.report_to) or "none",
        "log_level_replica": "passive",  # keeps the level that `quiet_libraries` sets
        "remove_unused_columns": False,
        "use_cpu": _on_cpu(),
        **settings,
        **train.more,
    }
    try:
        with warnings.catch_warnings():
            # TRL still reads the older of transformers' two names for this option.
            warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated")
            return kind(**values)
    except (ValueError, TypeError) as error:
        raise OptionError(f"{kind.__name__} refuses the recipe: {str(error)[:300]}") from None


def run_phase(recipe: Recipe, build: Callable[[CheckpointParts, list[Any]], Any], *, resume: bool) -> dict[str, Any]:
    """Train: `build` makes the trainer from the checkpoint and the callbacks. Returns the summary that the command prints.

    `out` receives checkpoints, curves, evaluations, samples and, at the end, `model/`. Raises OptionError, ManifestError,
    WriteError, and PeerError if another process failed.
    """
    try:
        check_devices(0 if _on_cpu() else torch.accelerator.device_count())
    except OptionError as error:
        raise_in_first(error)
    processes = PartialState(cpu=_on_cpu())
    with EndingTogether(), _sole_run(recipe.out, processes), quiet_libraries(processes.is_main_process):
        return _run_phase(recipe, build, processes, resume)


def _run_phase(
    recipe: Recipe, build: Callable[[CheckpointParts, list[Any]], Any], processes: PartialState, resume: bool
) -> dict[str, Any]:
    run, start = _begin(recipe, processes, resume)
    with processes.main_process_first():
        checkpoint = open_checkpoint(recipe.model, recipe.out, recipe.train.seed)
    if isinstance(checkpoint.processor.image_processor, EvidenceProcessor):
        checkpoint.processor.image_processor.cache = recipe.data.evidence
        cv2.setNumThreads(1)  # data loader workers are forked and lack OpenCV's threads
    policy_callbacks = _policy_callbacks(recipe, checkpoint)
    earlier = None if start is None else read_run_info(start)
    clock = Clock(recipe.train.minutes, run, earlier)
    trainer = build(checkpoint, [clock, RecipeIntervals(), CheckpointMarker(run), Curves(), *policy_callbacks])
    trainer.clock = clock
    for callback in policy_callbacks:
        callback.trainer = trainer
    for stock in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(stock)
    with reporting(trainer, processes.is_main_process), _without_traces(), _checkpoints_whole(recipe.out, processes):
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    _export(trainer, checkpoint, recipe.out / MODEL_FOLDER, run)
    destroy_process_group(trainer)
    return {
        "model": str(recipe.out / MODEL_FOLDER),
        "steps": trainer.state.global_step,
        "seconds": round(clock.spent, 3),
        "resumed_from": str(start) if start else None,
        "last": last_values(trainer.state.log_history),
    }


@contextmanager
def _sole_run(out: Path, processes: PartialState) -> Iterator[None]:
    """Lock the folder against other runs; one process holds the lock for all. Raises InputError, WriteError."""
    if not processes.is_main_process:
        yield
        return
    make_folder(out)
    with exclusive_run(out):
        yield


def _begin(recipe: Recipe, processes: PartialState, resume: bool) -> tuple[dict[str, Any], Path | None]:
    """The run's description, and the checkpoint that it resumes from. Raises OptionError, ManifestError."""
    inputs = read_inputs(recipe) if processes.is_main_process else None
    contents, changed = (inputs.contents, inputs.changed) if inputs else (None, None)
    run = describe_run(recipe, checksum(recipe.data.pairs), processes.num_processes, contents)
    start = find_start(recipe.out, run, resume, changed)
    if inputs is not None:
        inputs.write(recipe.out)
    return run, start


@contextmanager
def _without_traces() -> Iterator[None]:
    """Remove the traceback that a data loader worker puts into its error's message."""
    try:
        yield
    except DifferadError as error:
        head, _, message = str(error).rpartition(f"{type(error).__name__}: ")
        if "in DataLoader worker process" in head:
            error.args = (message,)
        raise


@contextmanager
def _checkpoints_whole(out: Path, processes: PartialState) -> Iterator[None]:
    """Raise a failed write as WriteError and remove the incomplete checkpoint."""
    earlier = set(out.glob("checkpoint-*"))
    try:
        with library_writes(out):
            yield
    except WriteError:
        if processes.is_main_process:
            discard_unfinished(out, earlier)
        raise


def destroy_process_group(trainer: Any) -> None:
    """Destroy the process group and end its threads; the trainer cannot be used afterwards.

    The threads end only when nothing refers to the group any more, and the model's wrapper does. A thread that still holds the
    last gathered tensor while Python exits aborts its process, and torchrun then kills the others.
    """
    trainer.model_wrapped = trainer.callback_handler.model = trainer.model
    trainer.accelerator.free_memory()  # collects garbage too
    PartialState().destroy_process_group()


def _bf16() -> bool:
    return bool(torch.cuda.is_available() and torch.cuda.is_bf16_supported())


def _on_cpu() -> bool:
    """Whether there is no accelerator; accelerate must know, or it runs several CPU processes unconnected."""
    return not torch.accelerator.is_available()


def _policy_callbacks(recipe: Recipe, checkpoint: CheckpointParts) -> list[HeldOutEvaluation | Samples]:
    manifest = (recipe.held_out.pairs or recipe.data.pairs)[0]
    samples = Samples(checkpoint, recipe.held_out, manifest, recipe.train.samples_every, recipe.train.samples)
    return [HeldOutEvaluation(checkpoint, recipe.held_out), samples]


def _export(trainer: Any, checkpoint: CheckpointParts, folder: Path, run: dict[str, Any]) -> None:
    """Write the final policy to `folder`, completely or not at all, with unsharded weights. Raises WriteError."""
    processes = trainer.accelerator
    with ExitStack() as stack:
        fresh = stack.enter_context(atomic_folder(folder)) if processes.is_main_process else unfinished(folder)
        stack.enter_context(library_writes(folder))
        processes.wait_for_everyone()
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            # Only the trainer can gather its shards; adapters stay unmerged then.
            trainer.save_model(str(fresh))
        elif processes.is_main_process:
            export(processes.unwrap_model(trainer.model), checkpoint, fresh)
        processes.wait_for_everyone()
        if processes.is_main_process:
            step, last = trainer.state.global_step, last_values(trainer.state.log_history)
            write_text(fresh / MODEL_CARD, model_card(run, step, last))
            write_run_info(fresh, run, step)
    processes.wait_for_everyone()
