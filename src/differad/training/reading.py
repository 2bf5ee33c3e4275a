"""The embedded policy's reading lesson: from proposals to text, before it is shown a picture.

The language model has to learn that a proposal's places are the numbers of its answer. From pictures alone it takes thousands of
pairs to find that out; here boxes are made up, so that the lesson costs a minute: the first two proposals are near the
truth, as the comparer's are, the others are not, and their peaks tell abnormal from normal. The other tokens are noise.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from differad.answers.formats import answer_format
from differad.answers.parsing import Frame, format_answer
from differad.boxes import no_boxes
from differad.locators.tiny.processor import MERGE, REFERENCE_GRID
from differad.locators.tiny.proposals import PROPOSALS
from differad.progress import track

BATCH, RATE = 64, 1e-3
ABNORMAL = 0.65
# Sides of made-up boxes, shares of the picture's; sides of the target's grid in tokens.
_SMALLEST, _LARGEST = 0.02, 0.6
_FEWEST, _MOST = 2, 5
# A proposal's edge lies off the truth's by this share of its side (closely cut), or outside by up to twice it (widely cut).
_CLOSE, _WIDE = 0.05, 0.1
# Peak logits over 4: mean and deviation where there is a defect, the negative mean where there is none.
_PEAK, _PEAK_SPREAD = 0.6, 0.3
# A frame of as many pixels as thousandths: boxes are made up in them.
_FRAME = Frame(1000, 1000)


def pretrain_boxes(model: Any, tokenizer: Any, steps: int, seed: int) -> None:
    """Train `model` on `steps` batches of made-up proposals, on an accelerator if there is one; one seed, one result."""
    home = model.device
    model.to(torch.accelerator.current_accelerator() if torch.accelerator.is_available() else home)
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, betas=(0.9, 0.98))
    noise = torch.Generator().manual_seed(seed)
    for _ in track(range(steps), "reading lesson", total=steps):
        known, truth = make_up(rng, BATCH)
        loss = _loss(model, tokenizer, known, truth, _grid(rng), noise)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.to(home)


def make_up(rng: np.random.Generator, count: int) -> tuple[Tensor, list[NDArray[np.float64]]]:
    """Proposals (count, PROPOSALS, 6) as `model.proposals` gives them, and true boxes (1, 4) or (0, 4) in thousandths."""
    truth = _boxes(rng, count)
    sides = np.tile(truth[:, 2:] - truth[:, :2], 2)
    close = truth + sides * rng.normal(0, _CLOSE, (count, 4))
    wide = truth + sides * np.array([-1, -1, 1, 1]) * np.abs(rng.normal(0, _WIDE, (count, 4)))
    others = [_boxes(rng, count) for _ in range(PROPOSALS - 2)]
    abnormal = rng.random(count) < ABNORMAL
    peak = np.where(abnormal, 1, -1) * _PEAK + rng.normal(0, _PEAK_SPREAD, count)
    lower = peak - np.abs(rng.normal(_PEAK, _PEAK_SPREAD, count))
    peaks = np.stack([peak, peak, *[lower] * len(others)], axis=1)[..., None]
    boxes = np.clip(np.stack([close, wide, *others], axis=1), 0, 1)
    known = np.concatenate([boxes, peaks, peaks - 0.1], axis=-1).astype(np.float32)
    boxed = [1000 * box[None] if given else no_boxes() for box, given in zip(truth, abnormal, strict=True)]
    return torch.from_numpy(known), boxed


def _boxes(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    sides = np.exp(rng.uniform(np.log(_SMALLEST), np.log(_LARGEST), (count, 2)))
    low = rng.uniform(0, 1, (count, 2)) * (1 - sides)
    return np.concatenate([low, low + sides], axis=1)


def _grid(rng: np.random.Generator) -> tuple[int, int]:
    height, width = rng.integers(_FEWEST, _MOST, 2)
    return int(height), int(width)


def _loss(
    model: Any, tokenizer: Any, known: Tensor, truth: list[NDArray[np.float64]], grid: tuple[int, int], noise: Any
) -> Tensor:
    """Cross-entropy of the answers' tokens, all of one length: numbers are tokens."""
    height, width = grid
    slots = ("<|vision_start|>" + "<|image_pad|>" * count + "<|vision_end|>" for count in (PROPOSALS, height * width))
    prompt = "".join(slots) + "<|im_start|>"
    written = [format_answer(boxes, answer_format("qwen2-vl"), _FRAME, reasoning="") for boxes in truth]
    ids = tokenizer(
        [f"{prompt}{text}<|im_end|>" for text in written], add_special_tokens=False, return_tensors="pt"
    ).input_ids.to(model.device)
    visual, count = model.model.visual, len(ids)
    like = torch.empty(1, 1, height, width, device=ids.device)
    target = torch.randn(count, height * width, visual.rank.embedding_dim, generator=noise).to(ids.device)
    tokens = torch.cat([visual.proposed(known.to(ids.device)), target + visual.placed(like)], dim=1)
    pictures = ids == model.config.image_token_id
    embedded = model.get_input_embeddings()(ids).masked_scatter(pictures[..., None], tokens)
    grids = torch.tensor([REFERENCE_GRID, (1, MERGE * height, MERGE * width)] * count, device=ids.device)
    everything = torch.ones_like(ids)
    places, _ = model.model.get_rope_index(
        input_ids=ids, mm_token_type_ids=pictures.int(), image_grid_thw=grids, attention_mask=everything
    )
    output = model.model.language_model(
        inputs_embeds=embedded, position_ids=places, attention_mask=everything, use_cache=False
    )
    start = int(pictures[0].nonzero().max()) + 3  # the picture's end, the answer's start, then the answer
    logits = model.lm_head(output.last_hidden_state[:, start - 1 : -1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, start:].flatten())
