"""A local or hub checkpoint of the Qwen2-VL, Qwen2.5-VL or Qwen3-VL classes, run by transformers.

The stock processors of these models build a video processor too, which needs torchvision. Here the image processor and
the tokenizer are loaded on their own and the image tokens laid out from the image processor's grid, so a folder works as
it was published, with or without torchvision, and reads the same in both. No code and no pickle of a checkpoint is run.

Knows nothing of how a box is written; `answers` does.
"""

import json
import re
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from differad.answers.formats import TINY_MODEL_TYPE, answer_format, family_of
from differad.answers.parsing import Frame
from differad.answers.prompts import SYSTEM, prompt_text
from differad.answers.resize import ResizeRule
from differad.core import Location, Pair
from differad.errors import DifferadError, LocatorError, MissingExtraError, OptionError
from differad.images import RGB, read_images
from differad.locators.base import Outcome
from differad.locators.chat import Reply, to_location, user_content
from differad.options import check_at_least, check_option, option

MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", TINY_MODEL_TYPE)
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_FEATURE = "a local checkpoint"


@dataclass(frozen=True)
class LocalOptions:
    """How a checkpoint is run; the defaults give the same answer every time."""

    device: str = option("auto", "cpu, cuda, cuda:1, mps; auto takes an accelerator where there is one")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "the numbers that it computes in; auto takes those it was saved in"
    )
    batch_size: int = option(4, "pairs that are answered at once")
    max_new_tokens: int = option(512, "an answer is cut off after this many tokens")
    temperature: float = option(0.0, "0 takes the likeliest token, above it tokens are drawn")
    seed: int = option(0, "of the draw; a pair gets the same answer whatever its batch")
    min_pixels: int | None = option(None, "smaller pictures are enlarged to this area; none: the checkpoint's own")
    max_pixels: int | None = option(None, "larger pictures are shrunk to this area; none: the checkpoint's own")
    family: str | None = option(None, "the answer format; none: what the checkpoint's config implies")

    def __post_init__(self) -> None:
        check_at_least("batch_size", self.batch_size, 1)
        check_at_least("max_new_tokens", self.max_new_tokens, 1)
        check_at_least("temperature", self.temperature, 0)
        check_at_least("seed", self.seed, 0)
        check_at_least("min_pixels", self.min_pixels, 1)
        check_at_least("max_pixels", self.max_pixels, 1)
        dtypes = ("auto", "float32", "bfloat16", "float16")
        check_option("dtype", self.dtype, self.dtype in dtypes, " or ".join(dtypes))
        if self.family is not None:
            answer_format(self.family)


@dataclass(frozen=True, eq=False)
class Prepared:
    """One pair as the model takes it: patches (P, D) of both pictures, their grids (2, 3), the text, the target's frame."""

    patches: Any
    grids: Any
    text: str
    frame: Frame
    seed: int


class LocalLocator:
    """Asks a checkpoint about pairs, in batches. Loading happens here, so a wrong checkpoint is refused at once."""

    def __init__(self, checkpoint: str, options: LocalOptions | None = None) -> None:
        self.name = str(checkpoint)
        self.options = options or LocalOptions()
        _require_packages()
        source = _resolve(self.name)
        self._config = _load_config(source)
        self._format = answer_format(self.options.family or family_of(self._config.model_type))
        self._device = _device(self.options.device)
        self._tokenizer = _load_tokenizer(source)
        self._image_processor = _load_image_processor(source, self.options)
        self._rule = ResizeRule.from_settings(self._image_processor.to_dict())
        self._image_token = self._tokenizer.convert_ids_to_tokens(self._config.image_token_id)
        self._prompt = self._render_prompt()
        self._model = _load_model(source, self.options.dtype, self._device)

    def locate(self, pair: Pair) -> Location:
        """Where the target is abnormal. Raises ImageError, LocatorError."""
        outcome = next(self.locate_many([pair]))
        if isinstance(outcome, DifferadError):
            raise outcome
        return outcome

    def locate_many(self, pairs: Iterable[Pair]) -> Iterator[Outcome]:
        """Locate a stream in order, one batch in memory; seconds are the batch's, shared out evenly."""
        stream = iter(pairs)
        while batch := list(islice(stream, self.options.batch_size)):
            start = time.perf_counter()
            prepared = [self._attempt_prepare(pair) for pair in batch]
            good = [item for item in prepared if isinstance(item, Prepared)]
            answers = iter(self._answer(good))
            share = (time.perf_counter() - start) / len(batch)
            for item in prepared:
                outcome = next(answers) if isinstance(item, Prepared) else item
                if isinstance(outcome, Reply):
                    yield self._decide(outcome, share)
                else:
                    yield outcome

    def _decide(self, reply: Reply, seconds: float) -> Location:
        """What a reply says, as it says it."""
        return to_location(reply, self._format, self.name, seconds)

    def _attempt_prepare(self, pair: Pair) -> Prepared | DifferadError:
        try:
            return self._prepare(*read_images(pair.reference, pair.target))
        except DifferadError as error:
            return error

    def _prepare(self, reference: RGB, target: RGB) -> Prepared:
        for picture in (reference, target):
            self._rule.resized(picture.shape[1], picture.shape[0])
        inputs = self._image_processor(
            images=[reference, target], return_tensors="pt", input_data_format="channels_last"
        )
        grids = inputs["image_grid_thw"]
        counts = (grids.prod(dim=1) // self._image_processor.merge_size**2).tolist()
        parts = self._prompt.split(self._image_token)
        text = parts[0] + "".join(
            self._image_token * count + part for count, part in zip(counts, parts[1:], strict=True)
        )
        patch = int(self._image_processor.patch_size)
        rows, columns = (int(cells) * patch for cells in grids[1, 1:])
        frame = Frame(target.shape[1], target.shape[0], resized=(columns, rows))
        content = zlib.crc32(target.tobytes(), zlib.crc32(reference.tobytes()))
        seed = zlib.crc32(str(self.options.seed).encode(), content)
        return Prepared(inputs["pixel_values"], grids, text, frame, seed)

    def _render_prompt(self) -> str:
        slot = {"type": "image"}
        messages = [
            {"role": "system", "content": [{"type": "text", "text": SYSTEM}]},
            {"role": "user", "content": user_content(prompt_text(self._format), slot, slot)},
        ]
        text = str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        if text.count(self._image_token) != 2:
            raise OptionError(
                f"{self.name}: its chat template lays out {text.count(self._image_token)} pictures of 2; "
                "copy the published chat template of a Qwen-VL checkpoint into the folder"
            )
        return text

    def _answer(self, batch: list[Prepared]) -> list[Reply | LocatorError]:
        """One outcome each; a batch that does not fit into memory is halved until it does."""
        import torch

        if not batch:
            return []
        try:
            return list(self._generate(batch))
        except torch.cuda.OutOfMemoryError:
            if len(batch) == 1:
                return [LocatorError(f"{self.name}: one pair does not fit into memory; lower max_pixels")]
        half = len(batch) // 2
        return self._answer(batch[:half]) + self._answer(batch[half:])

    def _generate(self, batch: list[Prepared]) -> Sequence[Reply]:
        """One reply each."""
        texts = self._texts(batch, self._noise([item.seed for item in batch]))
        return [Reply(text, item.frame) for text, item in zip(texts, batch, strict=True)]

    def _texts(self, batch: list[Prepared], processors: list[Any]) -> list[str]:
        """The model's text for each; `processors` change the logits of each step."""
        import torch

        encoded = self._tokenizer(
            [item.text for item in batch],
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_tensors="pt",
        )
        ids = encoded["input_ids"]
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=ids.to(self._device),
                attention_mask=encoded["attention_mask"].to(self._device),
                mm_token_type_ids=(ids == self._config.image_token_id).int().to(self._device),
                pixel_values=torch.cat([item.patches for item in batch]).to(self._device, self._model.dtype),
                image_grid_thw=torch.cat([item.grids for item in batch]).to(self._device),
                generation_config=self._generation(),
                logits_processor=processors,
            )
        return [self._decode(row) for row in output[:, ids.shape[1] :].tolist()]

    def _generation(self) -> Any:
        """The likeliest token at each step: a checkpoint's own sampling and repetition penalties bend coordinates."""
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

    def _end_ids(self) -> set[int]:
        ends = self._model.generation_config.eos_token_id
        listed = ends if isinstance(ends, list) else [ends]
        return {int(end) for end in (*listed, self._tokenizer.eos_token_id) if end is not None}

    def _decode(self, row: list[int]) -> str:
        """Text up to the end token; special tokens stay, for `<think>` and the box tokens may be among them."""
        ends = self._end_ids()
        stop = next((place for place, token in enumerate(row) if token in ends), len(row))
        return str(self._tokenizer.decode(row[:stop], skip_special_tokens=False))


class _GumbelNoise:
    """Turns the likeliest token into a draw at a temperature: argmax(l / T + g) with Gumbel g is a draw from softmax(l / T).

    One generator per row, seeded by its pair, so that neither the batch nor the order of pairs moves an answer.
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


def _require_packages() -> None:
    for package in ("torch", "transformers"):
        try:
            __import__(package)
        except ModuleNotFoundError as error:
            if error.name != package:
                raise
            raise MissingExtraError(_FEATURE, "local", package) from None


def _resolve(checkpoint: str) -> str:
    """A folder that holds a checkpoint, or the id of one on the hub. Raises OptionError."""
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise OptionError(f"{checkpoint}: no config.json; expected the folder of a checkpoint")
        return str(folder)
    if folder.exists():
        raise OptionError(f"{checkpoint}: a file; expected the folder of a checkpoint that holds it")
    if not _HUB_ID.fullmatch(checkpoint):
        raise OptionError(f"{checkpoint}: no such folder; expected a checkpoint's folder or a hub id OWNER/NAME")
    return checkpoint


@contextmanager
def _loading(source: str, what: str, remedy: str) -> Iterator[None]:
    """Errors of the loaders, whose texts run over many lines, as one OptionError."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise OptionError(f"{source}: {what} cannot be loaded ({reason[:200]}); {remedy}") from None


def _load_config(source: str) -> Any:
    from transformers import AutoConfig

    import differad.locators.tiny.model  # noqa: F401 - makes the Auto classes know it

    remedy = "expected a Qwen-VL checkpoint's folder, or a hub id that this machine can reach"
    with _loading(source, "config.json", remedy):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if config.model_type not in MODEL_TYPES:
        raise OptionError(
            f"{source}: model type {config.model_type!r}; expected one of {', '.join(MODEL_TYPES)}. "
            "Serve it with vLLM or SGLang and pass openai:NAME@URL"
        )
    return config


def _load_tokenizer(source: str) -> Any:
    from transformers import AutoTokenizer

    with _loading(
        source, "the tokenizer", "copy tokenizer.json and tokenizer_config.json from the published checkpoint"
    ):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        if not tokenizer.chat_template:
            tokenizer.chat_template = _processor_template(source)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _processor_template(source: str) -> str:
    """The chat template that older checkpoints keep in a file of its own. Raises OSError where there is none."""
    from transformers.utils import cached_file

    path = cached_file(source, "chat_template.json")
    return str(json.loads(Path(path).read_text(encoding="utf-8"))["chat_template"])


def _load_image_processor(source: str, options: LocalOptions) -> Any:
    from transformers import AutoImageProcessor

    with _loading(source, "the image processor", "copy preprocessor_config.json from the published checkpoint"):
        # Always Pillow's resize: torchvision's differs by grey levels, and answers would depend on what is installed.
        processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False, backend="pil")
    own = ResizeRule.from_settings(processor.to_dict())
    low = own.min_pixels if options.min_pixels is None else options.min_pixels
    high = own.max_pixels if options.max_pixels is None else options.max_pixels
    ResizeRule(own.factor, low, high)
    processor.size = type(processor.size)(shortest_edge=low, longest_edge=high)
    return processor


def _load_model(source: str, dtype: str, device: Any) -> Any:
    from transformers import AutoModelForImageTextToText

    with _loading(source, "the weights", "expected complete safetensors files; convert pickled weights first"):
        model, info = AutoModelForImageTextToText.from_pretrained(
            source, trust_remote_code=False, use_safetensors=True, dtype=dtype, output_loading_info=True
        )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise OptionError(
            f"{source}: {len(missing)} weights are missing, {missing[0]} first; download the checkpoint again"
        )
    return model.to(device).eval()


def _device(name: str) -> Any:
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0]
        raise OptionError(
            f"option device={name!r}: not usable here ({reason[:120]}); expected cpu, cuda or mps"
        ) from None
    return device
