"""One GRPO step compared with stock TRL on one GPU: seconds by part, memory, rate of the loss; and the largest model that trains.

Both sides train the same random weights of a published shape on the same pairs, alternating, with rollout by transformers on
both. A step is TRL's work per rollout, as in `grpo_speed.py`: rollout, old and reference log-probabilities, one loss with its
backward pass; all answers have the same length. Memory is the peak during a step, without earlier allocations (both sides'
weights), and with the side's own weights.
"""

import gc
import shutil
import statistics
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from differad.training.data import build_dataset
from differad.training.policy import open_checkpoint
from differad.training.recipe import RlRecipe
from gpu_context import Context, Row, attempt
from gpu_models import SHAPES, TOKEN, Shape, write_checkpoint
from grpo_speed import PARTS, SIDES, Clock, build_side, step, step_recipe, write_pairs

TIMED = 2
PROFILE = "grpo_profile.txt"
_MEMORY_FOLDER = Path("/dev/shm")


@dataclass(frozen=True)
class Case:
    """A step's sizes: pixels per image side, answers per prompt, tokens per answer; trained weights, and how."""

    shape: str
    side: int = 1024
    generations: int = 8
    answer: int = 64
    lora: bool = True
    checkpointing: bool = False

    def title(self) -> str:
        """The row's name."""
        kind = "LoRA" if self.lora else "full"
        images = f"2 x {(self.side // TOKEN) ** 2} image tokens"
        more = ", gradient checkpointing" if self.checkpointing else ""
        return f"{self.shape} {kind}, {images}, G={self.generations}, {self.answer}-token answers{more}"


BASE = Case("2B")
# In order of value: growth around the main case, then other training modes, then the largest model.
COMPARED = (
    BASE,
    replace(BASE, generations=16),
    replace(BASE, checkpointing=True),
    replace(BASE, side=448),
    replace(BASE, answer=256),
    replace(BASE, lora=False),
    replace(BASE, lora=False, checkpointing=True, generations=16, answer=256),
)
LARGEST = (Case("8B"), Case("8B", checkpointing=True, generations=16), Case("4B", lora=False, checkpointing=True))
TINY = (Case("tiny", 64, 4, 8), Case("tiny", 64, 4, 8, lora=False, checkpointing=True))
# Seconds that a case needs for warm-up and steps of both sides, and further seconds to build them.
NEEDED, BUILDING = 25.0, 20.0


def rows(context: Context) -> Iterator[Row]:
    """One row per side and case, then the largest models."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    bench = Bench(context)
    try:
        for case in TINY if context.tiny else COMPARED:
            if context.has(NEEDED if bench.holds(case) else NEEDED + BUILDING):
                yield from attempt_both(bench, case)
            if case is BASE:
                yield from attempt("profile of a shared step", lambda: bench.profile(BASE))
        bench.drop()
        for case in TINY[:1] if context.tiny else LARGEST:
            if context.has(NEEDED + BUILDING):
                yield from attempt(f"one step with its optimiser: {case.title()}", lambda case=case: bench.train(case))
                bench.drop()
    finally:
        bench.close()


def attempt_both(bench: "Bench", case: Case) -> Iterator[Row]:
    """The rows of both sides; if one fails, the other's row is still written."""
    built = next(attempt(f"both sides: {case.title()}", lambda: bench.use(case)))
    if "error" in built:
        bench.drop()
        yield built
        return
    taken: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    failed: dict[str, Row] = {}
    for pair in range(1 + (TIMED if case in (BASE, *TINY) else 1)):
        for side in SIDES:
            if side not in failed:
                row = next(attempt(side, lambda side=side, pair=pair: {"parts": bench.step(case, side, pair)}))
                if "error" in row:
                    failed[side] = row
                    bench.recover(side)
                else:
                    taken[side].append(row["parts"])
    medians: dict[str, dict[str, float]] = {}
    for side in SIDES:
        row = {"what": f"{side}: {case.title()}"}
        if side in failed:
            yield row | {"error": failed[side]["error"]}
            continue
        steps = taken[side][1:]
        medians[side] = {name: statistics.median(each[name] for each in steps) for name in steps[0]}
        yield row | bench.described(case, side, medians[side])
    if len(medians) == len(SIDES):
        yield {"what": f"stock / shared: {case.title()}", **ratios(*(medians[side] for side in SIDES))}


def ratios(stock: dict[str, float], shared: dict[str, float]) -> Row:
    """Ratios of stock TRL's values to the shared side's."""
    scored = ("log-probs", "loss and backward")
    found = {"step": stock["step"] / shared["step"], "rollout": stock["rollout"] / shared["rollout"]}
    found["loss_and_log_probs"] = sum(stock[part] for part in scored) / sum(shared[part] for part in scored)
    if shared.get("step_gib"):
        found["memory_of_the_step"] = stock["step_gib"] / shared["step_gib"]
        found["memory_with_weights"] = stock["whole_gib"] / shared["whole_gib"]
    return {f"{name}_ratio": value for name, value in found.items()}


class Bench:
    """The trainers of both sides for one shape and training mode; step sizes are set per case."""

    def __init__(self, context: Context) -> None:
        self.context = context
        in_memory = context.device.type == "cuda" and _MEMORY_FOLDER.is_dir()
        self.folder = _MEMORY_FOLDER / "differad_gpu_grpo" if in_memory else context.folder
        self.folder.mkdir(exist_ok=True)
        self.trainers: dict[str, Any] = {}
        self.weights: dict[str, float] = {}
        self.key: Any = None
        self.clocks: dict[str, Clock] = {}
        self.datasets: dict[int, Any] = {}

    def use(self, case: Case) -> Row:
        """Build trainers for a case if needed; return the GiB that each holds."""
        if self.holds(case):
            return dict(self.weights)
        self.drop()
        for side in SIDES:
            before = self.context.held_gib()
            self.trainers[side] = self._build(case, side)
            after = self.context.held_gib()
            self.weights[side] = 0.0 if after is None or before is None else after - before
        self.key = (case.shape, case.lora)
        return dict(self.weights)

    def holds(self, case: Case) -> bool:
        """Whether the current trainers fit a case."""
        return self.key == (case.shape, case.lora)

    def drop(self) -> None:
        """Free the trainers and their memory."""
        self.trainers.clear()
        self.key = None
        gc.collect()
        if self.context.device.type == "cuda":
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Remove the checkpoints."""
        self.drop()
        if self.folder != self.context.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def recover(self, side: str) -> None:
        """Free the memory of a failed step."""
        self.trainers[side].model.zero_grad(set_to_none=True)
        gc.collect()
        if self.context.device.type == "cuda":
            torch.cuda.empty_cache()

    def step(self, case: Case, side: str, pair: int) -> dict[str, float]:
        """One step: seconds by part, and GiB on a GPU."""
        trainer = self.trainers[side]
        set_sizes(trainer, case)
        trainer.train_dataset = self._dataset(case)
        torch.manual_seed(pair)
        clock = self.clocks[side]
        clock.seconds.clear()
        self.context.reset_peak()
        before = self.context.held_gib()
        whole = step(trainer, pair, clock)
        parts = {"step": whole} | {part: clock.seconds.get(part, 0.0) for part in PARTS}
        peak = self.context.peak_gib()
        if peak is not None and before is not None:
            parts |= {"step_gib": peak - before, "whole_gib": peak - before + self.weights[side]}
        return parts

    def described(self, case: Case, side: str, parts: dict[str, float]) -> Row:
        """A side's measurements and the rates derived from them."""
        trainer = self.trainers[side]
        prompt = trainer._buffered_inputs[0]["prompt_ids"].shape[1]
        row: Row = {f"{name.replace(' ', '_').replace('-', '_')}_s": parts[name] for name in ("step", *PARTS)}
        row |= {name: parts[name] for name in ("step_gib", "whole_gib") if name in parts}
        row["rollout_tokens_per_s"] = case.generations * case.answer / parts["rollout"]
        needed = loss_operations(SHAPES[case.shape], case, prompt)
        rate = needed / parts["loss and backward"] / 1e12
        ceiling = self.context.earlier("card", "bfloat16 product") or {}
        row["loss_tflops"] = rate
        row["loss_of_peak"] = rate / ceiling["tflops"] if ceiling.get("tflops") else None
        row["prompt_tokens"] = prompt
        return row

    def profile(self, case: Case) -> Row:
        """Profile one shared step by kernel, in a file beside the results."""
        kinds = torch.profiler.ProfilerActivity
        with torch.profiler.profile(
            activities=[kinds.CUDA if self.context.device.type == "cuda" else kinds.CPU]
        ) as profiler:
            parts = self.step(case, "shared", 0)
        events = profiler.key_averages()
        order = "self_device_time_total" if self.context.device.type == "cuda" else "self_cpu_time_total"
        text = events.table(sort_by=order, row_limit=60, max_name_column_width=110)
        (self.context.out / PROFILE).write_text(f"{parts}\n{text}\n")
        return {"file": PROFILE, "device_s": sum(event.self_device_time_total for event in events) / 1e6}

    def train(self, case: Case) -> Row:
        """One step of the shared side with its optimiser, alone on the GPU."""
        self.trainers["shared"] = trainer = self._build(case, "shared")
        set_sizes(trainer, case)
        trainer.train_dataset = self._dataset(case)
        trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-6)
        self.context.reset_peak()
        seconds = [step(trainer, pair, self.clocks["shared"], optimizer) for pair in range(2)]
        count = sum(weight.numel() for weight in trained)
        return {"step_s": seconds[-1], "trained_millions": count / 1e6, "peak_gib": self.context.peak_gib()}

    def _build(self, case: Case, side: str) -> Any:
        shape = SHAPES[case.shape]
        checkpoint = self.folder / case.shape
        if not checkpoint.is_dir():
            for other in self.folder.glob("*B"):  # one at a time: they are large
                shutil.rmtree(other)
        checkpoint.mkdir(exist_ok=True)
        write_checkpoint(checkpoint, shape, torch.bfloat16, self.context.device)
        recipe = self._recipe(case, checkpoint)
        trainer = build_side(side, recipe)
        # As `train` does: move the model to its device and run its forward in the recipe's precision.
        trainer.model = trainer.model_wrapped = trainer.accelerator.prepare_model(trainer.model)
        trainer.model.train()
        self.clocks[side] = Clock(self.context.synchronize)
        self.clocks[side].watch(trainer)
        return trainer

    def _recipe(self, case: Case, checkpoint: Path) -> RlRecipe:
        lora = {"rank": 32, "alpha": 64} if case.lora else None
        model = {"checkpoint": str(checkpoint), "dtype": "bfloat16" if case.lora else "float32", "lora": lora}
        out, pairs = self.context.folder / "run", self._pairs(case)
        return step_recipe(model, out, pairs, case.generations, case.answer, checkpointing=case.checkpointing)

    def _pairs(self, case: Case) -> Path:
        folder = self.context.folder / f"{case.side}"
        folder.mkdir(exist_ok=True)
        written = folder / "pairs.jsonl"
        return written if written.is_file() else write_pairs(folder, case.side, 1 + TIMED)

    def _dataset(self, case: Case) -> Any:
        """The data set of a case's pairs."""
        if case.side not in self.datasets:
            recipe = self._recipe(case, self.folder / case.shape)
            convention = open_checkpoint(recipe.model, recipe.out, 0).convention
            self.datasets[case.side] = build_dataset(recipe.data, convention, with_answer=False)
        return self.datasets[case.side]


def set_sizes(trainer: Any, case: Case) -> None:
    """Set a trainer's sizes to those of a case, without rebuilding it."""
    trainer.num_generations = trainer.args.per_device_train_batch_size = case.generations
    trainer.args.generation_batch_size = case.generations * trainer.args.steps_per_generation
    trainer.max_completion_length = case.answer
    lengths = {"max_new_tokens": case.answer, "min_new_tokens": case.answer}
    trainer.generation_config.update(**lengths)
    trainer.generation_kwargs.update(lengths)
    trainer.args.gradient_checkpointing = case.checkpointing
    trainer.args.gradient_checkpointing_kwargs = {"use_reentrant": False}
    if case.checkpointing:
        trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
    else:
        trainer.model.gradient_checkpointing_disable()


def loss_operations(shape: Shape, case: Case, prompt: int) -> float:
    """Minimum multiplications and additions of a step's loss, with each prompt encoded once and nothing recomputed.

    A token costs 2 operations per weight, and 4 times the attention's width for each token that it attends to. A backward
    pass costs as much as the forward pass for the gradients of activations, and as much again for trained weights.
    """
    tokens, answers = prompt + case.generations * (case.answer + 1), case.generations * case.answer
    layers = 2 * shape.text_weights() * tokens
    attended = prompt**2 / 2 + answers * (prompt + case.answer / 2)
    attention = 4 * shape.layers * shape.heads * shape.head * attended
    head = 2 * shape.head_weights() * answers
    trained = 0 if case.lora else layers + head
    return 2 * (layers + head) + trained + 3 * attention
