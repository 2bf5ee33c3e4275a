"""A miniature of a model, and prompts with two images each, for tests of a transformers release before a run.

The configuration is the model's own with smaller sizes: types of layers, attention and position encoding stay, so that the
miniature runs the same code. Weights are random and large, so that every token and every pixel changes the output.

Knows nothing of trainers or losses.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, GenerationConfig

from differad.answers.formats import TINY_MODEL_TYPE
from differad.locators.tiny.evidence import WIDTH
from differad.locators.tiny.processor import REFERENCE_GRID
from differad.locators.transformers_hooks import supports_masks, text_attention

PAD, WORDS, VOCABULARY = 0, 40, 64
_HEADS, _LAYERS, _WIDTH_SMALL = 2, 2, 32
# Sizes of text and vision by their names in configurations, where these have them.
_TEXT = {
    "intermediate_size": _WIDTH_SMALL,
    "moe_intermediate_size": _WIDTH_SMALL,
    "shared_expert_intermediate_size": _WIDTH_SMALL,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "linear_num_key_heads": _HEADS,
    "linear_num_value_heads": _HEADS,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "vocab_size": VOCABULARY,
    # Fewer tokens than a prompt has, so that the window and the index take effect.
    "sliding_window": 8,
    "indexer_compress_ratio": 4,
    "indexer_budget": 8,
}
_VISION = {"num_heads": _HEADS, "num_attention_heads": _HEADS, "intermediate_size": _WIDTH_SMALL}
_DEPTHS = ("depth", "num_hidden_layers")
_VISION_WIDTHS = ("embed_dim", "hidden_size")
# Lists of layer indices.
_VISION_LAYERS = ("fullatt_block_indexes", "deepstack_visual_indexes")


def build_miniature(model: Any) -> Any:
    """A model of the class of `model`, in float32, on its device, in training mode; to be built in `same_random_state`."""
    torch.manual_seed(0)
    attention = text_attention(model) if supports_masks(model) else "sdpa"
    small = AutoModelForImageTextToText.from_config(
        _with_small_sizes(model.config), dtype=torch.float32, attn_implementation=attention
    )
    with torch.no_grad():
        for weight in small.parameters():
            if weight.dim() > 1:
                weight.normal_(0.0, 2.0 / weight[0].numel() ** 0.5)
    small.generation_config = GenerationConfig()  # during training, a model's configuration may disable the cache
    return small.to(model.device).train()


def in_double(model: Any) -> Any:
    """A copy of a miniature that computes in float64, on the CPU: not every accelerator has such numbers."""
    precise = copy.deepcopy(model).cpu().double()
    precise.set_attn_implementation("sdpa")  # eager masks padding by the least float, and overflows in float64
    precise.set_experts_implementation("eager")  # grouped products have no float64
    return precise


@contextmanager
def same_random_state(device: torch.device) -> Iterator[None]:
    """Restore the random state of the CPU and of `device` after the context, so that later random numbers are unaffected."""
    accelerator = None if device.type == "cpu" else getattr(torch, device.type)
    state = None if accelerator is None else accelerator.get_rng_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            if accelerator is not None:
                accelerator.set_rng_state(state)


def _with_small_sizes(config: Any) -> Any:
    """A copy of a model's configuration with small sizes and a vocabulary of its own."""
    config = copy.deepcopy(config)
    text, vision = config.get_text_config(), config.vision_config
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    shares = text.num_attention_heads // text.num_key_value_heads
    hidden = _HEADS * head
    kinds = list(dict.fromkeys(getattr(text, "layer_types", None) or ["full_attention"]))
    layers = (kinds * _LAYERS)[: max(_LAYERS, len(kinds))]
    _set(text, _TEXT)
    _set(
        text,
        {
            "hidden_size": hidden,
            "num_hidden_layers": len(layers),
            "layer_types": layers,
            "num_attention_heads": _HEADS,
            "num_key_value_heads": 1 if shares > 1 else _HEADS,
        },
    )
    _set(vision, {**_VISION, **dict.fromkeys(_DEPTHS, _LAYERS), **dict.fromkeys(_VISION_WIDTHS, _WIDTH_SMALL)})
    # If the tower has no separate output width, `hidden_size` is the text's.
    _set(vision, {"out_hidden_size": hidden} if hasattr(vision, "out_hidden_size") else {"hidden_size": hidden})
    for name in _VISION_LAYERS:
        if getattr(vision, name, None):
            setattr(vision, name, [_LAYERS - 1])
    _name_tokens(config, text)
    return config


def _set(config: Any, sizes: dict[str, Any]) -> None:
    for name, size in sizes.items():
        if getattr(config, name, None) is not None:
            setattr(config, name, size)


def _name_tokens(config: Any, text: Any) -> None:
    """Give each special token its own id of the small vocabulary; ids below WORDS are words."""
    ids = iter(range(WORDS, VOCABULARY))
    assigned: dict[str, int] = {}
    for part in (config, text):
        for name, value in part.to_dict().items():
            if name.endswith("_token_id") and value is not None:
                if name not in assigned:
                    assigned[name] = PAD if name == "pad_token_id" else next(ids)
                setattr(part, name, assigned[name])


@dataclass(frozen=True, eq=False)
class Sample:
    """Prompts of unequal length, two images each, `members` rows each: tokens by row, patches and grids of all images."""

    prompts: list[list[int]]
    patches: Tensor
    grids: Tensor
    image_token: int

    def to(self, device: torch.device) -> "Sample":
        """The same with its tensors on a device."""
        return replace(self, patches=self.patches.to(device), grids=self.grids.to(device))

    @property
    def kinds(self) -> list[list[int]]:
        """1 for image tokens."""
        return [[int(token == self.image_token) for token in row] for row in self.prompts]


def make_sample(model: Any, members: int, random: torch.Generator, distinct: int = 2) -> Sample:
    """Random prompts for a miniature: `distinct` ones, each longer than the one before, `members` contiguous rows each."""
    prompts, patches, grids = [], [], []
    merge = model.config.vision_config.spatial_merge_size
    token = model.config.image_token_id
    for number in range(distinct):
        grid = _grids(model, merge, number)
        row: list[int] = []
        for tokens in (grid.prod(dim=1) // merge**2).tolist():
            row += [*_words(3 + number, random), *[token] * tokens]
        row += _words(4, random)
        pixels = torch.randn(int(grid.prod(dim=1).sum()), _width(model), generator=random)
        prompts += [row] * members
        patches += [pixels] * members
        grids += [grid] * members
    return Sample(prompts, torch.cat(patches), torch.cat(grids), token).to(model.device)


def _words(count: int, random: torch.Generator) -> list[int]:
    return [int(word) for word in torch.randint(PAD + 1, WORDS, (count,), generator=random)]


def _grids(model: Any, merge: int, number: int) -> Tensor:
    """Patches in time, height and width of the two images of a prompt; targets grow from prompt to prompt."""
    reference = REFERENCE_GRID if _compares(model) else (1, 2 * merge, 2 * merge)
    return torch.tensor([reference, (1, 2 * merge, (2 + number) * merge)])


def _width(model: Any) -> int:
    """Numbers per patch."""
    vision = model.config.vision_config
    return WIDTH if _compares(model) else vision.in_channels * vision.temporal_patch_size * vision.patch_size**2


def _compares(model: Any) -> bool:
    """Whether it is the embedded policy, whose tower takes pair features in place of pixels."""
    return bool(model.config.model_type == TINY_MODEL_TYPE)
