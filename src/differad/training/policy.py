"""The trained model: loaded as a locator loads it, adapted by the recipe, exported as a folder that a locator loads.

Stock Qwen-VL processors build a video processor, which needs torchvision; `PairProcessor` has none.
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
from differad.training.scratch import build_small_qwen2_vl
from differad.training.tiny import build_tiny
from differad.training.writing import library_writes

START_FOLDER = "start"


class PairProcessor(Qwen2VLProcessor):
    """Image processor and tokenizer of a Qwen-VL checkpoint, without the video processor.

    All three model classes place image tokens alike. Saved folders never name this class, because `AutoProcessor` does not know
    it and would silently return a bare tokenizer. Patches common to several rows of a batch are repeated on `device`.
    """

    device: torch.device | str = "cpu"
    # The key of the last request, its images and its result.
    _last: tuple[Any, Any, tuple[dict[str, Any], list[str]]] | None = None

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        # TRL pads prompts on the left and uses token types, which locate images, as this tokenizer pads them.
        tokenizer.padding_side = "left"
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    def save_pretrained(self, save_directory: str | Path, **settings: Any) -> list[str]:
        """Write tokenizer and image processor, each to its own files, as in published checkpoints.

        All saving uses this method: the trainer's checkpoints, whole or sharded, and `export`.
        """
        written = self.tokenizer.save_pretrained(save_directory, **settings)
        return [*written, *self.image_processor.save_pretrained(save_directory, **settings)]

    def _process_images(self, images: list[list[Any]], **settings: Any) -> tuple[dict[str, Any], list[str]]:
        """As stock, but images common to several rows (the completions of a group) are processed once.

        Rows are processed as a whole, because an image processor may compare a row's images. A trainer requests each rollout's
        images twice: the second request returns the first result.
        """
        rows = [row if isinstance(row, list) else [row] for row in images]
        keys = [tuple(map(id, row)) for row in rows]
        distinct = dict(zip(keys, rows, strict=True))
        if len(distinct) == len(rows):
            processed: tuple[dict[str, Any], list[str]] = super()._process_images(rows, **settings)
            return processed
        ends = list(accumulate(map(len, distinct.values())))
        slices = {key: slice(end - len(key), end) for key, end in zip(distinct, ends, strict=True)}
        order = [number for key in keys for number in range(slices[key].start, slices[key].stop)]
        patches, texts = self._process_once(distinct, settings | {"return_tensors": "pt"})
        return _repeat_images(patches, order, self.device), [texts[number] for number in order]

    def _process_once(
        self, rows: dict[tuple[int, ...], list[Any]], settings: dict[str, Any]
    ) -> tuple[dict[str, Any], list[str]]:
        """Process the images of some rows as stock does; an identical next request returns the same result once."""
        request = (list(rows), settings)
        last, self._last = self._last, None
        if last is not None and last[0] == request:
            return last[2]
        processed: tuple[dict[str, Any], list[str]] = super()._process_images(list(rows.values()), **settings)
        # Keep the images too: their ids are the key and stay valid only while they exist.
        self._last = (request, rows, processed)
        return processed


def _repeat_images(processed: dict[str, Any], order: list[int], device: torch.device | str) -> dict[str, Any]:
    """Patches, as a tensor on `device`, and grids of the images in this order."""
    grids = processed["image_grid_thw"]
    # Each image goes to the device once: the repeated patches of a group are hundreds of megabytes.
    parts = torch.split(processed["pixel_values"].to(device), grids.prod(dim=1).tolist())
    return {**processed, "pixel_values": torch.cat([parts[number] for number in order]), "image_grid_thw": grids[order]}


@dataclass(frozen=True, eq=False)
class CheckpointParts:
    """A checkpoint without its weights: path, config, processor and answer convention."""

    path: str
    config: Any
    processor: Any
    convention: AnswerConvention


def open_checkpoint(model: Model, out: Path, seed: int) -> CheckpointParts:
    """The recipe's checkpoint; a randomly initialised one is written to `out`/start unless it exists there.

    Raises OptionError, WriteError.
    """
    if model.scratch is not None or model.tiny is not None:
        folder = out / START_FOLDER
        if not (folder / "preprocessor_config.json").is_file():
            with atomic_folder(folder) as fresh, library_writes(folder):
                if model.tiny is not None:
                    build_tiny(fresh, model.tiny, seed)
                elif model.scratch is not None:
                    build_small_qwen2_vl(fresh, model.scratch, seed)
        path = str(folder)
    else:
        path = checkpoints.resolve(str(model.start))
    config = checkpoints.load_config(path)
    answers = answer_format(model.family or family_of(config.model_type))
    if not checkpoints.is_qwen(config):
        stock = load_processor(path, config, model.min_pixels, model.max_pixels)
        stock.by_row = is_packed(stock.image_processor)
        render_prompt(stock, path, prompt_text(answers))  # refuse an unusable template before weights are loaded
        return CheckpointParts(path, config, stock, AnswerConvention(answers, None))
    tokenizer = checkpoints.load_tokenizer(path)
    image_processor = checkpoints.load_image_processor(path, model.min_pixels, model.max_pixels)
    # The class that `AutoProcessor` loads from a saved folder: the stock one, as in published checkpoints.
    tokenizer._set_processor_class(PROCESSOR_MAPPING_NAMES.get(config.model_type, Qwen2VLProcessor.__name__))
    processor = PairProcessor(image_processor, tokenizer, chat_template=tokenizer.chat_template)
    rule = ResizeRule.from_settings(image_processor.to_dict())
    return CheckpointParts(path, config, processor, AnswerConvention(answers, rule))


def load_model(checkpoint: CheckpointParts, model: Model) -> Any:
    """Load the weights; freeze the vision tower if the recipe says so. Raises OptionError."""
    options: dict[str, Any] = {"dtype": getattr(torch, model.dtype)}
    if model.attention is not None:
        options["attn_implementation"] = model.attention
    with checkpoints.loading(checkpoint.path, "the weights", "expected complete safetensors files"):
        loaded = AutoModelForImageTextToText.from_pretrained(
            checkpoint.path, trust_remote_code=False, use_safetensors=True, **options
        )
    text = loaded.config.get_text_config()
    if hasattr(text, "output_router_logits"):  # trainers request it themselves, see `without_balance_loss`
        text.output_router_logits = False
    if getattr(checkpoint.processor, "by_row", False):
        read_rows(loaded)
    if model.freeze_vision:
        freeze_vision(loaded)
    return loaded


def freeze_vision(model: Any) -> None:
    """Freeze the image encoder's weights. Raises OptionError if the model names no image encoder."""
    encoder = model.get_encoder(modality="image")
    if encoder in (model, model.base_model):
        raise OptionError(
            f"model.freeze_vision: {type(model).__name__} names no image encoder; pass model.freeze_vision=false"
        )
    encoder.requires_grad_(False)


def lora_config(lora: Lora | None, model: Any) -> LoraConfig | None:
    """PEFT's configuration of the recipe's adapters: the named layers of the language model, not of the vision tower.

    Raises OptionError if the language model has none of them.
    """
    if lora is None:
        return None
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    pattern = rf"{re.escape(prefix)}\.(.*\.)?({'|'.join(map(re.escape, lora.targets))})"
    layers = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    if not any(re.fullmatch(pattern, name) for name in layers):
        linear = sorted({name.rpartition(".")[2] for name in layers if name.startswith(f"{prefix}.")})
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


def export(model: Any, checkpoint: CheckpointParts, folder: Path) -> None:
    """Write the policy as a checkpoint folder for `--model`: safetensors with merged adapters, tokenizer, processor."""
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    model.save_pretrained(folder)
    checkpoint.processor.save_pretrained(folder)


class InMemoryLocator(LocalLocator):
    """The policy in memory as a locator; its answers equal those of its exported folder."""

    def __init__(self, model: Any, checkpoint: CheckpointParts, *, batch_size: int, max_new_tokens: int) -> None:
        self.name = "policy"
        # No prefix cache: entries would outlive the weights that encoded them.
        self.options = LocalOptions(batch_size=batch_size, max_new_tokens=max_new_tokens, remember_prefixes=0)
        self._config = checkpoint.config
        self._format = checkpoint.convention.format
        self._device = model.device
        self._processor = None
        if not checkpoints.is_qwen(checkpoint.config):
            self._processor = copy(checkpoint.processor)
            self._processor.by_row = False
        self._tokenizer = checkpoint.processor.tokenizer
        self._image_processor = checkpoint.processor.image_processor
        self._rule = checkpoint.convention.rule
        self._set_up(model)


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Set the model to evaluation (no dropout, no activation checkpointing) inside the block; restore its mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
