"""A local or hub checkpoint of any class that transformers' `AutoModelForImageTextToText` knows.

Image tokens of Qwen-VL are built here, from the image processor's grid; other models' inputs are built by their own processor
(processors.py). If several targets share one reference, the prompt up to that reference is encoded once (prefix.py).

Images are read and prepared in threads (reading.py). Knows nothing of how a box is written; `answers` does.
"""

import time
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from differad.answers.formats import TINY_MODEL_TYPE, answer_format, family_of
from differad.answers.grammar import AnswerGrammar
from differad.answers.parsing import Frame
from differad.answers.prompts import SYSTEM, prompt_text
from differad.answers.resize import ResizeRule
from differad.core import Location, Pair
from differad.errors import DifferadError, ImageError, LocatorError, OptionError
from differad.images import RGB, digest
from differad.locators.base import Outcome
from differad.locators.chat import Reply, to_location, user_content
from differad.locators.checkpoints import (
    choose_device,
    is_qwen,
    load_config,
    load_image_processor,
    load_model,
    load_tokenizer,
    require_packages,
    resolve,
    template_options,
)
from differad.locators.comparable import doubt_normal
from differad.locators.reading import ComputeOnce, PairReader, PairStream, Window, reading_threads
from differad.locators.remembered import LRUCache
from differad.options import check_at_least, check_option, option

if TYPE_CHECKING:
    from differad.locators.constrain import TokenTexts
    from differad.locators.prefix import Prefix

# Batches that are read together; pairs with the same reference are grouped within them.
READ_AHEAD = 2
# Limit in bytes of patches that are prepared ahead for READ_AHEAD batches.
_PATCH_BYTES = 2 << 30
# Number of recent references: one that comes again, even pair by pair, is worth caching.
_MAX_RECENT = 64


@dataclass(frozen=True)
class LocalOptions:
    """How a checkpoint is run; the defaults give the same answer every time."""

    device: str = option("auto", "cpu, cuda, cuda:1, mps; auto takes an accelerator if there is one")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "the type that it computes in; auto takes the type it was saved in"
    )
    batch_size: int = option(4, "pairs that are answered at once")
    max_new_tokens: int = option(512, "an answer is cut off after this many tokens")
    temperature: float = option(0.0, "0 takes the likeliest token, above 0 tokens are sampled")
    seed: int = option(0, "of the sampling; a pair gets the same answer whatever its batch")
    min_pixels: int | None = option(
        None, "smaller images are enlarged to this area in pixels; none: the checkpoint's own"
    )
    max_pixels: int | None = option(None, "larger images are shrunk to this area in pixels; none: the checkpoint's own")
    family: str | None = option(None, "the answer format; none: what the checkpoint's config implies")
    remember_prefixes: int = option(
        4, "references whose encoded part of the prompt is cached for later targets; 0 encodes every prompt whole"
    )
    workers: int = option(
        0,
        "threads that read images while the model answers; 0: several with an accelerator, none with a model on the CPU",
    )
    constrain: bool = option(
        False,
        "restrict the answer part to a box of the family's format or the zero box, so that every answer can be parsed",
    )

    def __post_init__(self) -> None:
        check_at_least("batch_size", self.batch_size, 1)
        check_at_least("max_new_tokens", self.max_new_tokens, 1)
        check_at_least("temperature", self.temperature, 0)
        check_at_least("seed", self.seed, 0)
        check_at_least("remember_prefixes", self.remember_prefixes, 0)
        check_at_least("workers", self.workers, 0)
        check_at_least("min_pixels", self.min_pixels, 1)
        check_at_least("max_pixels", self.max_pixels, 1)
        dtypes = ("auto", "float32", "bfloat16", "float16")
        check_option("dtype", self.dtype, self.dtype in dtypes, " or ".join(dtypes))
        if self.family is not None:
            answer_format(self.family)


@dataclass(frozen=True, eq=False)
class Patches:
    """Output of the image processor: values (P, D) and grids (M, 3), tensors on the CPU."""

    values: Any
    grids: Any


@dataclass(frozen=True, eq=False)
class Prepared:
    """One pair, read: its images, the key of its reference, the area of both images in the model, the target's frame.

    Patches of its images if they were computed ahead.
    """

    reference: RGB
    target: RGB
    key: bytes
    area: int
    frame: Frame
    seed: int
    reference_patches: Patches | None = None
    target_patches: Patches | None = None


@dataclass(frozen=True, eq=False)
class _Batch:
    """Pairs that are answered at once, by their index in the window; `shares`: they have one reference."""

    items: dict[int, Prepared]
    shares: bool


class LocalLocator:
    """Runs a checkpoint on pairs, in batches. It is loaded here, so a wrong checkpoint is refused at once."""

    def __init__(self, checkpoint: str, options: LocalOptions | None = None) -> None:
        self.name = str(checkpoint)
        self.options = options or LocalOptions()
        source = resolve(self.name)  # first: installing packages does not make a folder a checkpoint
        require_packages()
        self.weights = (Path(source),) if Path(source).is_dir() else ()
        self._config = load_config(source)
        # The commit of a hub checkpoint.
        self.revision = getattr(self._config, "_commit_hash", None)
        self._format = answer_format(self.options.family or family_of(self._config.model_type))
        self._device = choose_device(self.options.device)
        self._processor: Any = None
        self._rule: ResizeRule | None = None
        if is_qwen(self._config):
            self._tokenizer = load_tokenizer(source)
            self._image_processor = load_image_processor(source, self.options.min_pixels, self.options.max_pixels)
            self._rule = ResizeRule.from_settings(self._image_processor.to_dict())
        else:
            from differad.locators.processors import load_processor

            self._processor = load_processor(source, self._config, self.options.min_pixels, self.options.max_pixels)
            self._tokenizer = self._processor.tokenizer
        self._set_up(load_model(source, self.options.dtype, self._device))

    def _set_up(self, model: Any) -> None:
        """Set up what depends on the loaded parts."""
        if self._rule is None and self._format.space == "resized":
            raise OptionError(
                f"{self.name}: family {self._format.family!r} answers in pixels of the resized image, which the processor of "
                f"model type {self._config.model_type!r} does not return; pass another --family"
            )
        self._model = model
        if self._processor is None:
            self._image_token = str(self._tokenizer.convert_ids_to_tokens(self._config.image_token_id))
        self._prompt = self._render_prompt()
        self._prefixes: LRUCache[bytes, Prefix] = LRUCache(self.options.remember_prefixes)
        self._recent_references: LRUCache[bytes, bool] = LRUCache(_MAX_RECENT)
        self._token_texts: TokenTexts | None = None
        # The embedded policy's tokens of a reference depend on the target.
        self._one_by_one = self._processor is None and self._config.model_type != TINY_MODEL_TYPE
        # None until a reference comes a second time.
        self._caches_prefixes: bool | None = None if self._one_by_one and self.options.remember_prefixes > 0 else False
        # None until a prompt is encoded whole on a GPU.
        self._records: bool | None = None if self._one_by_one and str(self._device).startswith("cuda") else False

    def _can_cache_prefixes(self) -> bool:
        if self._caches_prefixes is None:
            from differad.locators.prefix_trial import can_cache_prefixes

            self._caches_prefixes = can_cache_prefixes(self._model)
        return self._caches_prefixes

    def _can_record(self) -> bool:
        if self._records is None:
            from differad.locators.prefix_trial import can_record

            self._records = can_record(self._model)
        return self._records

    def locate(self, pair: Pair) -> Location:
        """Where the target is abnormal. Raises ImageError, LocatorError."""
        outcome = next(self.locate_many([pair]))
        if isinstance(outcome, DifferadError):
            raise outcome
        return outcome

    def locate_many(self, pairs: Iterable[Pair]) -> Iterator[Outcome]:
        """Locate a stream in order; READ_AHEAD batches are read together, and sorted by reference and size.

        With `workers`, or with an accelerator, the next ones are taken from the stream and read while the last of these is
        answered. The seconds of a pair are its equal share of its batch's time and of the time spent waiting for reading.
        """
        stream = PairStream(pairs, READ_AHEAD * self.options.batch_size)
        threads, ahead = reading_threads(self.options.workers, str(self._device))
        with PairReader(partial(self._make_ready, ahead=ahead), threads) as reader:
            window = reader.start(stream.take())
            while count := len(window):
                start = time.perf_counter()
                errors, items = self._collect(window)
                waited = (time.perf_counter() - start) / count
                outcomes: dict[int, Outcome] = dict(errors)
                batches = deque(self._batches(items))
                del items  # images are freed once their batch is answered
                following = None
                for index in range(count):
                    while index not in outcomes:
                        if ahead and len(batches) == 1:
                            following = reader.start(stream.take_early(), ahead=True)
                        outcomes |= self._outcomes(batches.popleft(), waited)
                    yield outcomes.pop(index)
                window = following or reader.start(stream.take())

    def _collect(self, window: Window[Prepared]) -> tuple[dict[int, DifferadError], dict[int, Prepared]]:
        """Errors and pairs of a window by their index; waits for them."""
        return window.collect()

    def _outcomes(self, batch: _Batch, reading: float) -> dict[int, Outcome]:
        """Outcomes by index; `reading` is the time per pair in seconds spent waiting for reading."""
        start = time.perf_counter()
        answers = self._answer(list(batch.items.values()), batch.shares)
        share = reading + (time.perf_counter() - start) / len(answers)
        return {
            index: doubt_normal(self._decide(answer, share), item.reference, item.target)
            if isinstance(answer, Reply)
            else answer
            for (index, item), answer in zip(batch.items.items(), answers, strict=True)
        }

    def _batches(self, window: dict[int, Prepared]) -> list[_Batch]:
        """Batches of pairs with one repeated reference, and batches of all others; each sorted by size, to save padding."""
        groups: dict[bytes | None, list[int]] = {}
        counts = Counter(item.key for item in window.values())
        # Fewer pairs would make small batches, which cost more than encoding the reference.
        enough = min(self.options.batch_size, len(window)) / 2
        for index, item in window.items():
            count = counts[item.key]
            again = (
                (count > 1 or item.key in self._recent_references) and count >= enough and self._can_cache_prefixes()
            )
            groups.setdefault(item.key if again else None, []).append(index)
        for key in counts:
            self._recent_references.keep(key, True)
        size, batches = self.options.batch_size, []
        for shared, indices in groups.items():
            indices.sort(key=lambda index: window[index].area)
            for begin in range(0, len(indices), size):
                chosen = indices[begin : begin + size]
                batches.append(_Batch({index: window[index] for index in chosen}, shared is not None))
        return sorted(batches, key=lambda batch: min(batch.items))

    def _decide(self, reply: Reply, seconds: float) -> Location:
        """The location that a reply states."""
        return to_location(reply, self._format, self.name, seconds)

    def _make_ready(self, reference: RGB, target: RGB, *, key: bytes, once: ComputeOnce, ahead: bool) -> Prepared:
        """Prepare a pair, in several threads at once; `ahead`: with patches, if those of a window fit into _PATCH_BYTES."""
        item = self._prepare(reference, target, key)
        share = _PATCH_BYTES // (READ_AHEAD * self.options.batch_size)
        if not (ahead and self._one_by_one and item.area * self._bytes_a_pixel() <= share):
            return item
        # A reference with a cached prefix needs no patches.
        cached = key in self._prefixes
        return replace(
            item,
            reference_patches=None if cached else once.get(("patches", key), lambda: self._patches([reference])),
            target_patches=self._patches([target]),
        )

    def _bytes_a_pixel(self) -> int:
        """Bytes of float32 patches per pixel: three channels, each frame."""
        return 4 * 3 * int(self._image_processor.temporal_patch_size)

    def _prepare(self, reference: RGB, target: RGB, key: bytes | None = None) -> Prepared:
        sizes = [(image.shape[1], image.shape[0]) for image in (reference, target)]
        if self._rule is not None:
            sizes = [self._rule.resized(*size) for size in sizes]
        frame = Frame(target.shape[1], target.shape[0], resized=None if self._rule is None else sizes[1])
        key = digest(reference) if key is None else key
        seed = zlib.crc32(str(self.options.seed).encode(), zlib.crc32(target.data, zlib.crc32(key)))
        area = sum(width * height for width, height in sizes)
        return Prepared(reference, target, key, area, frame, seed)

    def _render_prompt(self) -> str:
        if self._processor is not None:
            from differad.locators.processors import render_prompt

            return render_prompt(self._processor, self.name, prompt_text(self._format))
        slot = {"type": "image"}
        messages = [
            {"role": "system", "content": [{"type": "text", "text": SYSTEM}]},
            {"role": "user", "content": user_content(prompt_text(self._format), slot, slot)},
        ]
        template = self._tokenizer.chat_template
        text = str(
            self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **template_options(str(template))
            )
        )
        if text.count(self._image_token) != 2:
            raise OptionError(
                f"{self.name}: its chat template has {text.count(self._image_token)} image slots; expected 2; "
                "copy the chat template of a published checkpoint of its family into the folder"
            )
        return text

    def _answer(self, batch: list[Prepared], shares: bool) -> list[Reply | DifferadError]:
        """One outcome each; a batch that does not fit into memory, or that holds a refused image, is halved repeatedly."""
        import torch

        try:
            return list(self._generate(batch, shares))
        except torch.cuda.OutOfMemoryError:
            if len(batch) == 1:
                return [LocatorError(f"{self.name}: one pair does not fit into memory; lower max_pixels")]
        except ImageError as error:
            if len(batch) == 1:
                return [error]
        half = len(batch) // 2
        return self._answer(batch[:half], shares) + self._answer(batch[half:], shares)

    def _generate(self, batch: list[Prepared], shares: bool) -> Sequence[Reply]:
        """One reply each; `shares`: all have one reference, whose part of the prompt is cached."""
        import torch

        processors = [*self._noise([item.seed for item in batch]), *self._constraint([item.frame for item in batch])]
        with torch.inference_mode():
            rows = self._after_prefix(batch, processors) if shares else self._whole(batch, processors)
        return [Reply(self._decode(row), item.frame) for row, item in zip(rows.tolist(), batch, strict=True)]

    def _whole(self, batch: list[Prepared], processors: list[Any]) -> Any:
        """New tokens (B, C) after prompts that are encoded whole."""
        from differad.locators.transformers_hooks import without_balance_loss

        inputs = self._qwen_inputs(batch) if self._processor is None else self._processed(batch)
        if self._can_record():
            from differad.locators.prefix import generate_whole

            return generate_whole(self._model, inputs, self._generation(), processors)

        inputs |= without_balance_loss(self._model)
        output = self._model.generate(**inputs, generation_config=self._generation(), logits_processor=processors)
        return output[:, inputs["input_ids"].shape[1] :]

    def _processed(self, batch: list[Prepared]) -> dict[str, Any]:
        """The model's inputs from its own processor."""
        inputs = self._processor(
            text=[self._prompt] * len(batch),
            images=[[item.reference, item.target] for item in batch],
            padding=True,
            input_data_format="channels_last",
            return_tensors="pt",
        )
        return {
            name: value.to(self._device, self._model.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }

    def _qwen_inputs(self, batch: list[Prepared]) -> dict[str, Any]:
        """The model's inputs, with image tokens built from the images' grids."""
        patches, grids, counts = self._encode_images(
            [image for item in batch for image in (item.reference, item.target)],
            [each for item in batch for each in (item.reference_patches, item.target_patches)],
        )
        before, between, after = self._prompt.split(self._image_token)
        ids, mask, types = self._encode(
            [
                before + self._image_token * first + between + self._image_token * second + after
                for first, second in zip(counts[::2], counts[1::2], strict=True)
            ]
        )
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "mm_token_type_ids": types,
            "pixel_values": patches,
            "image_grid_thw": grids,
        }

    def _after_prefix(self, batch: list[Prepared], processors: list[Any]) -> Any:
        """New tokens (B, C) after prompts whose prefix, up to the reference, is encoded once and cached."""
        from differad.locators.prefix import generate_after

        prefix = self._prefix(batch[0])
        patches, grids, counts = self._encode_images(
            [item.target for item in batch], [item.target_patches for item in batch]
        )
        _, between, after = self._prompt.split(self._image_token)
        ids, mask, types = self._encode([between + self._image_token * count + after for count in counts])
        return generate_after(self._model, prefix, ids, mask, types, patches, grids, self._generation(), processors)

    def _prefix(self, item: Prepared) -> "Prefix":
        return self._prefixes.recall(item.key, lambda: self._encode_prefix(item))

    def _encode_prefix(self, item: Prepared) -> "Prefix":
        from differad.locators.prefix import encode_prefix

        patches, grids, counts = self._encode_images([item.reference], [item.reference_patches])
        ids, _, types = self._encode([self._prompt.split(self._image_token)[0] + self._image_token * counts[0]])
        return encode_prefix(self._model, ids, types, patches, grids)

    def _encode_images(self, images: list[RGB], ready: Sequence[Patches | None] = ()) -> tuple[Any, Any, list[int]]:
        """Patches (P, D) and grids (M, 3) of images, on the device, and the token count of each; `ready` patches are used."""
        import torch

        if any(ready):
            patch_sets = [each or self._patches([image]) for image, each in zip(images, ready, strict=True)]
        else:
            patch_sets = [self._patches(images)]
        counts = [int(grid.prod()) // self._image_processor.merge_size**2 for each in patch_sets for grid in each.grids]
        values = [each.values.to(self._device) for each in patch_sets]
        patches = values[0] if len(values) == 1 else torch.cat(values)
        return patches.to(self._model.dtype), torch.cat([each.grids for each in patch_sets]).to(self._device), counts

    def _patches(self, images: list[RGB]) -> Patches:
        processed = self._image_processor(images=images, return_tensors="pt", input_data_format="channels_last")
        return Patches(processed["pixel_values"], processed["image_grid_thw"])

    def _encode(self, texts: list[str]) -> tuple[Any, Any, Any]:
        """Tokens, mask and types (1 for image tokens), each (B, L), on the device, padded on the left."""
        encoded = self._tokenizer(
            texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt"
        ).to(self._device)
        ids = encoded["input_ids"]
        return ids, encoded["attention_mask"], (ids == self._config.image_token_id).int()

    def _generation(self) -> Any:
        """Greedy decoding: a checkpoint's own sampling and repetition penalties distort coordinates."""
        from transformers import GenerationConfig

        return GenerationConfig(
            max_new_tokens=self.options.max_new_tokens,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=sorted(self._end_ids()),
            pad_token_id=self._tokenizer.pad_token_id,
        )

    def _noise(self, seeds: list[int]) -> list[Any]:
        if self.options.temperature == 0:
            return []
        return [_GumbelNoise(self.options.temperature, seeds)]

    def _constraint(self, frames: list[Frame]) -> list[Any]:
        if not self.options.constrain:
            return []
        from differad.locators.constrain import Constraint, TokenTexts

        grammars = [AnswerGrammar(self._format, frame) for frame in frames]
        if self._token_texts is None:
            size = self._model.config.get_text_config().vocab_size
            self._token_texts = TokenTexts(self._tokenizer, size, grammars[0].letters)
        return [Constraint(self._token_texts, grammars, sorted(self._end_ids()), self.options.max_new_tokens)]

    def _end_ids(self) -> set[int]:
        ends = self._model.generation_config.eos_token_id
        listed = ends if isinstance(ends, list) else [ends]
        return {int(end) for end in (*listed, self._tokenizer.eos_token_id) if end is not None}

    def _decode(self, row: list[int]) -> str:
        """Text up to the end token; special tokens stay, since `<think>` and box tokens may be among them."""
        ends = self._end_ids()
        stop = next((index for index, token in enumerate(row) if token in ends), len(row))
        return str(self._tokenizer.decode(row[:stop], skip_special_tokens=False))


class _GumbelNoise:
    """Turns greedy decoding into sampling at a temperature: argmax(l / T + g) with Gumbel g is a sample from softmax(l / T).

    One generator per row, seeded by its pair, so that an answer depends neither on the batch nor on the order of pairs.
    """

    def __init__(self, temperature: float, seeds: list[int]) -> None:
        import torch

        self._temperature = temperature
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, _ids: Any, scores: Any) -> Any:
        import torch

        uniform = torch.stack([torch.rand(scores.shape[1], generator=each) for each in self._generators])
        noise = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
        return scores.float() / self._temperature + noise.to(scores.device)
