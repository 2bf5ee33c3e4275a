"""The only module that uses internals of transformers: cache layers, how a model takes a cache, how its attention is replaced.

Written for transformers 5.18 to 5.24. Everything else calls its documented API. A release that changes any of this is detected
before use: training compares shared with repeated prompts at the start of each run (`training/probe.py`), and a locator that
cannot cache prefixes encodes prompts whole.

Knows nothing of images, prompts or answers. Raises nothing of its own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer

# The state of one row in one layer: keys and values, or the states of its convolution and, if it has one, of its recurrence.
LayerStates = tuple[Tensor | None, ...]
# Attentions that take any mask, by their names in a model's configuration.
_MASKED = ("sdpa", "eager")


def empty_cache(model: Any) -> DynamicCache:
    """A cache of the kind that `generate` would make for a model."""
    return DynamicCache(config=model.config.get_text_config())


def cache_input(model: Any, cache: DynamicCache) -> dict[str, DynamicCache]:
    """A cache under the argument name of a model's forward and `generate`: `cache` since 5.24."""
    name = "cache" if "cache" in signature(type(model).forward).parameters else "past_key_values"
    return {name: cache}


def without_balance_loss(model: Any) -> dict[str, bool]:
    """Arguments that switch off the router's balance loss, which a cold start leaves on in the configuration.

    That loss expects a mask of as many tokens as the input, so that it raises with a cache, where the mask has more.
    """
    return (
        {"output_router_logits": False} if "output_router_logits" in signature(type(model).forward).parameters else {}
    )


def holds_every_token(cache: DynamicCache) -> bool:
    """Whether a cache holds every token: layers with a sliding window drop the prompt as the text grows."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def can_repeat(cache: DynamicCache) -> bool:
    """Whether every layer of a cache can repeat its rows, including states of recurrent layers."""
    return all(callable(getattr(layer, "reorder_cache", None)) for layer in cache.layers)


def can_keep(cache: DynamicCache) -> bool:
    """Whether each layer of a cache holds every token, or one state of fixed size that stands for all of them."""
    return all(type(layer) is DynamicLayer or _holds_state(layer) for layer in cache.layers)


def _holds_state(layer: Any) -> bool:
    """Whether it is a layer of linear attention or of a short convolution, which stores no tokens."""
    alone = hasattr(layer, "update_recurrent_state") and not hasattr(layer, "update")
    return alone and getattr(layer, "number_of_states", 1) == 1


def keys_and_values(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """Keys and values (B, heads, tokens, size) of each layer of a cache that holds all."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def dtype_of_keys(cache: DynamicCache) -> torch.dtype:
    """The type of the keys in a cache that has some."""
    return next(layer.keys.dtype for layer in cache.layers if not _holds_state(layer))


def row_states(cache: DynamicCache, row: int, begin: int) -> list[LayerStates]:
    """The state of one row in each layer of a cache that `can_keep`, without its first `begin` tokens, which are pads.

    Keys and values (1, heads, tokens, size), or states, which pads do not change.
    """
    states_by_layer: list[LayerStates] = []
    for layer in cache.layers:
        if _holds_state(layer):  # copied: a decoding step writes into them
            states = (layer.conv_states[0], layer.recurrent_states[0])
            states_by_layer.append(tuple(None if each is None else each[row, None].clone() for each in states))
        else:
            states_by_layer.append((layer.keys[row, None, :, begin:], layer.values[row, None, :, begin:]))
    return states_by_layer


def join_states(model: Any, rows: list[list[LayerStates]], width: int) -> DynamicCache:
    """A model's cache from the `row_states` of rows; rows of fewer than `width` tokens are padded on the left."""
    cache = empty_cache(model)
    for layer, parts in zip(cache.layers, zip(*rows, strict=True), strict=True):
        first, second = zip(*parts, strict=True)
        if _holds_state(layer):
            layer.update_conv_state(torch.cat(first))
            if second[0] is not None:
                layer.update_recurrent_state(torch.cat(second))
        else:
            layer.update(*(torch.cat([_padded(each, width) for each in states]) for states in (first, second)))
    return cache


def _padded(states: Tensor, width: int) -> Tensor:
    """States (1, heads, L, size) with zeros before them, `width` tokens in all; padded tokens are masked."""
    return functional.pad(states, (0, 0, width - states.shape[2], 0))


def with_capacity(cache: DynamicCache, prompt_index: Tensor, capacity: int) -> None:
    """Give every row the cache of its prompt `prompt_index` (B,), and allocate `capacity` more tokens. Without gradients only."""
    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[number] = PreallocatedCacheLayer(layer.keys, layer.values, prompt_index, capacity)
        else:  # a sliding window drops tokens, a state does not grow
            layer.reorder_cache(prompt_index)


def with_groups(cache: DynamicCache, members: int, capacity: int) -> None:
    """Turn a cache of U prompts into one of U groups of `members` rows, `capacity` tokens each at most.

    Keys and values of a prompt are stored once; a state, which every token changes, is stored for each row.
    """
    for number, layer in enumerate(cache.layers):
        if _holds_state(layer):
            prompt_index = torch.arange(len(layer.conv_states[0]), device=layer.conv_states[0].device)
            layer.reorder_cache(prompt_index.repeat_interleave(members))
        else:
            cache.layers[number] = GroupCacheLayer(layer.keys, layer.values, members, capacity)


def with_fixed_groups(cache: DynamicCache, members: int, capacity: int) -> "Steps":
    """As `with_groups`, in buffers of fixed size; returns the `Steps` that track the written columns."""
    states = keys_and_values(cache)
    prompt = int(states[0][0].shape[2])
    steps = Steps(prompt, members, capacity, states[0][0].device)
    cache.layers = [FixedGroupCacheLayer(*each, steps) for each in states]
    return steps


def set_rope_deltas(model: Any, deltas: Tensor) -> None:
    """Set the offset (B, 1) of each row's next position to its length, before a model generates from a cache."""
    model.model.rope_deltas = deltas


def text_attention(model: Any) -> str:
    """The name of a model's text attention."""
    return str(model.config.get_text_config()._attn_implementation)


def supports_masks(model: Any) -> bool:
    """Whether a model's text attention takes any mask, and gives the same numbers as `scaled_dot_product_attention`."""
    return text_attention(model) in _MASKED


@contextmanager
def replaced_attention(model: Any, name: str, attention: Callable[..., Any]) -> Iterator[None]:
    """Within the context, a model's text attention is `attention`, with the signature of `AttentionInterface`."""
    AttentionInterface.register(name, attention)
    config = model.config.get_text_config()
    stock = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = stock


class PreallocatedCacheLayer(DynamicLayer):
    """A cache layer with preallocated capacity: the stock one copies all previous tokens at every token."""

    def __init__(self, keys: Tensor, values: Tensor, prompt_index: Tensor, capacity: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._capacity = capacity
        self._buffers = [_extended(states[prompt_index], capacity) for states in (keys, values)]
        self._show(keys.shape[2])

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values (B, heads, tokens, size) with the new ones appended; without gradients."""
        begin = self.keys.shape[2]
        end = begin + key_states.shape[2]
        if end > self._buffers[0].shape[2]:
            self._buffers = [_extended(states, end - begin + self._capacity) for states in (self.keys, self.values)]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, begin:end] = states
        self._show(end)
        return self.keys, self.values

    def _show(self, end: int) -> None:
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)


class GroupCacheLayer(DynamicLayer):
    """A cache layer: keys and values (U, heads, P, size) of prompts, then those of all members, step by step."""

    def __init__(self, keys: Tensor, values: Tensor, members: int, capacity: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._members, self._prompt = members, int(keys.shape[2])
        self._end = self._prompt
        self._buffers = [functional.pad(states, (0, 0, 0, capacity * members)) for states in (keys, values)]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values (U, heads, S, size) with one more token of each row (U * members, heads, 1, size) appended."""
        begin, self._end = self._end, self._end + self._members
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, begin : self._end] = states.unflatten(0, (-1, self._members))[..., 0, :].transpose(1, 2)
        self.keys, self.values = (buffer[:, :, : self._end] for buffer in self._buffers)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Number of tokens of a row: those of its prompt and its own."""
        return self._prompt + (self._end - self._prompt) // self._members


class Steps:
    """The columns of a cache of fixed size: those of U prompts (0 to `prompt`), then `members` columns for each step.

    `index` (members,) holds the columns of the current step, on the device, since a recorded step cannot take another number.
    """

    def __init__(self, prompt: int, members: int, capacity: int, device: torch.device) -> None:
        self.prompt, self.members = prompt, members
        # Kernels need mask rows that begin at a multiple of 16 bytes.
        self.columns = -(-(prompt + members * capacity) // 8) * 8
        self.index = torch.arange(prompt, prompt + members, device=device)
        self.taken = 0

    def advance(self) -> None:
        """On the device: advance to the columns of the next step."""
        self.index += self.members

    def count(self) -> None:
        """On the host: count one more step."""
        self.taken += 1

    def rewind(self) -> None:
        """Back to the first step."""
        self.index.copy_(torch.arange(self.prompt, self.prompt + self.members, device=self.index.device))
        self.taken = 0


class FixedGroupCacheLayer(DynamicLayer):
    """As `GroupCacheLayer`; keys and values always have all columns; a mask has to hide the unwritten ones."""

    def __init__(self, keys: Tensor, values: Tensor, steps: Steps) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._steps = steps
        more = steps.columns - keys.shape[2]
        self.keys, self.values = (functional.pad(states, (0, 0, 0, more)) for states in (keys, values))

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values (U, heads, columns, size) with one more token of each row (U * members, heads, 1, size) in them."""
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            rows = states.unflatten(0, (-1, self._steps.members))[..., 0, :].transpose(1, 2)
            buffer.index_copy_(2, self._steps.index, rows.to(buffer.dtype))
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Number of tokens of a row: those of its prompt and its own."""
        return self._steps.prompt + self._steps.taken


def _extended(states: Tensor, capacity: int) -> Tensor:
    """States (B, heads, tokens, size) with capacity for more tokens."""
    rows, heads, length, size = states.shape
    buffer = states.new_empty(rows, heads, length + capacity, size)
    buffer[:, :, :length] = states
    return buffer
