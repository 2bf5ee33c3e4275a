"""Answers of a group decoded as one sequence: the prompt's keys stand once, behind them every answer's tokens in turn.

A cache that repeats the prompt for each of G answers is read G times at every token, which is most of what decoding costs.
Here the G tokens of a step are queries of one sequence, and a mask lets each of them see the prompt and its own answer. They
attend to the same keys as in rows of their own, so that draws are the same up to rounding, in a cache of a fraction of the
size. Hydragen (arXiv 2402.05099) splits the sum for the same end.

Knows nothing of pictures, rewards or trainers. Raises nothing of its own.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from differad.locators import transformers_hooks as hooks
from differad.locators.recorded import RecordedStep, stepping

# What the text model's attention is called meanwhile; masks of transformers are made for attentions of its own alone.
ATTENTION = "differad_groups"
# Whether products of half precision can be given in float32.
_SUMS_WIDE = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)


def members_of(of_row: Tensor) -> int | None:
    """How many rows stand on each prompt, given the prompt of each row (B,); None unless all have as many, side by side."""
    groups = int(of_row.max()) + 1
    members, rest = divmod(len(of_row), groups)
    even = torch.arange(groups, device=of_row.device).repeat_interleave(members)
    return members if not rest and torch.equal(of_row, even) else None


def can_group(model: Any, cache: DynamicCache) -> bool:
    """Whether a model's text attention can be replaced, and its cache holds every token, or states."""
    return hooks.takes_masks(model) and hooks.can_keep(cache)


@contextmanager
def decoding_groups(
    model: Any, cache: DynamicCache, mask: Tensor, members: int, room: int, *, fixed: bool | None = None
) -> Iterator[None]:
    """Meanwhile `model` decodes U groups of `members` rows, a token a step, `room` tokens at most.

    `cache` holds the U prompts, whose pads `mask` (U, P) tells; its layers are replaced for good. `fixed`: buffers of one size,
    so that a step can be recorded as a CUDA graph; None: on a GPU.
    """
    config = model.config.get_text_config()
    repeats = config.num_attention_heads // config.num_key_value_heads
    sees = who_sees_what(mask, members, room).repeat(1, repeats, 1)[:, None]
    seen = added(sees, hooks.dtype_of_keys(cache))
    with ExitStack() as stack:
        # States of recurrent layers would be changed by the steps that record one.
        if hooks.holds_all(cache) and (seen.is_cuda if fixed is None else fixed):
            seen = _fix(model, cache, seen, members, room, stack)
        else:
            hooks.with_groups(cache, members, room)
        stack.enter_context(hooks.replaced_attention(model, ATTENTION, GroupAttention(seen, repeats)))
        yield


def _fix(model: Any, cache: DynamicCache, seen: Tensor, members: int, room: int, stack: ExitStack) -> Tensor:
    """Give `cache` buffers of one size and let `model` decode by recorded steps; the mask, which opens step by step."""
    steps = hooks.with_fixed_groups(cache, members, room)
    # The same columns open in every step: those of the members' own tokens.
    own = seen[..., steps.prompt : steps.prompt + members].clone()
    fixed = functional.pad(seen, (0, steps.columns - seen.shape[-1]))
    fixed[..., steps.prompt :] = -torch.inf

    def rewind() -> None:
        steps.rewind()
        fixed[..., steps.prompt :] = -torch.inf

    decoder = model.get_decoder()
    step = RecordedStep(
        decoder.forward,
        before=lambda: fixed.index_copy_(3, steps.index, own),
        after=steps.advance,
        rewind=rewind,
        record=seen.is_cuda,
    )
    stack.enter_context(stepping(decoder, step, taken=steps.count))
    return fixed


def who_sees_what(mask: Tensor, members: int, room: int) -> Tensor:
    """(U, members, P + room * members), true where a member attends: to its prompt (U, P) but for pads, to its own tokens."""
    prompt = mask.bool()[:, None].expand(-1, members, -1)
    own = torch.eye(members, dtype=torch.bool, device=mask.device).repeat(1, room)
    return torch.cat([prompt, own.expand(len(mask), -1, -1)], dim=2)


def added(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to an attention's scores: 0 where it sees, minus infinity elsewhere."""
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, -torch.inf)


@dataclass(frozen=True, eq=False)
class GroupAttention:
    """An attention as transformers calls it, for groups; `repeats` heads of a query share one of the keys'.

    `mask` (U, 1, repeats * G, P + room * G) is added: 0 where a member attends, minus infinity elsewhere.
    """

    mask: Tensor
    repeats: int

    def __call__(
        self,
        module: Any,  # noqa: ARG002 - transformers' order of arguments
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,  # noqa: ARG002
        scaling: float | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """(U * G, 1, heads, size) for queries (U * G, heads, 1, size), keys and values (U, heads / repeats, S, size)."""
        groups, shared, length, size = key.shape
        # The G queries of every head that shares a key's: one matrix a group.
        queries = query[:, :, 0].view(groups, -1, shared, self.repeats, size).permute(0, 2, 3, 1, 4).flatten(2, 3)
        mask = self.mask[..., :length].to(query.dtype)
        if key.is_cuda and _SUMS_WIDE:
            found = attend_in_steps(queries, key, value, mask, scaling)
        else:
            found = functional.scaled_dot_product_attention(queries, key, value, attn_mask=mask, scale=scaling)
        found = found.unflatten(2, (self.repeats, -1)).permute(0, 3, 1, 2, 4)
        return found.reshape(len(query), 1, -1, size), None


def attend_in_steps(queries: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    """Attention as products, softmax, products, with sums in float32; shapes as `scaled_dot_product_attention` takes them.

    For few queries a GPU's fused kernels take twice as long: they give each head of the keys to one of its many processors,
    however many keys there are (docs/gpu.md).
    """
    device = key.device.type
    if torch.is_autocast_enabled(device):
        half = torch.get_autocast_dtype(device)
        queries, key, value = (each.to(half) for each in (queries, key, value))
    rows, keys = queries.flatten(0, 1), key.flatten(0, 1).transpose(1, 2)
    products = torch.bmm(rows, keys, out_dtype=torch.float32) if key.is_cuda else torch.bmm(rows.float(), keys.float())
    scores = products.unflatten(0, queries.shape[:2]) * (scaling or queries.shape[-1] ** -0.5) + mask
    return scores.softmax(dim=-1).to(value.dtype) @ value
