"""The embedded policy's forward pass without torch: the comparer, and the language model that writes the answer.

The same weights and the same numbers as `model.TinyPolicy` (a test holds one against the other), for lines where a package
of hundreds of megabytes is unwelcome. What an answer is made of is known, so only its four numbers are asked for: what
stands between them goes through the language model together with the number before it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from differad.errors import OptionError
from differad.locators.features.weights import read_safetensors
from differad.locators.tiny.evidence import CELL_EXTRA, COARSE, DISTANCES, FINE, WIDTH, Evidence
from differad.locators.tiny.layers import (
    Array,
    conv,
    gelu,
    group_norm,
    layer_norm,
    linear,
    rms_norm,
    silu,
    softmax,
    twice,
)
from differad.locators.tiny.proposals import PROPOSALS, proposals

# The token before an answer's first number, and those before the others.
OPENING = "<think></think><answer>("
BETWEEN = (",", "),(", ",")
# Frequencies in which a place between 0 and 1 is written, 1 to 128 half waves.
OCTAVES = 8
# Groups of the residual blocks' norms.
GROUPS = 4
LEAST_SPREAD = 0.02
LARGEST = 1000

Weights = Mapping[str, Array]


@dataclass(frozen=True)
class Look:
    """What the policy makes of one pair.

    `box` is x1, y1, x2, y2 in thousandths of the target, always with an area; `normal` is how likely it found the zero box;
    `peak` is the highest logit of its map.
    """

    box: tuple[int, ...]
    normal: float
    peak: float


class Policy:
    """The policy of a checkpoint's folder. Raises OptionError, InputError where it is none or of another evidence."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        settings = _read_json(folder / "config.json")
        weights = read_safetensors(folder / "model.safetensors")
        spelling = _read_json(folder / "tokenizer.json")
        known = spelling["model"]["vocab"] | {each["content"]: each["id"] for each in spelling["added_tokens"]}
        self._comparer = Comparison(_below(weights, "model.visual."), settings["vision_config"])
        self._language = Language(_below(weights, "model.language_model."), settings["text_config"])
        self._begin = np.array([settings["vision_start_token_id"]])
        self._end = np.array([settings["vision_end_token_id"]])
        self._start = np.array([known["<|im_start|>"], known[OPENING]])
        self._between = [known[text] for text in BETWEEN]
        self._numbers = np.array([known[str(number)] for number in range(LARGEST + 1)])

    def __reduce__(self) -> tuple[type[Self], tuple[Path]]:
        # Another process reads the weights from their folder instead of being sent them.
        return type(self), (self._folder,)

    def look(self, found: Evidence) -> Look:
        """The answer to one pair's evidence (h, w, WIDTH)."""
        logits, proposed, seen = self._comparer.tokens(found)
        prompt, positions = self._prompt(proposed, seen)
        reading = Reading(self._language)
        scores = reading.read(prompt, positions)
        normal = float(softmax(scores)[self._numbers[0]])
        box: list[int] = []
        for place in range(4):
            own = scores[self._numbers]
            # The first corner leaves room for the second, the first number is not the zero box's.
            least, most = (box[place - 2] + 1, LARGEST) if place >= 2 else (int(place == 0), LARGEST - 1)
            box.append(least + int(own[least : most + 1].argmax()))
            if place < 3:
                scores = reading.read_on([int(self._numbers[box[-1]]), self._between[place]])
        return Look(tuple(box), normal, float(logits.max()))

    def _prompt(self, proposed: Array, seen: Array) -> tuple[Array, Array]:
        """Embeddings (L, hidden) of the prompt and the answer's opening, and their positions (3, L)."""
        embed = self._language.embed
        parts, places, place = [], [], 0
        for picture, shape in ((proposed, (1, len(proposed))), (seen.reshape(-1, seen.shape[2]), seen.shape[:2])):
            parts += [embed(self._begin), picture, embed(self._end)]
            rows, columns = np.indices(shape).reshape(2, -1)
            middle = place + 1 + np.stack([np.zeros_like(rows), rows, columns])
            end = int(middle.max()) + 1
            places += [np.full((3, 1), place), middle, np.full((3, 1), end)]
            place = end + 1
        parts.append(embed(self._start))
        places.append(place + np.tile(np.arange(len(self._start)), (3, 1)))
        return np.concatenate(parts), np.concatenate(places, axis=1)


class Comparison:
    """`model.Comparer`: evidence in, a map of changes and tokens out."""

    def __init__(self, weights: Weights, settings: Mapping[str, Any]) -> None:
        self._weights = weights
        self._blocks = int(settings["depth"])
        expected = FINE + CELL_EXTRA + DISTANCES
        if weights["fine.weight"].shape[1] != expected:
            raise OptionError(
                f"the policy takes {weights['fine.weight'].shape[1]} channels a cell, this version's evidence has "
                f"{expected}; train it again"
            )

    def tokens(self, found: Evidence) -> tuple[Array, Array, Array]:
        """The map (2h, 2w), PROPOSALS tokens (PROPOSALS, hidden) and the target's (rows, columns, hidden)."""
        seen, logits = self._map(found)
        both = np.concatenate([seen, logits[..., None]], axis=-1)
        kernel = self._weights["merge.weight"]
        merged = conv(both, kernel, self._weights["merge.bias"], stride=kernel.shape[2])
        return logits, self._proposed(logits), self._norm(merged, "merge_norm") + self._placed(merged.shape)

    def _map(self, found: Evidence) -> tuple[Array, Array]:
        """Features (2h, 2w, C) and logits (2h, 2w) of rows (h, w, WIDTH)."""
        height, width = found.shape[:2]
        count = WIDTH - COARSE - CELL_EXTRA
        cells = found[..., :count].reshape(height, width, 2, 2, -1).transpose(0, 2, 1, 3, 4)
        fine, coarse = cells.reshape(2 * height, 2 * width, -1), found[..., count:]
        entered = self._conv(_with_standing(fine, FINE), "fine")
        entered = entered + twice(self._conv(_with_standing(coarse, COARSE), "coarse"))
        near = gelu(self._conv(gelu(entered), "enter", padding=1))
        far = self._conv(near, "down", stride=2, padding=1)
        for block in range(self._blocks):
            far = self._residual(far, f"blocks.{block}", 1 + block % 2)
        whole = np.concatenate([far.mean(axis=(0, 1)), far.max(axis=(0, 1))])
        far = gelu(far + linear(whole, self._weights["context.weight"], self._weights["context.bias"]))
        seen = gelu(self._conv(np.concatenate([near, twice(far)], axis=-1), "leave", padding=1))
        return seen, self._conv(seen, "changed")[..., 0]

    def _residual(self, x: Array, name: str, dilation: int) -> Array:
        first = self._conv(x, f"{name}.first", padding=dilation, dilation=dilation)
        weights = self._weights
        normed = group_norm(first, weights[f"{name}.norm.weight"], weights[f"{name}.norm.bias"], GROUPS)
        return x + self._conv(gelu(normed), f"{name}.second", padding=1)

    def _proposed(self, logits: Array) -> Array:
        known = proposals(logits)
        written = np.concatenate([_waves(known[:, :4]).reshape(PROPOSALS, -1), known], axis=1)
        said = linear(written, self._weights["propose.weight"], self._weights["propose.bias"])
        return self._norm(said, "propose_norm") + self._weights["rank.weight"]

    def _placed(self, shape: tuple[int, ...]) -> Array:
        """What tokens (rows, columns, hidden) say of the places of their middles."""
        rows, columns = ((np.arange(side, dtype=np.float32) + np.float32(0.5)) / np.float32(side) for side in shape[:2])
        places = np.stack(np.broadcast_arrays(columns[None], rows[:, None]), axis=-1)
        written = _waves(places).reshape(*shape[:2], -1)
        said = linear(written, self._weights["place.weight"], self._weights["place.bias"])
        return self._norm(said, "place_norm")

    def _norm(self, x: Array, name: str) -> Array:
        return layer_norm(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _conv(self, x: Array, name: str, **how: int) -> Array:
        return conv(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], **how)


class Language:
    """Qwen2-VL's language model: what stays the same from text to text. `Reading` is one text."""

    def __init__(self, weights: Weights, settings: Mapping[str, Any]) -> None:
        self.layers = [_below(weights, f"layers.{number}.") for number in range(settings["num_hidden_layers"])]
        self.heads, self.epsilon = int(settings["num_attention_heads"]), float(settings["rms_norm_eps"])
        if settings["num_key_value_heads"] != self.heads:
            raise OptionError(f"the policy shares keys among {self.heads} heads; expected keys for each")
        self._table, self._norm = weights["embed_tokens.weight"], weights["norm.weight"]
        rope = settings["rope_parameters"]
        half = self._table.shape[1] // self.heads // 2
        self._speeds = float(rope["rope_theta"]) ** (-np.arange(half) / half)
        # Which of time, row and column turns each pair of channels.
        self._turned_by = np.repeat(np.arange(3), rope["mrope_section"])

    def embed(self, ids: Any) -> Array:
        """Embeddings (L, hidden) of tokens."""
        return np.asarray(self._table[ids])

    def turns(self, positions: Array) -> tuple[Array, Array]:
        """Cosines and sines (L, channels of a head) of positions (3, L)."""
        angles = positions[self._turned_by].T * self._speeds
        both = np.concatenate([angles, angles], axis=1)
        return np.cos(both).astype(np.float32), np.sin(both).astype(np.float32)

    def scores(self, state: Array) -> Array:
        """Logits (vocabulary,) of the next token after a state (hidden,)."""
        return np.asarray(self._table @ rms_norm(state, self._norm, self.epsilon))


class Reading:
    """One text going through the language model, with the keys and values of what has been read."""

    def __init__(self, language: Language) -> None:
        self._language = language
        self._kept: list[tuple[Array, Array]] = []
        self._next = 0

    def read_on(self, ids: Sequence[int]) -> Array:
        """Logits after further tokens of text."""
        positions = np.tile(self._next + np.arange(len(ids)), (3, 1))
        return self.read(self._language.embed(list(ids)), positions)

    def read(self, x: Array, positions: Any) -> Array:
        """Logits (vocabulary,) after embeddings (L, hidden) at positions (3, L)."""
        language = self._language
        turns = language.turns(positions)
        for number, layer in enumerate(language.layers):
            normed = rms_norm(x, layer["input_layernorm.weight"], language.epsilon)
            x = x + self._attend(normed, layer, number, turns)
            normed = rms_norm(x, layer["post_attention_layernorm.weight"], language.epsilon)
            gate = silu(linear(normed, layer["mlp.gate_proj.weight"])) * linear(normed, layer["mlp.up_proj.weight"])
            x = x + linear(gate, layer["mlp.down_proj.weight"])
        self._next = int(positions.max()) + 1
        return language.scores(x[-1])

    def _attend(self, x: Array, layer: Weights, number: int, turns: tuple[Array, Array]) -> Array:
        heads, length = self._language.heads, len(x)
        query, key, value = (
            linear(x, layer[f"self_attn.{name}_proj.weight"], layer[f"self_attn.{name}_proj.bias"])
            .reshape(length, heads, -1)
            .transpose(1, 0, 2)
            for name in "qkv"
        )
        query, key = _turned(query, *turns), _turned(key, *turns)
        if number < len(self._kept):
            key, value = (np.concatenate(pair, axis=1) for pair in zip(self._kept[number], (key, value), strict=True))
            self._kept[number] = key, value
        else:
            self._kept.append((key, value))
        likeness = query @ key.transpose(0, 2, 1) / np.float32(query.shape[2] ** 0.5)
        later = np.arange(key.shape[1])[None] > np.arange(key.shape[1] - length, key.shape[1])[:, None]
        likeness[:, later] = -np.inf
        mixed = (softmax(likeness) @ value).transpose(1, 0, 2).reshape(length, -1)
        return linear(mixed, layer["self_attn.o_proj.weight"])


def _turned(x: Array, cosines: Array, sines: Array) -> Array:
    """Channels (heads, L, C) turned in pairs half a head apart."""
    half = x.shape[2] // 2
    return np.asarray(x * cosines + np.concatenate([-x[..., half:], x[..., :half]], axis=2) * sines)


def _with_standing(cells: Array, channels: int) -> Array:
    """Cells (h, w, C) with their distances once more, by how far each stands out of its own picture."""
    distances = cells[..., channels : channels + DISTANCES]
    mean, spread = distances.mean(axis=(0, 1)), distances.std(axis=(0, 1), ddof=1)
    return np.concatenate([cells, (distances - mean) / (spread + np.float32(LEAST_SPREAD)) / 4], axis=-1)


def _waves(values: Array) -> Array:
    """Values in [0, 1] as sines and cosines, (..., 2 * OCTAVES)."""
    angles = values[..., None] * np.float32(np.pi) * 2 ** np.arange(OCTAVES, dtype=np.float32)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)


def _below(weights: Weights, prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise OptionError(f"{path.parent}: no {path.name}; expected the folder of an embedded policy") from None
    except (OSError, ValueError) as error:
        raise OptionError(f"{path}: cannot be read as JSON ({error}); copy it from the checkpoint") from None
