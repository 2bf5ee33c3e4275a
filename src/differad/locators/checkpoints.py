"""Load the parts of a checkpoint: config, tokenizer, image processor, weights; errors are one line each.

The stock processors of most models build a video processor too, which needs torchvision. Here the image processor and
the tokenizer are loaded on their own, so a folder works as published, with or without torchvision, and with the same result;
`processors` combines them for models other than Qwen-VL. No code and no pickle of a checkpoint is run.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from differad.answers.formats import TINY_MODEL_TYPE
from differad.answers.resize import ResizeRule
from differad.errors import MissingExtraError, OptionError

# Stock processors that build image tokens alike, from the grid of Qwen2-VL's image processor.
_QWEN_PROCESSORS = ("Qwen2VLProcessor", "Qwen2_5_VLProcessor", "Qwen3VLProcessor")
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_FEATURE = "a local checkpoint"


def require_packages() -> None:
    """Raises MissingExtraError where torch or transformers is not installed."""
    for package in ("torch", "transformers"):
        try:
            __import__(package)
        except ModuleNotFoundError as error:
            if error.name != package:
                raise
            raise MissingExtraError(_FEATURE, "local", package) from None


def resolve(checkpoint: str) -> str:
    """A folder that holds a checkpoint, or the id of one on the hub. Raises OptionError."""
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise OptionError(f"{checkpoint}: no config.json; expected the folder of a checkpoint")
        return str(folder)
    if folder.exists():
        raise OptionError(f"{checkpoint}: a file; expected the folder of a checkpoint that holds it")
    if not is_hub_id(checkpoint):
        raise OptionError(f"{checkpoint}: no such folder; expected a checkpoint's folder or a hub id OWNER/NAME")
    return checkpoint


def is_hub_id(name: str) -> bool:
    """Whether a name can be that of a checkpoint on the hub, OWNER/NAME."""
    return _HUB_ID.fullmatch(name) is not None


@contextmanager
def loading(source: str, what: str, remedy: str) -> Iterator[None]:
    """Turn errors of the loaders, which have many lines, into an OptionError; suppress most of their output."""
    from safetensors import SafetensorError

    from differad.locators.library_output import quiet_loading

    try:
        with quiet_loading():
            yield
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        if package := _missing_package(str(error)):
            raise OptionError(f"{source}: {what} needs {package}; pip install {package}") from None
        reason = str(error).strip().split("\n")[0]
        raise OptionError(f"{source}: {what} cannot be loaded ({reason[:200]}); {remedy}") from None


def _missing_package(reason: str) -> str | None:
    """The package that, by an error of transformers, is not installed."""
    if "Torchvision library" in reason or ("torchvision" in reason and "not" in reason):
        return "torchvision"
    match = re.search(r"pip install ([\w-]+)`", reason)
    return match[1] if match else None


def load_config(source: str) -> Any:
    """The config of a model that answers images and text with text. Raises OptionError."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    import differad.locators.tiny.model  # noqa: F401 - registers it with the Auto classes

    remedy = "expected a vision-language checkpoint's folder, or a hub id that this machine can reach"
    with loading(source, "config.json", remedy):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise OptionError(
            f"{source}: model type {config.model_type!r}; expected one that AutoModelForImageTextToText knows. "
            "Serve it with vLLM or SGLang and pass openai:NAME@URL"
        )
    return config


def is_qwen(config: Any) -> bool:
    """Whether image tokens are built from the grid of Qwen2-VL's image processor."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    return config.model_type == TINY_MODEL_TYPE or PROCESSOR_MAPPING_NAMES.get(config.model_type) in _QWEN_PROCESSORS


def template_options(template: str) -> dict[str, Any]:
    """Options of a chat template: it must not open or close a thought by itself, since the prompt asks for one."""
    return {"enable_thinking": False} if "enable_thinking" in template else {}


def load_tokenizer(source: str) -> Any:
    """The tokenizer, with a chat template and a pad token. Raises OptionError."""
    from transformers import AutoTokenizer

    with loading(
        source, "the tokenizer", "copy tokenizer.json and tokenizer_config.json from the published checkpoint"
    ):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        if not tokenizer.chat_template:
            tokenizer.chat_template = _processor_template(source)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _processor_template(source: str) -> str:
    """The chat template that older checkpoints have in a separate file. Raises OSError if there is none."""
    from transformers.utils import cached_file

    path = cached_file(source, "chat_template.json")
    return str(json.loads(Path(path).read_text(encoding="utf-8"))["chat_template"])


def load_image_processor(source: str, min_pixels: int | None = None, max_pixels: int | None = None) -> Any:
    """Qwen2-VL's image processor; areas in pixels, None keeps the checkpoint's own. Raises OptionError."""
    processor = open_image_processor(source)
    rule = ResizeRule.from_settings(processor.to_dict())
    low = rule.min_pixels if min_pixels is None else min_pixels
    high = rule.max_pixels if max_pixels is None else max_pixels
    ResizeRule(rule.factor, low, high)
    processor.size = type(processor.size)(shortest_edge=low, longest_edge=high)
    return processor


def open_image_processor(source: str) -> Any:
    """The image processor of any checkpoint as saved. Raises OptionError."""
    from transformers import AutoImageProcessor

    with loading(source, "the image processor", "copy preprocessor_config.json from the published checkpoint"):
        # Pillow's resize if available: torchvision's differs by some grey levels, and answers would depend on what is installed.
        return AutoImageProcessor.from_pretrained(source, trust_remote_code=False, backend="pil")


def load_model(source: str, dtype: str, device: Any) -> Any:
    """The model on a device, in eval mode; `dtype` auto is the one it was saved in. Raises OptionError."""
    from transformers import AutoModelForImageTextToText

    with loading(source, "the weights", "expected complete safetensors files; convert pickled weights first"):
        model, info = AutoModelForImageTextToText.from_pretrained(
            source, trust_remote_code=False, use_safetensors=True, dtype=dtype, output_loading_info=True
        )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise OptionError(
            f"{source}: {len(missing)} weights are missing, {missing[0]} first; download the checkpoint again"
        )
    return model.to(device).eval()


def choose_device(name: str) -> Any:
    """The torch device of a name; auto takes an accelerator if there is one. Raises OptionError."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0]
        raise OptionError(
            f"option device={name!r}: not usable on this machine ({reason[:120]}); expected cpu, cuda or mps"
        ) from None
    return device
