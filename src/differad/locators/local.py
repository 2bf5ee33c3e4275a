"""A Qwen-VL checkpoint on this machine, run by transformers: batches in, answers out.

Stock `AutoProcessor` is not used: for these families it insists on a video processor, hence on torchvision. Tokenizer, chat
template and image processor are enough for two pictures. Weights are read from safetensors only, no code from a checkpoint
is run. Knows nothing of how an answer is written; that is the family's format.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from differad.answers.formats import answer_format, family_of
from differad.answers.parsing import Frame
from differad.answers.resize import ResizeRule
from differad.core import Location, Pair
from differad.errors import DifferadError, MissingExtraError, OptionError
from differad.images import RGB, read_images
from differad.locators.base import Outcome, check_option, option
from differad.locators.chat import chat_messages, to_location

# Architectures whose inputs this module knows how to make.
SUPPORTED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class LocalOptions:
    """How a local checkpoint is run."""

    device: str = option("auto", "cpu, cuda, cuda:1, mps; auto takes a GPU where there is one")
    dtype: str = option("auto", "auto (as the checkpoint says), float32, bfloat16 or float16")
    batch_size: int = option(4, "pairs answered at once: more is faster and takes more memory")
    max_new_tokens: int = option(256, "an answer is cut off here")
    temperature: float = option(0.0, "0 takes the likeliest token each time; above 0 answers are sampled")
    seed: int = option(0, "draws the samples when temperature is above 0")
    min_pixels: int | None = option(None, "pictures are enlarged to this area; left out: as the checkpoint says")
    max_pixels: int | None = option(None, "pictures are shrunk to this area; left out: as the checkpoint says")
    family: str | None = option(None, "answer format; left out: as the checkpoint's config implies")

    def __post_init__(self) -> None:
        check_option("dtype", self.dtype, self.dtype in DTYPES, f"one of {', '.join(DTYPES)}")
        check_option("batch_size", self.batch_size, self.batch_size >= 1, "at least 1")
        check_option("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1")
        check_option("temperature", self.temperature, self.temperature >= 0, "0 or more")


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A pair that is ready for the model: pictures, and the target's frame."""

    index: int
    images: list[RGB]
    frame: Frame


class LocalLocator:
    """A checkpoint's folder or hub id as a locator. Raises OptionError where it cannot be loaded."""

    def __init__(self, checkpoint: str, options: LocalOptions | None = None) -> None:
        self.options = options or LocalOptions()
        self.name = checkpoint
        try:
            import torch
            import transformers
        except ImportError as error:
            raise MissingExtraError("a local checkpoint", "local", error.name or "transformers") from None
        self._torch = torch
        config = _load(transformers.AutoConfig, checkpoint)
        if config.model_type not in SUPPORTED:
            raise OptionError(
                f"{checkpoint}: model type {config.model_type!r} is not run locally; expected one of "
                f"{', '.join(SUPPORTED)}; serve it with vLLM and use --model openai:NAME@http://HOST:PORT/v1"
            )
        self.format = answer_format(self.options.family or family_of(config.model_type))
        self._image_token: int = config.image_token_id
        self._tokenizer: Any = _load(transformers.AutoTokenizer, checkpoint, padding_side="left")
        self._image_processor: Any = _load(transformers.AutoImageProcessor, checkpoint)
        if self._tokenizer.chat_template is None:
            raise OptionError(
                f"{checkpoint}: its tokenizer has no chat template; expected chat_template.jinja beside it"
            )
        self.rule = self._resize_rule()
        self._device = _pick_device(torch, self.options.device)
        dtype = self.options.dtype if self.options.dtype == "auto" else getattr(torch, self.options.dtype)
        model = _load(transformers.AutoModelForImageTextToText, checkpoint, dtype=dtype, use_safetensors=True)
        self._model: Any = model.to(self._device).eval()

    def locate(self, pair: Pair) -> Location:
        """Answer one pair. Raises ImageError."""
        (outcome,) = self.locate_many([pair])
        if isinstance(outcome, DifferadError):
            raise outcome
        return outcome

    def locate_many(self, pairs: Iterable[Pair]) -> Iterator[Outcome]:
        """Answer a stream of pairs in batches of `batch_size`, in order."""
        stream = iter(pairs)
        for number in range(2**63):
            batch = list(islice(stream, self.options.batch_size))
            if not batch:
                return
            yield from self._locate_batch(batch, number)

    def _locate_batch(self, pairs: Sequence[Pair], number: int) -> list[Outcome]:
        start = time.perf_counter()
        outcomes: list[Outcome | None] = [None] * len(pairs)
        prepared = []
        for index, pair in enumerate(pairs):
            try:
                prepared.append(self._prepare(index, pair))
            except DifferadError as error:
                outcomes[index] = error
        texts = self.generate([item.images for item in prepared], number) if prepared else []
        seconds = (time.perf_counter() - start) / len(pairs)
        for item, text in zip(prepared, texts, strict=True):
            outcomes[item.index] = to_location(text, self.format, item.frame, self.name, seconds)
        return [outcome for outcome in outcomes if outcome is not None]

    def _prepare(self, index: int, pair: Pair) -> _Prepared:
        images = read_images(pair.reference, pair.target)
        sizes = [self.rule.resized(image.shape[1], image.shape[0]) for image in images]
        height, width = images[1].shape[:2]
        return _Prepared(index, images, Frame(width, height, sizes[1]))

    def generate(self, images: Sequence[Sequence[RGB]], number: int = 0) -> list[str]:
        """Answer texts to pairs of pictures (reference, target), each (H, W, 3); `number` tells draws of batches apart."""
        inputs = self.model_inputs(images)
        sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if self.options.temperature > 0:
            sampling = {"do_sample": True, "temperature": self.options.temperature}
        with self._torch.random.fork_rng(), self._torch.inference_mode():
            self._torch.manual_seed(self.options.seed + number)
            ids = self._model.generate(**inputs, **sampling, max_new_tokens=self.options.max_new_tokens)
        answers = ids[:, inputs["input_ids"].shape[1] :]
        texts: list[str] = self._tokenizer.batch_decode(answers, skip_special_tokens=True)
        return texts

    def model_inputs(self, images: Sequence[Sequence[RGB]]) -> dict[str, Any]:
        """Tensors of a left-padded batch, on the model's device: token ids, masks, patches and their grids."""
        flat = [image for pair in images for image in pair]
        size = {"shortest_edge": self.rule.min_pixels, "longest_edge": self.rule.max_pixels}
        pictures = self._image_processor(images=flat, size=size, return_tensors="pt")
        grids = pictures["image_grid_thw"]
        tokens = (grids.prod(dim=1) // self._image_processor.merge_size**2).tolist()
        prompt = self._tokenizer.apply_chat_template(
            chat_messages(self.format, [{"type": "image"}, {"type": "image"}]),
            tokenize=False,
            add_generation_prompt=True,
        )
        mark = self._tokenizer.convert_ids_to_tokens(self._image_token)
        texts = [_fill(prompt, mark, tokens[2 * i : 2 * i + 2]) for i in range(len(images))]
        encoded = self._tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
        inputs = {
            "input_ids": encoded["input_ids"],
            "attention_mask": encoded["attention_mask"],
            "mm_token_type_ids": (encoded["input_ids"] == self._image_token).int(),
            "pixel_values": pictures["pixel_values"].to(self._model.dtype),
            "image_grid_thw": grids,
        }
        return {name: tensor.to(self._device) for name, tensor in inputs.items()}

    def _resize_rule(self) -> ResizeRule:
        """The image processor's own rule, with the options' areas in place of its own."""
        rule = ResizeRule.from_settings(self._image_processor.to_dict())
        low = self.options.min_pixels or rule.min_pixels
        high = self.options.max_pixels or rule.max_pixels
        return ResizeRule(rule.factor, low, high)


def _load(kind: Any, checkpoint: str, **keywords: Any) -> Any:
    try:
        return kind.from_pretrained(checkpoint, trust_remote_code=False, **keywords)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise OptionError(
            f"{checkpoint}: cannot be loaded ({reason}); expected a folder with config.json, tokenizer, image processor "
            "and *.safetensors, or the id of such a repository on the hub"
        ) from None


def _pick_device(torch: Any, wanted: str) -> Any:
    if wanted == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise OptionError(f"device={wanted}: cannot be used ({reason}); expected cpu, cuda, cuda:N or mps") from None
    return device


def _fill(prompt: str, mark: str, counts: Sequence[int]) -> str:
    """The prompt with its i-th image mark repeated as often as that picture has tokens. Raises OptionError."""
    parts = prompt.split(mark)
    if len(parts) != len(counts) + 1:
        raise OptionError(f"chat template makes {len(parts) - 1} places for {len(counts)} pictures; expected one each")
    return parts[0] + "".join(mark * count + rest for count, rest in zip(counts, parts[1:], strict=True))
