"""A checkpoint's own processor of text and images, which transformers maps to its model type.

Stock processors include parts for video and audio, which need torchvision and more. They are left out: a pair is two images and a
text. Images are resized by Pillow if the processor supports it. A saved folder has the layout of published ones.

Knows nothing of questions or answers.
"""

import json
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from differad.answers.prompts import SYSTEM
from differad.errors import ImageError, OptionError
from differad.files import write_text
from differad.locators.checkpoints import load_tokenizer, loading, open_image_processor, template_options
from differad.locators.packed_images import SIZES, STRIP, into_rows

_FILE = "processor_config.json"
_BY_TOKEN = ("input_ids", "token_type_ids", "mm_token_type_ids", "attention_mask")


class _Absent:
    """Placeholder of a part that is left out: it adds no inputs, and its other attributes are None."""

    model_input_names: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class ImagesAndText(ProcessorMixin):
    """Mixin for a stock processor: its image processor and tokenizer, prompts padded on the left, and no other part.

    `by_row`: images that are packed end to end over all prompts are split into one row per prompt; see `packed_images`.
    """

    settings: dict[str, Any]
    by_row = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.image_processor).__name__}, {type(self.tokenizer).__name__})"

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """As stock; an absent part has no class to check."""
        if isinstance(argument, _Absent):
            return _Absent
        return super().check_argument_for_proper_class(argument_name, argument)

    def __call__(self, images: Any = None, text: Any = None, **settings: Any) -> Any:
        """As stock; a text that begins with the tokenizer's first token gets no second one.

        Raises ImageError for images that it refuses, for instance with an extreme aspect ratio.
        """
        begin = self.tokenizer.bos_token
        first = text if isinstance(text, str) else (text or [""])[0]
        if begin is not None and first.startswith(begin):
            settings.setdefault("add_special_tokens", False)
        try:
            inputs = super().__call__(images=images, text=text, **settings)
        except ValueError as error:
            reason = str(error).strip().split("\n")[0]
            raise ImageError(f"{_stock(type(self)).__name__} refuses the images: {reason[:200]}") from None
        if self.by_row and images is not None:
            rows = [images] if isinstance(text, str) else images
            parts = [self.image_processor(images=row, return_tensors="pt") for row in rows]
            inputs.pop(SIZES)
            inputs.update(into_rows([(part[STRIP], part[SIZES]) for part in parts]))
        return inputs

    def apply_chat_template(self, conversation: Any, *arguments: Any, **settings: Any) -> Any:
        """As stock, with `template_options`; tokenized prompts are padded only on request."""
        options = {**template_options(str(self.chat_template)), **settings}
        inputs = super().apply_chat_template(conversation, *arguments, **options)
        asks = {"processor_kwargs", "return_tensors"} & set(settings)
        return _unpadded(inputs) if settings.get("return_dict") and not asks else inputs

    def save_pretrained(self, save_directory: str | Path, **settings: Any) -> list[str]:
        """Write tokenizer, image processor and the processor's own settings as a published checkpoint has them."""
        written = list(self.tokenizer.save_pretrained(save_directory, **settings))
        written += self.image_processor.save_pretrained(save_directory, **settings)
        if self.settings:
            values = {**self.settings, "processor_class": _stock(type(self)).__name__}
            if "image_processor" in values:  # read before preprocessor_config.json
                values["image_processor"] = self.image_processor.to_dict()
            path = Path(save_directory) / _FILE
            write_text(path, json.dumps(values, indent=2) + "\n")
            written.append(str(path))
        return written

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (_stock(type(self)), self.__dict__)


def _unpadded(inputs: Any) -> Any:
    """Tokenized prompts without padding; some stock processors pad even lists, and a trainer would take pads for tokens."""
    masks = [list(map(int, row)) for row in inputs["attention_mask"]]
    for name in _BY_TOKEN:
        if name in inputs:
            rows = [list(map(int, row)) for row in inputs[name]]
            inputs[name] = [
                [value for value, kept in zip(row, mask, strict=True) if kept]
                for row, mask in zip(rows, masks, strict=True)
            ]
    return inputs


@cache
def _images_and_text_class(stock: type) -> type:
    return type(f"{stock.__name__}OfImages", (ImagesAndText, stock), {})


def _stock(kind: type) -> type:
    return kind.__mro__[kind.__mro__.index(ImagesAndText) + 1]


def _restore(stock: type, state: dict[str, Any]) -> Any:
    kind: Any = _images_and_text_class(stock)
    processor = kind.__new__(kind)
    processor.__dict__.update(state)
    return processor


def load_processor(source: str, config: Any, min_pixels: int | None = None, max_pixels: int | None = None) -> Any:
    """The processor of a checkpoint, built from its tokenizer and its image processor alone.

    Areas are pixels of the resized image; None keeps the checkpoint's own. Raises OptionError.
    """
    stock: Any = PROCESSOR_MAPPING.get(type(config), None)
    if stock is None:
        raise OptionError(f"{source}: transformers has no processor for model type {config.model_type!r}")
    tokenizer, images = load_tokenizer(source), open_image_processor(source)
    _bound_areas(source, images, min_pixels, max_pixels)
    tokenizer.padding_side = "left"
    tokenizer._set_processor_class(stock.__name__)
    kind: Any = _images_and_text_class(stock)
    with loading(source, "the processor", "copy processor_config.json and the tokenizer's files from the checkpoint"):
        settings, _ = stock.get_processor_dict(source)
        settings.pop("chat_template", None)
        parts = dict.fromkeys(stock.get_attributes(), _Absent()) | {"image_processor": images, "tokenizer": tokenizer}
        taken = set(signature(stock.__init__).parameters) - {"self", "kwargs", *parts}
        own_settings = {name: value for name, value in settings.items() if name in taken}
        processor = kind(**parts, **own_settings, chat_template=tokenizer.chat_template)
    processor.settings = settings
    return processor


def render_prompt(processor: Any, name: str, text: str) -> str:
    """A question about two images, rendered by a processor's chat template. Raises OptionError if it has no place for them."""
    rendered = [_render(processor, name, [{"type": "image"}] * count, text) for count in range(3)]
    if not len(rendered[0]) < len(rendered[1]) < len(rendered[2]):
        raise OptionError(
            f"{name}: its chat template does not place two images; copy the chat template of a published checkpoint of its "
            "family into the folder"
        )
    return rendered[2]


def _render(processor: Any, name: str, images: list[dict[str, str]], text: str) -> str:
    messages = [
        {"role": "system", "content": [{"type": "text", "text": SYSTEM}]},
        {"role": "user", "content": [*images, {"type": "text", "text": text}]},
    ]
    try:
        return str(processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except (TemplateError, TypeError) as error:
        raise OptionError(f"{name}: its chat template refuses the prompt ({str(error)[:200]})") from None


def _bound_areas(source: str, images: Any, min_pixels: int | None, max_pixels: int | None) -> None:
    """Set the minimum and maximum area of a resized image. Raises OptionError if the image processor bounds no area."""
    bounds = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    bounds = {name: value for name, value in bounds.items() if value is not None}
    if not bounds:
        return
    size = images.to_dict().get("size") or {}
    # Under these names, processors with a merge size count areas, all others sides.
    if not hasattr(images, "merge_size") or not set(bounds) <= set(size):
        raise OptionError(
            f"{source}: {type(images).__name__} bounds no area; leave min_pixels and max_pixels out, or set the sizes in "
            "preprocessor_config.json"
        )
    images.size = type(images.size)(**{**size, **bounds})
