"""Accuracy of shared and repeated prompts on the GPU, as distance to float64, and the time of a decoding step.

Distance is ||values - exact|| / ||exact||, with exact values in float64 on the same inputs, weights and tokens. Shared
prompts are correct if they are about as far from float64 as repeated ones: a sum in another order has other rounding.
"""

import copy
import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import GenerationConfig, LogitsProcessor

from differad.locators.grouped import attend_in_steps, decoding_groups, group_attention_mask
from differad.locators.transformers_hooks import cache_input
from differad.training.pictures import Batch, Pictures, join
from differad.training.prefix import (
    PromptCompletions,
    encode_prompts,
    generate_shared,
    position_ids,
    prompts_of,
    split_completions,
)
from differad.training.sequence import pack, packed_attention_mask
from gpu_context import Context, Row, attempt
from gpu_models import SHAPES, build_model

GROUP_SIZE = 8
_SMALL = replace(
    SHAPES["2B"], name="small", hidden=512, layers=6, heads=8, kv_heads=4, head=64, wide=1536, vocabulary=4000
)
_SMALL = replace(_SMALL, vision_hidden=256, vision_layers=6, vision_wide=512, vision_heads=4, deepstack=(1, 3, 5))


def rows(context: Context) -> Iterator[Row]:
    """Decoding steps, then distances in float32 and in bfloat16, then attention kernels."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield from decoding_rows(context)
    yield from distances(context)
    yield from attention_rows(context)


def distances(context: Context) -> Iterator[Row]:
    """Logits, losses and gradients in both precisions."""
    model = build_model(
        context.folder / "small", SHAPES["tiny"] if context.tiny else _SMALL, torch.float32, context.device
    )
    answered = make_batch(model, side=8 if context.tiny else 28, prompts=2, answer=4 if context.tiny else 24)
    exact = copy.deepcopy(model).double()
    for name in ("float32", "bfloat16"):
        arguments = (context, model, exact, answered, name)
        yield from attempt(f"logits of drawn tokens, {name}", lambda arguments=arguments: logits(*arguments))
        yield from attempt(f"loss and gradients, {name}", lambda arguments=arguments: gradients(*arguments))


def make_batch(model: Any, side: int, prompts: int, answer: int) -> PromptCompletions:
    """Prompts of different length with two images of side x side patches, each with GROUP_SIZE answers."""
    random, device = torch.Generator().manual_seed(0), model.device
    vision, image = model.config.vision_config, model.config.image_token_id
    width = 3 * vision.temporal_patch_size * vision.patch_size**2
    tokens = (side // vision.spatial_merge_size) ** 2
    ids, mask, patches = [], [], []
    for number in range(prompts):
        text = torch.randint(20, 900, (200 + 9 * number,), generator=random).tolist()
        row = [*text[:20], *[image] * tokens, *text[20:40], *[image] * tokens, *text[40:]]
        pads = 9 * (prompts - 1 - number)
        pixels = torch.randn(2 * side * side, width, generator=random)
        for _ in range(GROUP_SIZE):
            completion = torch.randint(20, 900, (answer,), generator=random).tolist()
            ids.append([0] * pads + row + completion)
            mask.append([0] * pads + [1] * (len(row) + answer))
            patches.append(pixels)
    count = prompts * GROUP_SIZE
    grids = torch.tensor([[1, side, side]], device=device).repeat(2 * count, 1)
    whole = torch.tensor(ids, device=device)
    images = Pictures(torch.cat(patches).to(device, model.dtype), grids, [2] * count)
    batch = Batch(whole, torch.tensor(mask, device=device), (whole == image).int(), images)
    return split_completions(batch, answer)


def precision(context: Context, name: str) -> AbstractContextManager[None]:
    """The trainer's bfloat16 autocast, or no autocast."""
    return torch.autocast(context.device.type, torch.bfloat16) if name == "bfloat16" else nullcontext()


def distance(values: Tensor, exact: Tensor) -> float:
    return float((values.double() - exact).norm() / exact.norm())


class ForceTokens(LogitsProcessor):  # type: ignore[misc] # of unknown type
    """Forces each row to given tokens (B, C), so that both sides generate the same."""

    def __init__(self, tokens: Tensor, start: int) -> None:
        self._tokens, self._start = tokens, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = self._tokens[:, input_ids.shape[1] - self._start, None]
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


@torch.no_grad()
def logits(context: Context, model: Any, exact: Any, answered: PromptCompletions, name: str) -> Row:
    """Distances of the logits from which each token is sampled."""
    batch, answer = answered.batch, answered.keep
    completions, prompt = batch.ids[:, answered.start :], batch.until(answered.start)
    config = GenerationConfig(max_new_tokens=answer, do_sample=False, pad_token_id=0, eos_token_id=None)
    settings: dict[str, Any] = {
        "logits_processor": [ForceTokens(completions, prompt.ids.shape[1])],
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    true = whole_logits(exact, in_double(batch), answer)
    with precision(context, name):
        repeated = model.generate(
            input_ids=prompt.ids, attention_mask=prompt.mask, mm_token_type_ids=prompt.types,
            **join(prompt.pictures.rows()), generation_config=config, **settings,
        ).logits  # fmt: skip
        shared = generate_shared(model, prompt, config, **settings).logits
    sides = {side: torch.stack(each, dim=1) for side, each in (("repeated", repeated), ("shared", shared))}
    return {f"{side}_to_float64": distance(each, true) for side, each in sides.items()}


def in_double(batch: Batch) -> Batch:
    return replace(batch, pictures=replace(batch.pictures, patches=batch.pictures.patches.double()))


def whole_logits(model: Any, batch: Batch, answer: int) -> Tensor:
    """Logits (B, C, V) of the answers' tokens in one pass over whole rows."""
    output = model(
        input_ids=batch.ids,
        attention_mask=batch.mask,
        mm_token_type_ids=batch.types,
        logits_to_keep=answer + 1,
        use_cache=False,
        **join(batch.pictures.rows()),
    )
    return output.logits[:, :-1]


def gradients(context: Context, model: Any, exact: Any, answered: PromptCompletions, name: str) -> Row:
    """Distances of a policy loss, and of the gradients of all language model weights as one vector."""
    batch, answer = answered.batch, answered.keep
    completions = batch.ids[:, answered.start :]
    weights = torch.linspace(-1, 1, len(completions), device=completions.device, dtype=torch.float64)[:, None]

    def in_rows(policy: Any, rows: Batch) -> Tensor:
        scores = whole_logits(policy, rows, answer)
        scores = scores.float() if policy is model else scores
        return scores.log_softmax(dim=-1).gather(2, completions[..., None])[..., 0]

    def in_sequences(policy: Any, rows: Batch) -> Tensor:
        packed = pack(policy, split_completions(rows, answer))
        log_probs = policy(**packed.inputs, use_cache=False).logits[:, :-1].float().log_softmax(dim=-1)
        targets = packed.labels[:, 1:].clamp(min=0)
        return packed.rows(log_probs.gather(2, targets[..., None])[..., 0])

    def loss_and_gradients(policy: Any, score: Callable[[Any, Batch], Tensor], rows: Batch) -> tuple[Tensor, Tensor]:
        policy.zero_grad()
        loss = (score(policy, rows).double() * weights).mean()
        loss.backward()
        parts = [p.grad.double().flatten() for p in policy.model.language_model.parameters() if p.grad is not None]
        return loss.detach(), torch.cat(parts)

    true_loss, true = loss_and_gradients(exact, in_rows, in_double(batch))
    row: Row = {}
    for side, score in (("repeated", in_rows), ("shared", in_sequences)):
        with precision(context, name):
            loss, computed = loss_and_gradients(model, score, batch)
        row |= {f"{side}_loss_off": float((loss - true_loss).abs()), f"{side}_to_float64": distance(computed, true)}
    return row


def attention_rows(context: Context) -> Iterator[Row]:
    """Kernels with the masks of a decoding step and of the loss, at a 2B model's sizes."""
    shape = SHAPES["tiny"] if context.tiny else SHAPES["2B"]
    prompt, answer = (40, 4) if context.tiny else (2248, 64)
    repeats = shape.heads // shape.kv_heads
    device, dtype = context.device, torch.bfloat16
    columns = -(-(prompt + GROUP_SIZE * answer) // 8) * 8
    allowed = group_attention_mask(torch.ones(1, prompt, device=device), GROUP_SIZE, answer).repeat(1, repeats, 1)[
        :, None
    ]
    allowed = functional.pad(allowed, (0, columns - allowed.shape[-1]))
    step = torch.randn(1, shape.kv_heads, repeats * GROUP_SIZE, shape.head, device=device, dtype=dtype)
    keys = torch.randn(1, shape.kv_heads, columns, shape.head, device=device, dtype=dtype)
    mask = torch.zeros(allowed.shape, device=device, dtype=dtype).masked_fill(~allowed, -torch.inf)
    yield from kernels(context, "attention of a step of a rollout", step, keys, mask, {})
    yield from attempt(
        "attention of a step of a rollout, in steps",
        lambda: timed(context, lambda: attend_in_steps(step, keys, keys, mask, None), step, keys, mask),
    )
    whole = packed_attention_mask(torch.ones(1, prompt - 1, device=device), GROUP_SIZE, answer + 1)[:, None]
    length = whole.shape[-1]
    query = torch.randn(1, shape.heads, length, shape.head, device=device, dtype=dtype)
    yield from kernels(context, "attention of the loss, forward", query, query.clone(), whole, {"length": length})


def kernels(context: Context, what: str, query: Tensor, keys: Tensor, mask: Tensor, more: Row) -> Iterator[Row]:
    """One row per kernel that supports the mask."""
    fused = (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION) if context.device.type == "cuda" else ()
    for backend in (*fused, SDPBackend.MATH):

        def run(backend: Any = backend) -> Tensor:
            with sdpa_kernel(backend):
                return functional.scaled_dot_product_attention(query, keys, keys, attn_mask=mask)

        yield from attempt(
            f"{what}, {backend.name.lower()}", lambda run=run: timed(context, run, query, keys, mask) | more
        )


def timed(context: Context, run: Callable[[], Tensor], query: Tensor, keys: Tensor, mask: Tensor) -> Row:
    """Milliseconds of an attention call, and its distance to float64."""
    wide = mask if mask.dtype == torch.bool else mask.double()
    exact = functional.scaled_dot_product_attention(query.double(), keys.double(), keys.double(), attn_mask=wide)
    error, count = distance(run(), exact), 1 if context.tiny else 20
    repeated = recorded(context, lambda: [run() for _ in range(count)])
    return {"ms": 1e3 * context.seconds(repeated) / count, "to_float64": error}


def recorded(context: Context, work: Callable[[], Any]) -> Callable[[], Any]:
    """Work as a CUDA graph, so that launches do not dominate its time; unchanged on a CPU."""
    if context.device.type != "cuda":
        return work
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def decoding_rows(context: Context) -> Iterator[Row]:
    """Milliseconds per token of a whole group, launched kernel by kernel and recorded, with the floor."""
    shape = SHAPES["tiny"] if context.tiny else SHAPES["2B"]
    if not context.has(8):
        return
    gc.collect()
    model = build_model(context.folder / "large", shape, torch.bfloat16, context.device)
    answered = make_batch(model, side=8 if context.tiny else 64, prompts=1, answer=1)
    prompt = answered.batch.until(answered.start)
    tokens = 4 if context.tiny else 48
    copied = context.earlier("card", "device copy") or {}
    read = 2 * (shape.text_weights() + shape.head_weights())
    read += 4 * shape.layers * shape.kv_heads * shape.head * (prompt.ids.shape[1] + GROUP_SIZE * tokens)
    floor = 1e3 * read / (copied["tb_per_s"] * 1e12) if copied.get("tb_per_s") else None
    for what, fixed in (("launched", False), ("recorded", None)):
        row = attempt(f"step of a rollout, {what}", lambda fixed=fixed: steps(context, model, prompt, tokens, fixed))
        yield {**next(row), "floor_ms": floor}
    config = GenerationConfig(max_new_tokens=tokens, do_sample=True, pad_token_id=0, eos_token_id=None)
    whole = attempt(
        "token of generate, recorded", lambda: {"ms": 1e3 * generate_seconds(context, model, prompt, config) / tokens}
    )
    yield {**next(whole), "floor_ms": floor}


def generate_seconds(context: Context, model: Any, prompt: Batch, config: GenerationConfig) -> float:
    """Seconds of `generate_shared` without encoding its prompts."""
    whole = context.seconds(lambda: generate_shared(model, prompt, config), repeats=3)
    with torch.no_grad():
        prompts = context.seconds(lambda: encode_prompts(model, prompt, prompts_of(prompt)), repeats=3)
    return whole - prompts


@torch.no_grad()
def steps(context: Context, model: Any, prompt: Batch, tokens: int, fixed: bool | None) -> Row:
    """Milliseconds of the model's step without sampling, and of the first step with its recording."""
    prompts = prompts_of(prompt)
    cache = encode_prompts(model, prompt, prompts)
    positions, _ = position_ids(model, prompt)
    mask, row = prompt.mask[prompts.first, :-1], {}
    with decoding_groups(model, cache, mask, GROUP_SIZE, tokens, fixed=fixed):

        def one(number: int) -> None:
            step_positions = positions[:, :, -1:] + number
            embeds = model.get_input_embeddings()(prompt.ids[:, -1:])
            hidden = model.get_decoder()(
                inputs_embeds=embeds,
                position_ids=step_positions,
                use_cache=True,
                **cache_input(model.get_decoder(), cache),
            )
            model.lm_head(hidden.last_hidden_state)

        counted = iter(range(tokens))
        row["first_ms"] = 1e3 * context.seconds(lambda: one(next(counted)), repeats=1, warm_up=0)
        row["ms"] = 1e3 * context.seconds(lambda: one(next(counted)), repeats=tokens - 2, warm_up=1)
    return row
