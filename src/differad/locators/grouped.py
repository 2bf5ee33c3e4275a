"""Decode the answers of a group as one sequence: the prompt's keys once, then the tokens of all answers, step by step.

A cache that repeats the prompt for each of G answers is read G times at every token, which is most of the cost of decoding.
Here the G tokens of a step are queries of one sequence, and a mask lets each of them attend to the prompt and its own answer.
They attend to the same keys as in separate rows, so that samples are the same up to rounding, in a cache of a fraction of the
size. Hydragen (arXiv 2402.05099) splits the attention sum for the same purpose.

Knows nothing of images, rewards or trainers. Raises nothing of its own.
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

# Name of the replaced attention; transformers makes masks for its own attentions only.
ATTENTION = "differad_groups"
# Whether torch.bmm has `out_dtype`: products of half precision summed in float32.
_HAS_OUT_DTYPE = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)


def completions_per_prompt(prompt_index: Tensor) -> int | None:
    """Completions per prompt, given the prompt index of each row (B,); None if groups are unequal or not contiguous."""
    groups = int(prompt_index.max()) + 1
    members, rest = divmod(len(prompt_index), groups)
    even = torch.arange(groups, device=prompt_index.device).repeat_interleave(members)
    return members if not rest and torch.equal(prompt_index, even) else None


def can_group(model: Any, cache: DynamicCache) -> bool:
    """Whether a model's text attention can be replaced and its cache holds every token, or states."""
    return hooks.supports_masks(model) and hooks.can_keep(cache)


@contextmanager
def decoding_groups(
    model: Any, cache: DynamicCache, mask: Tensor, members: int, capacity: int, *, fixed: bool | None = None
) -> Iterator[None]:
    """Within the context, `model` decodes U groups of `members` rows, a token per step, at most `capacity` tokens.

    `cache` holds the U prompts, with padding by `mask` (U, P); its layers are replaced permanently. `fixed`: buffers of fixed
    size, so that a step can be recorded as a CUDA graph; None: on a GPU.
    """
    config = model.config.get_text_config()
    repeats = config.num_attention_heads // config.num_key_value_heads
    attends = group_attention_mask(mask, members, capacity).repeat(1, repeats, 1)[:, None]
    added_mask = added(attends, hooks.dtype_of_keys(cache))
    with ExitStack() as stack:
        # Recording runs steps, which would change the states of recurrent layers.
        if hooks.holds_every_token(cache) and (added_mask.is_cuda if fixed is None else fixed):
            added_mask = _fix(model, cache, added_mask, members, capacity, stack)
        else:
            hooks.with_groups(cache, members, capacity)
        stack.enter_context(hooks.replaced_attention(model, ATTENTION, GroupAttention(added_mask, repeats)))
        yield


def _fix(model: Any, cache: DynamicCache, added_mask: Tensor, members: int, capacity: int, stack: ExitStack) -> Tensor:
    """Give `cache` buffers of fixed size and let `model` decode by recorded steps; returns the mask, which every step extends."""
    steps = hooks.with_fixed_groups(cache, members, capacity)
    # Every step opens the columns of the members' own tokens in the same pattern.
    own_tokens = added_mask[..., steps.prompt : steps.prompt + members].clone()
    fixed = functional.pad(added_mask, (0, steps.columns - added_mask.shape[-1]))
    fixed[..., steps.prompt :] = -torch.inf

    def rewind() -> None:
        steps.rewind()
        fixed[..., steps.prompt :] = -torch.inf

    decoder = model.get_decoder()
    step = RecordedStep(
        decoder.forward,
        before=lambda: fixed.index_copy_(3, steps.index, own_tokens),
        after=steps.advance,
        rewind=rewind,
        record=added_mask.is_cuda,
    )
    stack.enter_context(stepping(decoder, step, taken=steps.count))
    return fixed


def group_attention_mask(mask: Tensor, members: int, capacity: int) -> Tensor:
    """Mask (U, members, P + capacity * members): a member attends to its prompt (U, P) without pads and to its own tokens."""
    prompt = mask.bool()[:, None].expand(-1, members, -1)
    own_tokens = torch.eye(members, dtype=torch.bool, device=mask.device).repeat(1, capacity)
    return torch.cat([prompt, own_tokens.expand(len(mask), -1, -1)], dim=2)


def added(attends: Tensor, dtype: torch.dtype) -> Tensor:
    """The additive mask of an attention: 0 where it attends, minus infinity elsewhere."""
    return torch.zeros(attends.shape, dtype=dtype, device=attends.device).masked_fill_(~attends, -torch.inf)


@dataclass(frozen=True, eq=False)
class GroupAttention:
    """A grouped attention with transformers' signature; `repeats` query heads share one key head.

    `mask` (U, 1, repeats * G, P + capacity * G) is added: 0 where a member attends, minus infinity elsewhere.
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
        # The G queries of all heads that share a key head: one matrix per group.
        queries = query[:, :, 0].view(groups, -1, shared, self.repeats, size).permute(0, 2, 3, 1, 4).flatten(2, 3)
        mask = self.mask[..., :length].to(query.dtype)
        if key.is_cuda and _HAS_OUT_DTYPE:
            output = attend_in_steps(queries, key, value, mask, scaling)
        else:
            output = functional.scaled_dot_product_attention(queries, key, value, attn_mask=mask, scale=scaling)
        output = output.unflatten(2, (self.repeats, -1)).permute(0, 3, 1, 2, 4)
        return output.reshape(len(query), 1, -1, size), None


def attend_in_steps(queries: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    """Attention as product, softmax, product, with sums in float32; shapes as in `scaled_dot_product_attention`.

    For few queries a GPU's fused kernels take twice as long: they use one multiprocessor per key head, however many keys there
    are (docs/gpu.md).
    """
    device = key.device.type
    if torch.is_autocast_enabled(device):
        half = torch.get_autocast_dtype(device)
        queries, key, value = (each.to(half) for each in (queries, key, value))
    rows, keys = queries.flatten(0, 1), key.flatten(0, 1).transpose(1, 2)
    products = torch.bmm(rows, keys, out_dtype=torch.float32) if key.is_cuda else torch.bmm(rows.float(), keys.float())
    scores = products.unflatten(0, queries.shape[:2]) * (scaling or queries.shape[-1] ** -0.5) + mask
    return scores.softmax(dim=-1).to(value.dtype) @ value
