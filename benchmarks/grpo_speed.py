"""Compare one GRPO step with shared prompts and the same step of stock TRL: seconds by part, memory, operations.

    python benchmarks/grpo_speed.py [--family qwen3_5] [--quick | --one] [--threads 2] [--out docs/grpo_speed.md]

Both sides train the same model (a Qwen2-VL of 8.5 million weights, or a Qwen3.5 with three gated delta-nets in four layers;
frozen vision tower, float32) on the same pairs with answers of the same length (32 tokens, end tokens ignored). A step is
TRL's work per rollout: rollout, old and reference log-probabilities, rewards, then one loss with its backward pass. The sides
alternate step by step in one process, so that other load affects both alike; every step uses a new pair. Memory is measured in
one process per side.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast, Qwen2VLProcessor
from trl import GRPOTrainer

from differad.training.policy import PairProcessor, open_checkpoint
from differad.training.recipe import RlRecipe, Scratch
from differad.training.rl import DifficultyAwareTrainer, build_trainer, make_rewards
from differad.training.scratch import build_small_qwen2_vl, text_settings, token_ids
from part_clock import PartClock

SIDES = ("stock", "shared")
PARTS = ("vision", "rollout", "log-probs", "loss and backward", "other")
ANSWER = 32
SCRATCH = Scratch(hidden_size=256, layers=7, heads=8, vision_depth=4, vision_size=192, vocabulary=1000)
# The smallest part of a Qwen3.5 with its published mixture of layers.
DELTA = Scratch(hidden_size=320, layers=4, heads=8, vision_depth=4, vision_size=192, vocabulary=1000)
# Pixels per side of an image token.
SIDE = {"qwen2_vl": 28, "qwen3_5": 32}
NAMES = {"qwen2_vl": "Qwen2-VL", "qwen3_5": "Qwen3.5"}
SHARED = {
    "qwen2_vl": "Prompts are shared in rollout, log-probabilities and loss",
    "qwen3_5": "Prompts are shared in rollout and log-probabilities; the loss is TRL's own",
}
QUICK = Scratch(hidden_size=64, layers=2, heads=2, vision_depth=1, vision_size=64, vocabulary=1000)


@dataclass(frozen=True)
class Case:
    """The settings of one row of the table."""

    family: str
    generations: int
    tokens: int
    scratch: Scratch
    steps: int
    threads: int
    cpu: bool


class StockTrainer(GRPOTrainer):
    """TRL's unmodified trainer with the same rewards."""

    def __init__(self, *args: Any, grpo: Any, decoder: Any, **kwargs: Any) -> None:
        super().__init__(*args, reward_funcs=make_rewards(decoder, grpo.reward), **kwargs)

    def sharing_summary(self) -> str:
        """A run's first line."""
        return "stock TRL"


class StockProcessor(PairProcessor):
    """Processes images as transformers does, each as often as it occurs in the batch."""

    _process_images = Qwen2VLProcessor._process_images


class Clock(PartClock):
    """Seconds of a trainer's step by part."""

    def watch(self, trainer: Any) -> None:
        """Time the vision towers, `generate` and the log-probabilities of a trainer."""
        for model in (trainer.model, trainer.ref_model):
            if model is not None:
                self.follow("vision", bare(trainer, model).model.visual)
        generate, score = trainer._generate_single_turn, trainer._get_per_token_logps_and_entropies

        def timed_generate(*args: Any, **kwargs: Any) -> Any:
            with self.part("rollout"):
                return generate(*args, **kwargs)

        def timed_score(*args: Any, **kwargs: Any) -> Any:
            with self.part("loss and backward" if torch.is_grad_enabled() else "log-probs"):
                return score(*args, **kwargs)

        trainer._generate_single_turn, trainer._get_per_token_logps_and_entropies = timed_generate, timed_score


def bare(trainer: Any, model: Any) -> Any:
    """A trainer's model without the wrappers of distributed training and adapters."""
    inner = trainer.accelerator.unwrap_model(model)
    return inner.get_base_model() if isinstance(inner, PeftModel) else inner


def write_pairs(folder: Path, side: int, count: int) -> Path:
    """Pairs of noise, the second half of each target brighter."""
    random, lines = np.random.default_rng(0), []
    for number in range(count):
        image = random.integers(0, 200, (side, side, 3), np.uint8)
        Image.fromarray(image).save(folder / f"{number}_good.png")
        image[side // 2 :] += 50
        Image.fromarray(image).save(folder / f"{number}_test.png")
        names = f'"reference": "{number}_good.png", "target": "{number}_test.png"'
        lines.append(
            f'{{"id": "{number}", "category": "noise", {names}, "boxes": [[0, {side // 2}, {side}, {side}]]}}\n'
        )
    path = folder / "pairs.jsonl"
    path.write_text("".join(lines))
    return path


def write_checkpoint(folder: Path, case: Case) -> Path:
    """The case's checkpoint with random weights and the tokenizer of `build_small_qwen2_vl`."""
    build_small_qwen2_vl(folder, case.scratch, 0)
    if case.family == "qwen2_vl":
        return folder
    tokenizer, sizes = PreTrainedTokenizerFast.from_pretrained(folder), case.scratch
    head = sizes.hidden_size // sizes.heads
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_interleaved": True}
    text = text_settings(tokenizer, sizes.hidden_size, sizes.layers, sizes.heads, positions=8192) | {
        "head_dim": head,
        "layer_types": [
            ("full" if layer % 4 == 3 or layer == sizes.layers - 1 else "linear") + "_attention"
            for layer in range(sizes.layers)
        ],
        "rope_parameters": rope | {"mrope_section": [head // 4 - 2 * (head // 12), head // 12, head // 12]},
        "linear_key_head_dim": head,
        "linear_value_head_dim": head,
        "linear_num_key_heads": sizes.heads // 2,
        "linear_num_value_heads": sizes.heads,
    }
    vision = {"depth": sizes.vision_depth, "hidden_size": sizes.vision_size, "num_heads": sizes.heads}
    vision |= {"intermediate_size": 2 * sizes.vision_size, "out_hidden_size": sizes.hidden_size}
    settings = {"text_config": text, "vision_config": vision, "tie_word_embeddings": True, **token_ids(tokenizer)}
    config = AutoConfig.for_model(case.family, **settings)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"patch_size": 16, "max_pixels": 512 * 512}))
    return folder


def make_trainer(case: Case, side: str, folder: Path, pairs: Path) -> Any:
    """One side's trainer; the first side writes the checkpoint, both load it."""
    start = folder / "model"
    if not start.is_dir():
        write_checkpoint(start, case)
    model = {"checkpoint": str(start), "dtype": "float32", "max_pixels": 512 * 512}
    trainer = build_side(side, step_recipe(model, folder, pairs, case.generations, ANSWER))
    trainer.model.train()
    return trainer


def step_recipe(
    model: dict[str, Any], out: Path, pairs: Path, generations: int, answer: int, *, checkpointing: bool = False
) -> RlRecipe:
    """The recipe of a step on one pair; all answers have `answer` tokens."""
    return RlRecipe.model_validate(
        {
            "phase": "rl",
            "out": out,
            "model": model,
            "data": {"pairs": [pairs], "question": "fixed"},
            "train": {
                "steps": 2,
                "batch_size": generations,
                "gradient_checkpointing": checkpointing,
                "save_every": 2,
                "report_to": [],
                "more": {"generation_kwargs": {"min_new_tokens": answer}},
            },
            # Two iterations, so that old log-probabilities are computed too.
            "grpo": {
                "generations": generations,
                "max_new_tokens": answer,
                "resamples": 0,
                "iterations": 2,
                "mask_truncated": False,
            },
        }
    )


def build_side(side: str, recipe: RlRecipe) -> Any:
    """The trainer of a recipe, differad's or stock TRL's."""
    checkpoint = open_checkpoint(recipe.model, recipe.out, 0)
    kind: Any = DifficultyAwareTrainer
    if side == "stock":
        kind, processor = StockTrainer, checkpoint.processor
        stock = StockProcessor(processor.image_processor, processor.tokenizer, processor.chat_template)
        checkpoint = replace(checkpoint, processor=stock)
    trainer = build_trainer(recipe, checkpoint, [], kind)
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def step(trainer: Any, pair: int, clock: Clock, optimizer: Any = None) -> float:
    """Run one step on one pair, with the optimiser if there is one; return its seconds."""
    rows = [trainer.train_dataset[pair] for _ in range(trainer.num_generations)]
    trainer._step = 0
    start = clock.now()
    with clock.part("other"):
        inputs = trainer._prepare_inputs(rows)
        # Only one side masks uninformative groups, so every answer gets an advantage here.
        inputs["completion_mask"] = torch.ones_like(inputs["completion_mask"])
        inputs["advantages"] = torch.linspace(-1, 1, len(rows), device=inputs["advantages"].device)
        with clock.part("loss and backward"), trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(trainer.model, inputs)
        with clock.part("loss and backward"):
            trainer.accelerator.backward(loss)
        if optimizer is not None:
            optimizer.step()
        trainer.model.zero_grad()
    return clock.now() - start


def measure(case: Case) -> dict[str, dict[str, float]]:
    """Median seconds of a step and of its parts, for each side."""
    torch.set_num_threads(case.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = write_pairs(folder, SIDE[case.family] * round(case.tokens**0.5), case.steps + 1)
        trainers, clocks = {}, {side: Clock(cpu=case.cpu) for side in SIDES}
        for side in SIDES:
            trainers[side] = make_trainer(case, side, folder, pairs)
            clocks[side].watch(trainers[side])
        taken: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for pair in range(case.steps + 1):
            for side in SIDES:
                clocks[side].seconds.clear()
                torch.manual_seed(pair)
                whole = step(trainers[side], pair, clocks[side])
                taken[side].append({"step": whole, **clocks[side].seconds})
        model, prompt = trainers["stock"].model, trainers["stock"]._buffered_inputs[0]["prompt_ids"].shape[1]
        sizes = {
            "prompt": prompt,
            "vocabulary": model.config.text_config.vocab_size,
            "parameters": model.num_parameters(),
        }
        # The first step warms up.
        return {
            side: {part: statistics.median(t.get(part, 0.0) for t in taken[side][1:]) for part in ("step", *PARTS)}
            | sizes
            for side in SIDES
        }


def memory_of(case: Case, side: str) -> float:
    """Peak memory that a step of one side adds to its process, in MiB (Linux)."""
    torch.set_num_threads(case.threads)
    with tempfile.TemporaryDirectory() as name:
        pairs = write_pairs(Path(name), SIDE[case.family] * round(case.tokens**0.5), 1)
        trainer = make_trainer(case, side, Path(name), pairs)
        return added_memory(lambda: step(trainer, 0, Clock(cpu=case.cpu)))


def added_memory(work: Callable[[], Any]) -> float:
    """Peak memory that `work` adds to this process, in MiB (Linux)."""
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(name))) / 1024


def operations(case: Case, prompt: int, vocabulary: int) -> dict[str, dict[str, float]]:
    """Multiplications and additions of a step in 10^9, by part: the minimum, and those of each side.

    A token costs 2 operations per weight, and 4 h for each token that it attends to; a backward pass costs twice its
    forward pass (weights and activations). Unavoidable: the tower, the policy's prompt and the reference's prompt once, and
    each answer's tokens once in generation, once in the reference, and once forward and backward.
    """
    s, patches = case.scratch, 4 * case.tokens
    tower = s.vision_depth * 2 * patches * (4 + 2 * 2) * s.vision_size**2
    tower += s.vision_depth * 4 * patches**2 * s.vision_size
    tower += 2 * patches * 3 * 2 * 14**2 * s.vision_size
    tower += 2 * case.tokens * (16 * s.vision_size**2 + 4 * s.vision_size * s.hidden_size)
    vision = 2 * tower
    weights = s.layers * (4 + 3 * 3) * s.hidden_size**2
    g, length = case.generations, prompt + ANSWER
    head = 2 * vocabulary * s.hidden_size
    # Average attention to earlier tokens; kernels that skip no masked keys cost up to twice that.
    prompts = 2 * prompt * weights + 4 * s.layers * s.hidden_size * prompt**2 / 2
    answers = g * (2 * ANSWER * weights + 4 * s.layers * s.hidden_size * ANSWER * (prompt + ANSWER / 2))
    heads = g * ANSWER * head
    # Without a Triton kernel that selects the answers, TRL's output layer computes whole rows.
    rows = g * prompts + answers + g * length * head
    return {
        "unavoidable": {"vision": vision, "language": 4 * prompts + 4 * (answers + heads)},
        "stock": {"vision": 4 * g * vision, "language": 5 * rows + g * prompts + answers + heads},
        "shared": {"vision": vision, "language": 5 * prompts + 6 * (answers + heads)},
    }


def matmul_rate(threads: int) -> float:
    """Best rate of a large float32 product, in 10^9 operations per second."""
    torch.set_num_threads(threads)
    a, best = torch.randn(1024, 1024), float("inf")
    for _ in range(10):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * 1024**3 / best / 1e9


def cases(family: str, quick: bool, *settings: Any) -> list[Case]:
    """The main case first, then others by G and by image size."""
    if quick:
        return [Case(family, 4, 64, QUICK, *settings)]
    sizes = [(8, 256), (4, 256), (16, 256), (8, 64)]
    scratch = SCRATCH if family == "qwen2_vl" else DELTA
    return [Case(family, generations, tokens, scratch, *settings) for generations, tokens in sizes]


def parts_table(times: dict[str, dict[str, float]]) -> list[str]:
    """Seconds by part, and the ratio to stock."""
    lines = ["| seconds per step | stock TRL | shared | ratio |", "|---|---|---|---|"]
    for part in ("step", *PARTS):
        stock, shared = (times[side][part] for side in SIDES)
        ratio = f"{stock / shared:.1f} x" if shared > 5e-4 else "–"
        lines.append(f"| {'**whole step**' if part == 'step' else part} | {stock:.3f} | {shared:.3f} | {ratio} |")
    return lines


def growth_table(found: list[tuple[Case, dict[str, dict[str, float]], dict[str, float]]]) -> list[str]:
    """Whole steps and memory of every case."""
    lines = [
        "| answers (G) | tokens per image | stock TRL, s | shared, s | ratio | stock, MiB | shared, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for case, times, memory in sorted(found, key=lambda each: (each[0].tokens, each[0].generations)):
        stock, shared = (times[side]["step"] for side in SIDES)
        cells = [case.generations, case.tokens, f"{stock:.2f}", f"{shared:.2f}", f"**{stock / shared:.1f} x**"]
        cells += [f"{memory[side]:.0f}" for side in SIDES]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def operations_table(case: Case, times: dict[str, dict[str, float]], rate: float) -> list[str]:
    """Operations by part, and each side's rate."""
    lines = ["| 10^9 operations per step | vision | language | all | 10^9 per second |", "|---|---|---|---|---|"]
    counts = operations(case, round(times["stock"]["prompt"]), round(times["stock"]["vocabulary"]))
    for name, parts in counts.items():
        whole = sum(parts.values()) / 1e9
        speed = f"{whole / times[name]['step']:.0f}" if name in times else "–"
        cells = [name, *(f"{value / 1e9:.1f}" for value in parts.values()), f"{whole:.1f}", speed]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", f"A product of two 1024 x 1024 float32 matrices ran at {rate:.0f} x 10^9 per second."]


def report(arguments: argparse.Namespace) -> str:
    load = os.getloadavg()[0]
    rate = matmul_rate(arguments.threads)
    found = []
    chosen = cases(arguments.family, arguments.quick, arguments.steps, arguments.threads, arguments.cpu)
    for case in chosen[:1] if arguments.one else chosen:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
            memory = {side: pool.submit(memory_of, case, side).result() for side in SIDES}
        found.append((case, measure(case), memory))
        print(f"G={case.generations}, {case.tokens} tokens per image: measured", file=sys.stderr)
    case, times, _ = found[0]
    head = (
        f"{NAMES[case.family]} of {times['stock']['parameters'] / 1e6:.1f} million weights, G = {case.generations}, two "
        f"images of {case.tokens} tokens, prompt of {times['stock']['prompt']:.0f} tokens, answers of {ANSWER}, float32, "
        f"{arguments.threads} threads, median of {arguments.steps} steps, seconds "
        f"of {'processor' if arguments.cpu else 'wall-clock'} time; load of the machine {load:.1f} before, "
        f"{os.getloadavg()[0]:.1f} after, on {os.cpu_count()} cores. {SHARED[case.family]}. The ratios hold where prompts are "
        "shared: not under ZeRO-3, FSDP2 or dropout, and under vLLM not in the rollout; a run's first line says where."
    )
    blocks = [[head], parts_table(times), growth_table(found)]
    if case.family == "qwen2_vl":  # operations are counted for this family only
        blocks.append(operations_table(case, times, rate))
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def write_page(path: Path, title: str, program: str, text: str) -> None:
    """Write a benchmark's tables to a Markdown file, below the command that made them."""
    command = " ".join(["python", f"benchmarks/{program}", *sys.argv[1:]])
    path.write_text(f"# {title}\n\n```sh not run: needs a quiet machine for minutes\n{command}\n```\n\n{text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=list(NAMES), default="qwen2_vl", help="family of the model")
    parser.add_argument("--quick", action="store_true", help="a tiny model, one case")
    parser.add_argument("--one", action="store_true", help="only G = 8 and images of 256 tokens")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--cpu", action="store_true", help="measure processor time, for a machine with other load")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each side and case")
    parser.add_argument("--out", type=Path, help="write the tables to this Markdown file too")
    arguments = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        text = report(arguments)
    print(text)
    if arguments.out:
        write_page(arguments.out, "Shared prefixes: one GRPO step compared with stock TRL", "grpo_speed.py", text)


if __name__ == "__main__":
    main()
