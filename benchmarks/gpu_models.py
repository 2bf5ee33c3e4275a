"""Checkpoints in a published model's shape with random weights, for `gpu.py`: nothing has to be downloaded.

Shapes are those of the published configurations; the cost of a step depends only on them, not on the weights.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig, PreTrainedTokenizerFast

from differad.training.recipe import Scratch
from differad.training.scratch import build_small_qwen2_vl, token_ids

# Pixels per side of one image token.
TOKEN = 32
_PATCH = 16
_MROPE = {"rope_type": "default", "rope_theta": 5e6, "mrope_interleaved": True}


@dataclass(frozen=True)
class Shape:
    """A Qwen3-VL: widths, layers and heads of its language model, then of its vision tower."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    wide: int
    vocabulary: int
    tied: bool
    vision_hidden: int
    vision_layers: int
    vision_wide: int
    vision_heads: int
    deepstack: tuple[int, ...]

    def text_weights(self) -> int:
        """Number of weights of the language model's layers."""
        attention = self.hidden * self.head * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.wide)

    def head_weights(self) -> int:
        """Weights of the output layer."""
        return self.hidden * self.vocabulary


# https://huggingface.co/Qwen/Qwen3-VL-{2B,4B,8B}-Instruct, config.json
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", 64, 2, 4, 2, 16, 128, 1200, True, 32, 3, 64, 2, (0, 1, 2)),
        Shape("2B", 2048, 28, 16, 8, 128, 6144, 151936, True, 1024, 24, 4096, 16, (5, 11, 17)),
        Shape("4B", 2560, 36, 32, 8, 128, 9728, 151936, True, 1024, 24, 4096, 16, (5, 11, 17)),
        Shape("8B", 4096, 36, 32, 8, 128, 12288, 151936, False, 1152, 27, 4304, 16, (8, 16, 24)),
    )
}


def write_checkpoint(folder: Path, shape: Shape, dtype: torch.dtype, device: torch.device) -> Path:
    """A folder in the form of the published checkpoint, with random weights made on `device`."""
    if not any(folder.glob("*.safetensors")):
        build_model(folder, shape, dtype, device).save_pretrained(folder)
    return folder


def build_model(folder: Path, shape: Shape, dtype: torch.dtype, device: torch.device) -> Any:
    """The model on `device`; `folder` gets its checkpoint without the weights."""
    small = Scratch(hidden_size=64, layers=1, heads=2, vision_depth=1, vision_size=32, vocabulary=900)
    build_small_qwen2_vl(folder, small, 0)
    (folder / "model.safetensors").unlink()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings |= {"patch_size": _PATCH, "min_pixels": TOKEN**2, "max_pixels": 4096 * TOKEN**2}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(_config(shape, tokenizer), dtype=dtype)
    ends = [tokenizer.convert_tokens_to_ids(text) for text in ("<|im_end|>", "<|endoftext|>")]
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    return model.to(device).eval()


def _config(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> Any:
    half = shape.head // 2
    sections = [half - 2 * (half * 5 // 16), half * 5 // 16, half * 5 // 16]
    text = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.wide,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head,
        "max_position_embeddings": 262144,
        # Published 0.02 at a width of 2048; otherwise a narrow model's layers add so little that it repeats one token forever.
        "initializer_range": 0.02 * (2048 / shape.hidden) ** 0.5,
        "rope_parameters": _MROPE | {"mrope_section": sections},
        "tie_word_embeddings": shape.tied,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "depth": shape.vision_layers,
        "hidden_size": shape.vision_hidden,
        "intermediate_size": shape.vision_wide,
        "num_heads": shape.vision_heads,
        "out_hidden_size": shape.hidden,
        "patch_size": _PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": list(shape.deepstack),
    }
    return AutoConfig.for_model(
        "qwen3_vl",
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=shape.tied,
        **token_ids(tokenizer),
    )
