"""The `locate` stage of `gpu.py`: pairs per second of a 2B and an 8B Qwen3-VL, with a prefix cache, with plain `generate` and
with transformers' own prompt cache.

Weights are random, made on the GPU and held once for all sides, which read the same files and alternate. Every answer has exactly
ANSWER tokens (end tokens are suppressed) and is compared token by token with that of plain `generate`; in bfloat16, ties differ.
One reference: many targets with one reference, whose part of the prompt is cached. Own references: each pair has a new one.
Returning references: each pair has its own, already cached one.

The floor of a pair is the minimum work at the ceilings measured by `card`, with sequential parts. It excludes reading and
processing images, which the CPU does at the same time, except for the first images of a turn:

    vision   2 x weights per patch + 4 x patches^2 x width x layers; for the target, and for a new reference
    prefill  2 x weights per token + 4 x (earlier tokens) x heads x head size x layers; or reading the weights, if that is longer
    decode   ANSWER - 1 reads of all weights, once for all rows of a batch, and of the rows' keys and values, the prefix's once

On an H100 of 800 TFLOP/s and 3.0 TB/s, in milliseconds per pair (TFLOP of vision and prefill, GB of decoding):

    2B, 448 pixels, one reference, batch 16       4.5 = 0.7 + 1.1 + 2.6    (0.6, 0.9, 7.9)
    2B, 448 pixels, one reference, batch 1         38 = 0.7 + 1.1 + 36     (0.6, 0.9, 109)
    8B, 448 pixels, one reference, batch 16        17 = 1.0 + 5.5 + 10     (0.8, 4.4, 31)
    8B, 448 pixels, one reference, batch 1        164 = 1.0 + 5.5 + 157    (0.8, 4.4, 472)
    2B, 448 pixels, own references, batch 16      6.7 = 1.4 + 2.3 + 3.0    (1.2, 1.8, 9.0)
    2B, 1024 pixels, one reference, batch 16       14 = 5.4 + 4.6 + 3.7    (4.3, 3.7, 11)
    2B, 448 pixels, returning ones, batch 4        13 = 1.4 + 2.3 + 9.7    (1.2, 1.8, 29)
"""

import copy
import gc
import statistics
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from differad.core import Pair
from differad.errors import DifferadError
from differad.locators import transformers_hooks as hooks
from differad.locators.local import READ_AHEAD
from differad.training.policy import CheckpointParts, InMemoryLocator, open_checkpoint
from differad.training.recipe import Model
from gpu_context import Context, Row, attempt
from gpu_models import SHAPES, TOKEN, Shape, build_model
from part_clock import PartClock

ANSWER = 32
ONE, OWN, RETURNING = "one reference", "own references", "returning references"
TURNS = 3
# Channels, two frames and the pixels of a patch.
_PATCH_NUMBERS = 3 * 2 * 16 * 16


@dataclass(frozen=True)
class Case:
    """Images of `side` pixels, `batch` pairs at once; `seconds` is the expected time of one turn of all sides on a GPU."""

    shape: Shape
    batch: int
    side: int
    references: str
    seconds: float

    @property
    def name(self) -> str:
        return f"{self.shape.name}, {self.side} pixels, batch {self.batch}, {self.references}"

    @property
    def pairs(self) -> int:
        """Pairs per turn: two windows; the second is read while the first is answered.

        Returning references are few enough to stay in the cache.
        """
        return self.batch if self.references == RETURNING else 2 * READ_AHEAD * self.batch


def cases(tiny: bool) -> list[Case]:
    """The most valuable first."""
    if tiny:
        shape = SHAPES["tiny"]
        return [Case(shape, 4, 64, ONE, 0), Case(shape, 1, 64, ONE, 0), Case(shape, 4, 64, RETURNING, 0)]
    small, large = SHAPES["2B"], SHAPES["8B"]
    return [
        Case(small, 16, 448, ONE, 25),
        Case(small, 1, 448, ONE, 15),
        Case(large, 16, 448, ONE, 40),
        Case(large, 1, 448, ONE, 20),
        Case(small, 16, 448, OWN, 20),
        Case(small, 16, 1024, ONE, 60),
        Case(small, 4, 448, RETURNING, 20),
    ]


class PrefixCached(InMemoryLocator):
    """differad's locator on a model in memory. An answer is its token ids as text, because most tokens have no text."""

    references = 4

    def __init__(self, model: Any, source: CheckpointParts, batch: int) -> None:
        super().__init__(model, source, batch_size=batch, max_new_tokens=ANSWER)
        self.options = replace(self.options, remember_prefixes=self.references)
        self.clock: PartClock | None = None
        self._set_up(model)

    def prompt_tokens(self) -> tuple[int, int]:
        """Number of tokens of the prompt before and after the reference, without image tokens."""
        before, between, after = self._prompt.split(self._image_token)
        return len(self._tokenizer(before)["input_ids"]), len(self._tokenizer(between + after)["input_ids"])

    def _collect(self, window: Any) -> Any:
        with self.clock.part("reading") if self.clock else nullcontext():
            return super()._collect(window)

    def _encode_images(self, images: list[Any], ready: Any = ()) -> tuple[Any, Any, list[int]]:
        with self.clock.part("images") if self.clock else nullcontext():
            return super()._encode_images(images, ready)

    def _decode(self, row: list[int]) -> str:
        return " ".join(map(str, row))


class Plain(PrefixCached):
    """Whole prompts encoded by `generate`."""

    references = 0


class Copied(PrefixCached):
    """Prompt caching as documented by transformers: prefill a cache once and copy it for each `generate`.

    https://huggingface.co/docs/transformers/kv_cache#prefill-a-cache-prefix-caching
    """

    def _encode_prefix(self, item: Any) -> Any:
        patches, grids, counts = self._encode_images([item.reference], [item.reference_patches])
        ids, mask, types = self._encode([self._prompt.split(self._image_token)[0] + self._image_token * counts[0]])
        cache = hooks.empty_cache(self._model)
        self._model(
            input_ids=ids,
            attention_mask=mask,
            mm_token_type_ids=types,
            pixel_values=patches,
            image_grid_thw=grids,
            use_cache=True,
            logits_to_keep=1,
            **hooks.cache_input(self._model, cache),
        )
        return ids, grids, cache

    def _after_prefix(self, batch: list[Any], processors: list[Any]) -> Any:
        begin, reference, prefix_cache = self._prefix(batch[0])
        patches, grids, counts = self._encode_images(
            [item.target for item in batch], [item.target_patches for item in batch]
        )
        _, between, after = self._prompt.split(self._image_token)
        ends, mask, _ = self._encode([between + self._image_token * count + after for count in counts])
        rows = len(batch)
        ids = torch.cat([begin.expand(rows, -1), ends], dim=1)
        cache = copy.deepcopy(prefix_cache)
        cache.batch_repeat_interleave(rows)
        output = self._model.generate(
            input_ids=ids,
            attention_mask=torch.cat([mask.new_ones(rows, begin.shape[1]), mask], dim=1),
            mm_token_type_ids=(ids == self._config.image_token_id).int(),
            image_grid_thw=torch.cat([torch.cat([reference, grid[None]]) for grid in grids]),
            mm_encoder_outputs={"image": self._model.model.get_image_features(patches, grids, return_dict=True)},
            generation_config=self._generation(),
            logits_processor=processors,
            **hooks.cache_input(self._model, cache),
        )
        return output[:, ids.shape[1] :]


SIDES: dict[str, type[PrefixCached]] = {
    "plain generate": Plain,
    "kept prefix": PrefixCached,
    "transformers' prompt cache": Copied,
}


def rows(context: Context) -> Iterator[Row]:
    loaded: Loaded | None = None
    for case in cases(context.tiny):
        if not context.has(case.seconds):
            reason = f"not tried: {context.remaining():.0f} s left, about {case.seconds:.0f} s needed"
            yield {"what": case.name, "error": reason}
            continue
        if loaded is None or loaded.shape != case.shape:
            loaded = None
            gc.collect()
            row, loaded = load(context, case.shape)
            yield row
        if loaded is not None:
            yield from attempt(f"floor of {case.name}", partial(floor_row, context, case, loaded))
            yield from Measurement(context, case, loaded).rows()


@dataclass(frozen=True)
class Loaded:
    """A model on the device, and its checkpoint without the weights."""

    shape: Shape
    model: Any
    source: CheckpointParts


def load(context: Context, shape: Shape) -> tuple[Row, Loaded | None]:
    """A model of the shape, and a row with the cost of building it."""
    made: list[Loaded] = []

    def make() -> Row:
        context.reset_peak()
        start = time.perf_counter()
        dtype = torch.float32 if context.device.type == "cpu" else torch.bfloat16
        folder = context.folder / shape.name
        model = build_model(folder, shape, dtype, context.device)
        model.generation_config.suppress_tokens = model.generation_config.eos_token_id
        made.append(Loaded(shape, model, open_checkpoint(Model(checkpoint=str(folder)), context.folder, 0)))
        context.synchronize()
        return {
            "billion_weights": model.num_parameters() / 1e9,
            "dtype": str(dtype).removeprefix("torch."),
            "attention": hooks.text_attention(model),
            "seconds": time.perf_counter() - start,
            "gib": context.held_gib(),
        }

    row = next(attempt(f"random weights of {shape.name}", make))
    return row, made[0] if made else None


class Measurement:
    """All sides of one case."""

    def __init__(self, context: Context, case: Case, loaded: Loaded) -> None:
        self._context, self._case, self._loaded = context, case, loaded
        # Without a repeated reference, a prompt cache is of no use.
        self._sides = list(SIDES) if case.references == ONE else ["plain generate", "kept prefix"]
        self._pairs = write_pairs(context.folder / f"images-{case.side}", case)
        self._locators: dict[str, PrefixCached] = {}
        self._answers: dict[str, list[str]] = {}

    def rows(self) -> Iterator[Row]:
        """Alternate the sides, then measure parts and memory; a side that fails gives a row with the reason and is left out."""
        taken: dict[str, list[float]] = {side: [] for side in self._sides}
        # The first turns warm up; a returning reference is encoded separately from its second turn on.
        for number in range(-2 if self._case.references == RETURNING else -1, 1 if self._context.tiny else TURNS):
            start = time.perf_counter()
            for side in tuple(self._sides):
                row = next(attempt(self._case.name, partial(self._turn, side)))
                if "error" in row:
                    self._sides.remove(side)
                    yield row | {"what": f"{row['what']}, {side}"}
                elif number >= 0:
                    taken[side].append(row["seconds"])
            if number >= 0 and not self._context.has(2 * (time.perf_counter() - start)):
                break
        for side in self._sides:
            yield {"what": self._case.name, "side": side, **self._speed(side, statistics.median(taken[side]))}
        for side in self._sides:
            yield from attempt(f"parts of {self._case.name}", partial(self._parts, side))

    def _locator(self, side: str) -> PrefixCached:
        if side not in self._locators or self._case.references == OWN:
            self._locators[side] = SIDES[side](self._loaded.model, self._loaded.source, self._case.batch)
        return self._locators[side]

    def _turn(self, side: str) -> Row:
        locator = self._locator(side)
        start = time.perf_counter()
        self._answers[side] = answers_of(locator, self._pairs)
        return {"seconds": time.perf_counter() - start}

    def _speed(self, side: str, seconds: float) -> Row:
        seconds /= self._case.pairs
        floor = floor_seconds(self._context, self._case, self._loaded)
        answers, plain = self._answers[side], self._answers.get("plain generate", [])
        same = [one == other for one, other in zip(answers, plain, strict=False)]
        return {
            "pairs_per_s": 1 / seconds,
            "ms_a_pair": 1e3 * seconds,
            "floor_ms": None if floor is None else 1e3 * floor,
            "of_floor": None if floor is None else seconds / floor,
            "equal_answers": sum(same) / len(same) if same else None,
            "tokens": statistics.mean(len(answer.split()) for answer in answers),
        }

    def _parts(self, side: str) -> Row:
        """Milliseconds per pair, including waiting for the device after each part. GiB includes the weights.

        `reading` is the main thread's wait for images to be read and processed, `images` its own time for their transfer to the
        device.
        """
        locator, clock = self._locator(side), PartClock(self._context.synchronize)
        locator.clock = clock
        clock.follow("vision", self._loaded.model.model.visual)
        clock.follow(lambda named: "decode" if named["input_ids"].shape[1] == 1 else "prefill", self._loaded.model)
        self._context.reset_peak()
        try:
            with clock.part("other"):
                answers_of(locator, self._pairs)
        finally:
            clock.unfollow()
            locator.clock = None
        names = ("reading", "images", "vision", "prefill", "decode", "other")
        taken = {f"{name}_ms": 1e3 * clock.seconds[name] / self._case.pairs for name in names}
        return {"side": side, **taken, "peak_gib": self._context.peak_gib()}


def answers_of(locator: PrefixCached, pairs: list[Pair]) -> list[str]:
    """Answers on all pairs. Raises DifferadError."""
    answers = []
    for outcome in locator.locate_many(pairs):
        if isinstance(outcome, DifferadError):
            raise outcome
        answers.append(outcome.answer)
    return answers


def write_pairs(folder: Path, case: Case) -> list[Pair]:
    """Images of smooth noise; each target is darker in one area."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    coarse = random.integers(0, 200, (case.side // 8, case.side // 8, 3), np.uint8)
    good = np.asarray(Image.fromarray(coarse).resize((case.side, case.side), Image.Resampling.BICUBIC))
    files = []
    for number in range(case.pairs + 1):
        image = good.copy()
        x, y = random.integers(0, case.side - case.side // 4, 2)
        image[y : y + case.side // 4, x : x + case.side // 4] //= 2
        files.append(folder / f"{number}.png")
        Image.fromarray(image).save(files[-1], compress_level=1)
    references = [files[0]] * case.pairs if case.references == ONE else files[:-1]
    return [Pair(*both, id=str(number)) for number, both in enumerate(zip(references, files[1:], strict=True))]


@dataclass(frozen=True)
class Work:
    """Minimum operations and bytes of a batch."""

    vision: float
    prefill: float
    prefill_bytes: float
    decode: float
    decode_bytes: float


def work_of(case: Case, before: int, after: int) -> Work:
    """The minimum work of a batch; `before`, `after`: tokens of the prompt before and after the reference, without images."""
    shape, image = case.shape, (case.side // TOKEN) ** 2
    cached = before + image if case.references == ONE else 0
    new = image + after + (0 if cached else before + image)
    images = case.batch * (1 if case.references == ONE else 2)
    attention = 4 * shape.heads * shape.head * shape.layers  # a pair of tokens
    weights = shape.text_weights() + shape.head_weights()
    prefill = (
        2 * new * shape.text_weights() + 2 * shape.head_weights() + attention * (new * cached + new * (new + 1) / 2)
    )
    steps, token_bytes = ANSWER - 1, 2 * 2 * shape.layers * shape.kv_heads * shape.head
    row_tokens = sum(new + step for step in range(1, ANSWER))
    return Work(
        vision=images * vision_operations(shape, image),
        prefill=case.batch * prefill,
        prefill_bytes=2 * weights,
        decode=case.batch * (steps * 2 * weights + attention * (steps * cached + row_tokens)),
        decode_bytes=steps * 2 * weights + token_bytes * (steps * cached + case.batch * row_tokens),
    )


def vision_operations(shape: Shape, tokens: int) -> float:
    """Operations of the vision tower and its mergers on an image of `tokens` tokens, four patches each."""
    patches, width = 4 * tokens, shape.vision_hidden
    layer = 2 * patches * (4 * width**2 + 2 * width * shape.vision_wide) + 4 * patches**2 * width
    merger = 2 * tokens * 4 * width * (4 * width + shape.hidden)
    return shape.vision_layers * layer + 2 * patches * _PATCH_NUMBERS * width + (1 + len(shape.deepstack)) * merger


def part_seconds(work: Work, operations: float, bandwidth: float) -> dict[str, float]:
    """Seconds of a batch's parts at `operations` and `bandwidth` bytes per second."""
    return {
        "vision": work.vision / operations,
        "prefill": max(work.prefill / operations, work.prefill_bytes / bandwidth),
        "decode": max(work.decode / operations, work.decode_bytes / bandwidth),
    }


def ceilings(context: Context) -> tuple[float, float] | None:
    """Operations and bytes per second measured by `card`; None without them."""
    product, moved = (context.earlier("card", what) for what in ("bfloat16 product", "device copy"))
    if product is None or moved is None or "error" in product or "error" in moved:
        return None
    return product["tflops"] * 1e12, moved["tb_per_s"] * 1e12


def floor_seconds(context: Context, case: Case, loaded: Loaded) -> float | None:
    """Minimum seconds per pair."""
    measured = ceilings(context)
    if measured is None:
        return None
    tokens = PrefixCached(loaded.model, loaded.source, case.batch).prompt_tokens()
    return sum(part_seconds(work_of(case, *tokens), *measured).values()) / case.batch


def floor_row(context: Context, case: Case, loaded: Loaded) -> Row:
    tokens = PrefixCached(loaded.model, loaded.source, case.batch).prompt_tokens()
    work, measured = work_of(case, *tokens), ceilings(context)
    parts = part_seconds(work, *measured) if measured else {}
    return {
        "prompt_tokens": sum(tokens),
        "image_tokens": (case.side // TOKEN) ** 2,
        "vision_tflop": work.vision / case.batch / 1e12,
        "prefill_tflop": work.prefill / case.batch / 1e12,
        "decode_gb": work.decode_bytes / case.batch / 1e9,
        **{f"{part}_ms": 1e3 * seconds / case.batch for part, seconds in parts.items()},
        "floor_ms": 1e3 * sum(parts.values()) / case.batch if parts else None,
    }
