"""The model that is trained: loaded as a locator loads it, adapted by the recipe, exported as a folder a locator takes.

Stock processors of the Qwen-VL classes build a video processor, which needs torchvision; `PairProcessor` is one without.
Knows nothing of pairs, rewards or trainers.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, ProcessorMixin, Qwen2VLProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from differad.answers.formats import answer_format, family_of
from differad.answers.prompts import prompt_text
from differad.answers.resize import ResizeRule
from differad.errors import OptionError
from differad.files import atomic_folder
from differad.locators import checkpoints
from differad.locators.local import LocalLocator, LocalOptions
from differad.locators.packed_images import is_packed, read_rows
from differad.locators.processors import load_processor, render_prompt
from differad.training.data import AnswerConvention
from differad.training.recipe import Lora, Model
from differad.training.scratch import build_scratch
from differad.training.tiny import build_tiny
from differad.training.writing import library_writes

START_FOLDER = "start"


class PairProcessor(Qwen2VLProcessor):
    """Image processor and tokenizer of a Qwen-VL checkpoint, without the video processor.

    All three classes lay image tokens out alike. It never stands in a saved folder: `AutoProcessor`, which does not know it,
    would return a bare tokenizer without a word. Patches that rows of a batch have in common are repeated on `device`.
    """

    device: torch.device | str = "cpu"
    _kept: tuple[Any, Any, tuple[dict[str, Any], list[str]]] | None = None

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        # TRL pads prompts on the left, and takes the kinds of their tokens, which place pictures, as they are padded here.
        tokenizer.padding_side = "left"
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    def save_pretrained(self, save_directory: str | Path, **settings: Any) -> list[str]:
        """Write tokenizer and image processor, each with files of its own, as published checkpoints have them.

        Every way of saving comes through here: the trainer's checkpoints, whole or sharded, and `export`.
        """
        written = self.tokenizer.save_pretrained(save_directory, **settings)
        return [*written, *self.image_processor.save_pretrained(save_directory, **settings)]

    def _process_images(self, images: list[list[Any]], **settings: Any) -> tuple[dict[str, Any], list[str]]:
        """As stock, but pictures that several rows hold in common, the answers of a group, are prepared once.

        Rows as a whole, for an image processor may compare the pictures of one. A trainer asks twice for what it draws: what it
        is given first it is given again.
        """
        rows = [row if isinstance(row, list) else [row] for row in images]
        keys = [tuple(map(id, row)) for row in rows]
        distinct = dict(zip(keys, rows, strict=True))
        if len(distinct) == len(rows):
            found: tuple[dict[str, Any], list[str]] = super()._process_images(rows, **settings)
            return found
        ends = list(accumulate(map(len, distinct.values())))
        places = {key: slice(end - len(key), end) for key, end in zip(distinct, ends, strict=True)}
        order = [number for key in keys for number in range(places[key].start, places[key].stop)]
        patches, texts = self._prepare(distinct, settings | {"return_tensors": "pt"})
        return _repeat_pictures(patches, order, self.device), [texts[number] for number in order]

    def _prepare(
        self, rows: dict[tuple[int, ...], list[Any]], settings: dict[str, Any]
    ) -> tuple[dict[str, Any], list[str]]:
        """The pictures of some rows as stock prepares them, once in every two times that it is asked in succession."""
        asked = (list(rows), settings)
        kept, self._kept = self._kept, None
        if kept is not None and kept[0] == asked:
            return kept[2]
        found: tuple[dict[str, Any], list[str]] = super()._process_images(list(rows.values()), **settings)
        # With the pictures themselves: by their identity they are known for as long as they are there.
        self._kept = (asked, rows, found)
        return found


def _repeat_pictures(found: dict[str, Any], order: list[int], device: torch.device | str) -> dict[str, Any]:
    """Patches, as a tensor on `device`, and grids of the pictures in this order."""
    grids = found["image_grid_thw"]
    # Each image goes to the device once: the repeated patches of a group are hundreds of megabytes.
    parts = torch.split(found["pixel_values"].to(device), grids.prod(dim=1).tolist())
    return {**found, "pixel_values": torch.cat([parts[number] for number in order]), "image_grid_thw": grids[order]}


@dataclass(frozen=True, eq=False)
class CheckpointParts:
    """A checkpoint before its weights are loaded: where it is, how it is read and how it speaks."""

    path: str
    config: Any
    processor: Any
    convention: AnswerConvention


def open_checkpoint(model: Model, out: Path, seed: int) -> CheckpointParts:
    """The recipe's checkpoint; one from scratch is made in `out`/start unless it lies there.

    Raises OptionError, WriteError.
    """
    if model.scratch is not None or model.tiny is not None:
        folder = out / START_FOLDER
        if not (folder / "preprocessor_config.json").is_file():
            with atomic_folder(folder) as fresh, library_writes(folder):
                if model.tiny is not None:
                    build_tiny(fresh, model.tiny, seed)
                elif model.scratch is not None:
                    build_scratch(fresh, model.scratch, seed)
        path = str(folder)
    else:
        path = checkpoints.resolve(str(model.start))
    config = checkpoints.load_config(path)
    spoken = answer_format(model.family or family_of(config.model_type))
    if not checkpoints.is_qwen(config):
        own = load_processor(path, config, model.min_pixels, model.max_pixels)
        own.by_row = is_packed(own.image_processor)
        render_prompt(own, path, prompt_text(spoken))  # a template that cannot is refused before weights are loaded
        return CheckpointParts(path, config, own, AnswerConvention(spoken, None))
    tokenizer = checkpoints.load_tokenizer(path)
    image_processor = checkpoints.load_image_processor(path, model.min_pixels, model.max_pixels)
    # What `AutoProcessor` is to make of what is saved: the stock class, as published checkpoints name it.
    tokenizer._set_processor_class(PROCESSOR_MAPPING_NAMES.get(config.model_type, Qwen2VLProcessor.__name__))
    processor = PairProcessor(image_processor, tokenizer, chat_template=tokenizer.chat_template)
    rule = ResizeRule.from_settings(image_processor.to_dict())
    return CheckpointParts(path, config, processor, AnswerConvention(spoken, rule))


def load_model(source: CheckpointParts, model: Model) -> Any:
    """The weights, with the vision tower frozen where the recipe says so. Raises OptionError."""
    options: dict[str, Any] = {"dtype": getattr(torch, model.dtype)}
    if model.attention is not None:
        options["attn_implementation"] = model.attention
    with checkpoints.loading(source.path, "the weights", "expected complete safetensors files"):
        loaded = AutoModelForImageTextToText.from_pretrained(
            source.path, trust_remote_code=False, use_safetensors=True, **options
        )
    text = loaded.config.get_text_config()
    if hasattr(text, "output_router_logits"):  # trainers ask for it by themselves, see `without_balance`
        text.output_router_logits = False
    if getattr(source.processor, "by_row", False):
        read_rows(loaded)
    if model.freeze_vision:
        freeze_vision(loaded)
    return loaded


def freeze_vision(model: Any) -> None:
    """Keep the image encoder's weights as they are. Raises OptionError for a model that names none."""
    encoder = model.get_encoder(modality="image")
    if encoder in (model, model.base_model):
        raise OptionError(
            f"model.freeze_vision: {type(model).__name__} names no image encoder; pass model.freeze_vision=false"
        )
    encoder.requires_grad_(False)


def lora_config(lora: Lora | None, model: Any) -> LoraConfig | None:
    """peft's configuration of the recipe's adapters: the named layers of the language model, not of the vision tower.

    Raises OptionError where the language model has none of them.
    """
    if lora is None:
        return None
    decoder = model.get_decoder()
    within = next(name for name, module in model.named_modules() if module is decoder)
    pattern = rf"{re.escape(within)}\.(.*\.)?({'|'.join(map(re.escape, lora.targets))})"
    layers = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    if not any(re.fullmatch(pattern, name) for name in layers):
        linear = sorted({name.rpartition(".")[2] for name in layers if name.startswith(f"{within}.")})
        raise OptionError(
            f"model.lora.targets: none in {type(model).__name__}; its linear layers are {', '.join(linear)}"
        )
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=pattern,
        task_type="CAUSAL_LM",
    )


def export(model: Any, source: CheckpointParts, folder: Path) -> None:
    """Write the policy as a checkpoint folder that `--model` takes: safetensors, adapters merged, tokenizer, processor."""
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    model.save_pretrained(folder)
    source.processor.save_pretrained(folder)


class InMemoryLocator(LocalLocator):
    """The policy in memory as a locator: it answers exactly as its exported folder would."""

    def __init__(self, model: Any, source: CheckpointParts, *, batch_size: int, max_new_tokens: int) -> None:
        self.name = "policy"
        # What is kept of a prompt would outlive the weights that encoded it.
        self.options = LocalOptions(batch_size=batch_size, max_new_tokens=max_new_tokens, remember_prefixes=0)
        self._config = source.config
        self._format = source.convention.format
        self._device = model.device
        self._processor = None
        if not checkpoints.is_qwen(source.config):
            self._processor = copy(source.processor)
            self._processor.by_row = False
        self._tokenizer = source.processor.tokenizer
        self._image_processor = source.processor.image_processor
        self._rule = source.convention.rule
        self._set_up(model)


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """The model set to answer (no dropout, no activation checkpoints), and as it was afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
