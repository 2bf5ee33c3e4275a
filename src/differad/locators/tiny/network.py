"""The embedded policy's forward pass in NumPy: the change encoder, and the language model that writes the answer.

The same weights and numbers as `model.TinyPolicy` (a test compares them), for machines without torch and its hundreds of
megabytes. The format of an answer is fixed, so only its four numbers are decoded; the text between them runs through the
language model together with the number before it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from differad.errors import OptionError
from differad.locators.tiny.evidence import CELL_EXTRA, COARSE, DISTANCES, FINE, PATCH, WIDTH, PairFeatures
from differad.locators.tiny.folder import CONFIG, TOKENIZER, WEIGHTS_FILE, read_policy
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
    upsample_twice,
)
from differad.locators.tiny.proposals import PROPOSALS, proposals

# The token before an answer's first number, and the tokens before the others.
OPENING = "<think></think><answer>("
BETWEEN = (",", "),(", ",")
# Number of frequencies that encode a coordinate in [0, 1]: 1 to 128 half periods.
OCTAVES = 8
# Groups of the residual blocks' norms.
GROUPS = 4
LEAST_SPREAD = 0.02
LARGEST = 1000

# Numbers per proposal: four coordinates, the logit at its peak, and the mean logit within.
PROPOSAL = 6

Weights = Mapping[str, Array]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class PolicyOutput:
    """The policy's output for one pair.

    `box` is x1, y1, x2, y2 in thousandths of the target, always with an area; `normal` is the probability of the zero box; `peak`
    is the highest logit of its map.
    """

    box: tuple[int, ...]
    normal: float
    peak: float


class Policy:
    """The policy of a checkpoint's folder. Raises OptionError, InputError if it is none or takes other features."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        files = read_policy(folder)
        settings, weights = files.settings, files.weights
        with _naming(folder / CONFIG):
            expected = dict(expected_shapes(settings["vision_config"], settings["text_config"]))
        check_weights(folder / WEIGHTS_FILE, weights, expected)
        with _naming(folder / CONFIG):
            self._encoder = NumpyChangeEncoder(_with_prefix(weights, "model.visual."), settings["vision_config"])
            self._language = LanguageModel(_with_prefix(weights, "model.language_model."), settings["text_config"])
            self._begin = np.array([int(settings["vision_start_token_id"])])
            self._end = np.array([int(settings["vision_end_token_id"])])
        with _naming(folder / TOKENIZER):
            count = len(weights["model.language_model.embed_tokens.weight"])
            self._start = token_ids(files.tokens, ("<|im_start|>", OPENING), count)
            self._between = token_ids(files.tokens, BETWEEN, count).tolist()
            self._numbers = token_ids(files.tokens, map(str, range(LARGEST + 1)), count)

    @property
    def factor(self) -> int:
        """Pixels per token side: both sides of an image must be multiples of it."""
        return PATCH * self._encoder.cells // 2

    def __reduce__(self) -> tuple[type[Self], tuple[Path]]:
        # Another process reads the weights from their folder instead of unpickling them.
        return type(self), (self._folder,)

    def predict(self, pair_features: PairFeatures) -> PolicyOutput:
        """The answer to the features (h, w, WIDTH) of one pair."""
        logits, proposed, features = self._encoder.tokens(pair_features)
        prompt, positions = self._prompt(proposed, features)
        state = DecodingState(self._language)
        scores = state.forward(prompt, positions)
        normal = float(softmax(scores)[self._numbers[0]])
        box: list[int] = []
        for index in range(4):
            number_scores = scores[self._numbers]
            # The first corner leaves an area for the second; the first number is not 0, which begins the zero box.
            low, high = (box[index - 2] + 1, LARGEST) if index >= 2 else (int(index == 0), LARGEST - 1)
            box.append(low + int(number_scores[low : high + 1].argmax()))
            if index < 3:
                scores = state.append([int(self._numbers[box[-1]]), self._between[index]])
        return PolicyOutput(tuple(box), normal, float(logits.max()))

    def _prompt(self, proposed: Array, features: Array) -> tuple[Array, Array]:
        """Embeddings (L, hidden) of the prompt and the answer's opening, and their positions (3, L)."""
        embed = self._language.embed
        parts, positions, position = [], [], 0
        for image, shape in (
            (proposed, (1, len(proposed))),
            (features.reshape(-1, features.shape[2]), features.shape[:2]),
        ):
            parts += [embed(self._begin), image, embed(self._end)]
            rows, columns = np.indices(shape).reshape(2, -1)
            middle = position + 1 + np.stack([np.zeros_like(rows), rows, columns])
            end = int(middle.max()) + 1
            positions += [np.full((3, 1), position), middle, np.full((3, 1), end)]
            position = end + 1
        parts.append(embed(self._start))
        positions.append(position + np.tile(np.arange(len(self._start)), (3, 1)))
        return np.concatenate(parts), np.concatenate(positions, axis=1)


class NumpyChangeEncoder:
    """`model.ChangeEncoder` in NumPy: from pair features to a change map and tokens."""

    def __init__(self, weights: Weights, settings: Mapping[str, Any]) -> None:
        self._weights = weights
        self._blocks = int(settings["depth"])

    @property
    def cells(self) -> int:
        """Cells of stride 8 along a token's side."""
        return int(self._weights["merge.weight"].shape[2])

    def tokens(self, pair_features: PairFeatures) -> tuple[Array, Array, Array]:
        """The map (2h, 2w), PROPOSALS tokens (PROPOSALS, hidden) and the target's (rows, columns, hidden)."""
        features, logits = self._map(pair_features)
        both = np.concatenate([features, logits[..., None]], axis=-1)
        kernel = self._weights["merge.weight"]
        merged = conv(both, kernel, self._weights["merge.bias"], stride=self.cells)
        return (
            logits,
            self._proposal_tokens(logits),
            self._norm(merged, "merge_norm") + self._position_embeddings(merged.shape),
        )

    def _map(self, pair_features: PairFeatures) -> tuple[Array, Array]:
        """Features (2h, 2w, C) and logits (2h, 2w) of rows (h, w, WIDTH)."""
        height, width = pair_features.shape[:2]
        count = WIDTH - COARSE - CELL_EXTRA
        cells = pair_features[..., :count].reshape(height, width, 2, 2, -1).transpose(0, 2, 1, 3, 4)
        fine, coarse = cells.reshape(2 * height, 2 * width, -1), pair_features[..., count:]
        merged_strides = self._conv(_append_standardised(fine, FINE), "fine")
        merged_strides = merged_strides + upsample_twice(self._conv(_append_standardised(coarse, COARSE), "coarse"))
        near = gelu(self._conv(gelu(merged_strides), "enter", padding=1))
        far = self._conv(near, "down", stride=2, padding=1)
        for block in range(self._blocks):
            far = self._residual(far, f"blocks.{block}", 1 + block % 2)
        whole = np.concatenate([far.mean(axis=(0, 1)), far.max(axis=(0, 1))])
        far = gelu(far + linear(whole, self._weights["context.weight"], self._weights["context.bias"]))
        features = gelu(self._conv(np.concatenate([near, upsample_twice(far)], axis=-1), "leave", padding=1))
        return features, self._conv(features, "changed")[..., 0]

    def _residual(self, x: Array, name: str, dilation: int) -> Array:
        first = self._conv(x, f"{name}.first", padding=dilation, dilation=dilation)
        weights = self._weights
        normed = group_norm(first, weights[f"{name}.norm.weight"], weights[f"{name}.norm.bias"], GROUPS)
        return x + self._conv(gelu(normed), f"{name}.second", padding=1)

    def _proposal_tokens(self, logits: Array) -> Array:
        boxes = proposals(logits)
        encoded = np.concatenate([_fourier_features(boxes[:, :4]).reshape(PROPOSALS, -1), boxes], axis=1)
        projected = linear(encoded, self._weights["propose.weight"], self._weights["propose.bias"])
        return self._norm(projected, "propose_norm") + self._weights["rank.weight"]

    def _position_embeddings(self, shape: tuple[int, ...]) -> Array:
        """Position embeddings of tokens (rows, columns, hidden), from their centres."""
        rows, columns = ((np.arange(side, dtype=np.float32) + np.float32(0.5)) / np.float32(side) for side in shape[:2])
        positions = np.stack(np.broadcast_arrays(columns[None], rows[:, None]), axis=-1)
        encoded = _fourier_features(positions).reshape(*shape[:2], -1)
        projected = linear(encoded, self._weights["place.weight"], self._weights["place.bias"])
        return self._norm(projected, "place_norm")

    def _norm(self, x: Array, name: str) -> Array:
        return layer_norm(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _conv(self, x: Array, name: str, **how: int) -> Array:
        return conv(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], **how)


class LanguageModel:
    """Qwen2-VL's language model, without the state of a text; `DecodingState` holds that."""

    def __init__(self, weights: Weights, settings: Mapping[str, Any]) -> None:
        self.layers = [_with_prefix(weights, f"layers.{number}.") for number in range(settings["num_hidden_layers"])]
        self.heads, self.epsilon = int(settings["num_attention_heads"]), float(settings["rms_norm_eps"])
        if int(settings["num_key_value_heads"]) != self.heads:
            raise OptionError(f"the policy shares keys among {self.heads} heads; expected keys for each")
        self._table, self._norm = weights["embed_tokens.weight"], weights["norm.weight"]
        rope = settings["rope_parameters"]
        half = self._table.shape[1] // self.heads // 2
        self._inv_freq = float(rope["rope_theta"]) ** (-np.arange(half) / half)
        # The axis (time, row, column) whose position rotates each pair of channels.
        self._rotary_axis = np.repeat(np.arange(3), rope["mrope_section"])
        if len(self._rotary_axis) != half:
            raise ValueError(f"mrope_section {rope['mrope_section']} for heads of {2 * half} channels")

    def embed(self, ids: Any) -> Array:
        """Embeddings (L, hidden) of tokens."""
        return np.asarray(self._table[ids])

    def rotary(self, positions: Array) -> tuple[Array, Array]:
        """Cosines and sines (L, channels of a head) of positions (3, L)."""
        angles = positions[self._rotary_axis].T * self._inv_freq
        both = np.concatenate([angles, angles], axis=1)
        return np.cos(both).astype(np.float32), np.sin(both).astype(np.float32)

    def scores(self, state: Array) -> Array:
        """Logits (vocabulary,) of the next token after a state (hidden,)."""
        return np.asarray(self._table @ rms_norm(state, self._norm, self.epsilon))


class DecodingState:
    """One text in the language model, with the cached keys and values of its tokens."""

    def __init__(self, language: LanguageModel) -> None:
        self._language = language
        self._kv_cache: list[tuple[Array, Array]] = []
        self._next_position = 0

    def append(self, ids: Sequence[int]) -> Array:
        """Logits (vocabulary,) after further text tokens."""
        positions = np.tile(self._next_position + np.arange(len(ids)), (3, 1))
        return self.forward(self._language.embed(list(ids)), positions)

    def forward(self, x: Array, positions: Any) -> Array:
        """Logits (vocabulary,) after embeddings (L, hidden) at positions (3, L)."""
        language = self._language
        rotary = language.rotary(positions)
        for number, layer in enumerate(language.layers):
            normed = rms_norm(x, layer["input_layernorm.weight"], language.epsilon)
            x = x + self._attend(normed, layer, number, rotary)
            normed = rms_norm(x, layer["post_attention_layernorm.weight"], language.epsilon)
            gate = silu(linear(normed, layer["mlp.gate_proj.weight"])) * linear(normed, layer["mlp.up_proj.weight"])
            x = x + linear(gate, layer["mlp.down_proj.weight"])
        self._next_position = int(positions.max()) + 1
        return language.scores(x[-1])

    def _attend(self, x: Array, layer: Weights, number: int, rotary: tuple[Array, Array]) -> Array:
        heads, length = self._language.heads, len(x)
        query, key, value = (
            linear(x, layer[f"self_attn.{name}_proj.weight"], layer[f"self_attn.{name}_proj.bias"])
            .reshape(length, heads, -1)
            .transpose(1, 0, 2)
            for name in "qkv"
        )
        query, key = _rotate(query, *rotary), _rotate(key, *rotary)
        if number < len(self._kv_cache):
            key, value = (
                np.concatenate(pair, axis=1) for pair in zip(self._kv_cache[number], (key, value), strict=True)
            )
            self._kv_cache[number] = key, value
        else:
            self._kv_cache.append((key, value))
        scores = query @ key.transpose(0, 2, 1) / np.float32(query.shape[2] ** 0.5)
        later = np.arange(key.shape[1])[None] > np.arange(key.shape[1] - length, key.shape[1])[:, None]
        scores[:, later] = -np.inf
        mixed = (softmax(scores) @ value).transpose(1, 0, 2).reshape(length, -1)
        return linear(mixed, layer["self_attn.o_proj.weight"])


def _rotate(x: Array, cosines: Array, sines: Array) -> Array:
    """Rotary embedding: channels (heads, L, C) rotated in pairs half a head apart."""
    half = x.shape[2] // 2
    return np.asarray(x * cosines + np.concatenate([-x[..., half:], x[..., :half]], axis=2) * sines)


def _append_standardised(cells: Array, channels: int) -> Array:
    """Append the distance channels standardised per image: (h, w, C + DISTANCES)."""
    distances = cells[..., channels : channels + DISTANCES]
    mean, spread = distances.mean(axis=(0, 1)), distances.std(axis=(0, 1), ddof=1)
    return np.concatenate([cells, (distances - mean) / (spread + np.float32(LEAST_SPREAD)) / 4], axis=-1)


def _fourier_features(values: Array) -> Array:
    """Fourier features (..., 2 * OCTAVES) of values in [0, 1]."""
    angles = values[..., None] * np.float32(np.pi) * 2 ** np.arange(OCTAVES, dtype=np.float32)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)


def _with_prefix(weights: Weights, prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def token_ids(tokens: Mapping[str, int], texts: Iterable[str], count: int) -> NDArray[np.int64]:
    """The ids (N,) of texts that are one token each, of `count` tokens. Raises KeyError, ValueError."""
    ids = np.array([int(tokens[text]) for text in texts])
    if ids.min() < 0 or ids.max() >= count:
        raise ValueError(f"ids {ids.min()} to {ids.max()} of {count} tokens")
    return ids


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn a missing key or a wrong value into an OptionError that names the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise OptionError(
            f"{path}: not a file of an embedded policy ({reason}); copy it from the policy again"
        ) from None


def check_weights(path: Path, weights: Weights, expected: Mapping[str, Shape]) -> None:
    """Raise OptionError unless every expected weight exists, in its shape and finite."""
    missing = [name for name in expected if name not in weights]
    if missing:
        raise OptionError(f"{path}: {len(missing)} weights are missing, {missing[0]} first; copy or train it again")
    for name, shape in expected.items():
        if weights[name].shape != shape:
            raise OptionError(
                f"{path}: {name} has the shape {weights[name].shape}; this version expects {shape} by {CONFIG}; train it again"
            )
        if not np.isfinite(weights[name]).all():
            raise OptionError(
                f"{path}: {name} holds values that are not finite; take an earlier checkpoint of its training"
            )
    table, head = weights["model.language_model.embed_tokens.weight"], weights.get("lm_head.weight")
    if head is not None and not np.array_equal(head, table):
        raise OptionError(f"{path}: lm_head.weight is not embed_tokens.weight; expected a policy with tied embeddings")


def expected_shapes(vision: Mapping[str, Any], text: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    """Name and shape of every weight of a policy with these settings. Raises KeyError, TypeError."""
    channels, hidden = vision["embed_dim"], text["hidden_size"]
    kernels = {
        "fine": (channels, FINE + CELL_EXTRA + DISTANCES, 1),
        "coarse": (channels, COARSE + CELL_EXTRA + DISTANCES, 1),
        "enter": (channels, channels, 3),
        "down": (2 * channels, channels, 3),
        "leave": (channels, 3 * channels, 3),
        "changed": (1, channels, 1),
        "merge": (hidden, channels + 1, 2 * vision["spatial_merge_size"]),
        **{
            f"blocks.{number}.{part}": (2 * channels, 2 * channels, 3)
            for number in range(vision["depth"])
            for part in ("first", "second")
        },
    }
    matrices = {
        "context": (2 * channels, 4 * channels),
        "place": (hidden, 4 * OCTAVES),
        "propose": (hidden, 8 * OCTAVES + PROPOSAL),
    }
    norms = {
        **{f"blocks.{number}.norm": 2 * channels for number in range(vision["depth"])},
        **dict.fromkeys(("merge_norm", "place_norm", "propose_norm"), hidden),
    }
    shapes: dict[str, Shape] = {f"{name}.weight": (out, into, k, k) for name, (out, into, k) in kernels.items()}
    shapes |= {f"{name}.weight": shape for name, shape in matrices.items()}
    shapes |= {f"{name}.weight": (size,) for name, size in norms.items()}
    shapes |= {name.replace(".weight", ".bias"): shape[:1] for name, shape in shapes.items()}
    yield from ((f"model.visual.{name}", shape) for name, shape in shapes.items())
    yield "model.visual.rank.weight", (PROPOSALS, hidden)
    yield from ((f"model.language_model.{name}", shape) for name, shape in _language_shapes(text))


def _language_shapes(text: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    hidden, inner = text["hidden_size"], text["intermediate_size"]
    yield "embed_tokens.weight", (text["vocab_size"], hidden)
    yield "norm.weight", (hidden,)
    for number in range(text["num_hidden_layers"]):
        layer = f"layers.{number}"
        yield from ((f"{layer}.{name}_layernorm.weight", (hidden,)) for name in ("input", "post_attention"))
        yield from ((f"{layer}.mlp.{name}_proj.weight", (inner, hidden)) for name in ("gate", "up"))
        yield f"{layer}.mlp.down_proj.weight", (hidden, inner)
        yield from ((f"{layer}.self_attn.{name}_proj.weight", (hidden, hidden)) for name in "qkvo")
        yield from ((f"{layer}.self_attn.{name}_proj.bias", (hidden,)) for name in "qkv")
