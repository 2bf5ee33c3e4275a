"""Box pretraining of the embedded policy: from proposals to text, before training on images.

The language model must learn that a proposal's coordinates are the numbers of its answer. Learning this from images takes
thousands of pairs; with random boxes it takes a minute. The first two proposals are near the truth, like the change encoder's;
the others are not. The proposals' peaks tell abnormal from normal. The other tokens are noise.
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
# Sides of random boxes, as shares of the image's; range of the target grid's sides in tokens, the upper end excluded.
_SMALLEST, _LARGEST = 0.02, 0.6
_FEWEST, _MOST = 2, 5
# Deviations of a proposal's edge from the truth's, as shares of the side: both ways (tight box), or outwards only (loose box).
_CLOSE, _WIDE = 0.05, 0.1
# Peak logits / 4: mean and deviation with a defect; without one the mean is negative.
_PEAK, _PEAK_SPREAD = 0.6, 0.3
# A frame whose pixels are thousandths, the unit of the random boxes.
_FRAME = Frame(1000, 1000)


def pretrain_boxes(model: Any, tokenizer: Any, steps: int, seed: int) -> None:
    """Train `model` on `steps` batches of random proposals, on an accelerator if there is one; the seed fixes the result."""
    device = model.device
    model.to(torch.accelerator.current_accelerator() if torch.accelerator.is_available() else device)
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, betas=(0.9, 0.98))
    noise = torch.Generator().manual_seed(seed)
    for _ in track(range(steps), "box pretraining", total=steps):
        proposals, truth = random_proposals(rng, BATCH)
        loss = _loss(model, tokenizer, proposals, truth, _grid(rng), noise)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.to(device)


def random_proposals(rng: np.random.Generator, count: int) -> tuple[Tensor, list[NDArray[np.float64]]]:
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
    proposals = np.concatenate([boxes, peaks, peaks - 0.1], axis=-1).astype(np.float32)
    true_boxes = [
        1000 * box[None] if is_abnormal else no_boxes() for box, is_abnormal in zip(truth, abnormal, strict=True)
    ]
    return torch.from_numpy(proposals), true_boxes


def _boxes(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    sides = np.exp(rng.uniform(np.log(_SMALLEST), np.log(_LARGEST), (count, 2)))
    low = rng.uniform(0, 1, (count, 2)) * (1 - sides)
    return np.concatenate([low, low + sides], axis=1)


def _grid(rng: np.random.Generator) -> tuple[int, int]:
    height, width = rng.integers(_FEWEST, _MOST, 2)
    return int(height), int(width)


def _loss(
    model: Any, tokenizer: Any, proposals: Tensor, truth: list[NDArray[np.float64]], grid: tuple[int, int], noise: Any
) -> Tensor:
    """Cross-entropy of the answers' tokens. All answers have the same length, because each number is one token."""
    height, width = grid
    slots = ("<|vision_start|>" + "<|image_pad|>" * count + "<|vision_end|>" for count in (PROPOSALS, height * width))
    prompt = "".join(slots) + "<|im_start|>"
    answers = [format_answer(boxes, answer_format("qwen2-vl"), _FRAME, reasoning="") for boxes in truth]
    ids = tokenizer(
        [f"{prompt}{text}<|im_end|>" for text in answers], add_special_tokens=False, return_tensors="pt"
    ).input_ids.to(model.device)
    visual, count = model.model.visual, len(ids)
    grid_shape = torch.empty(1, 1, height, width, device=ids.device)
    target = torch.randn(count, height * width, visual.rank.embedding_dim, generator=noise).to(ids.device)
    tokens = torch.cat([visual.proposed(proposals.to(ids.device)), target + visual.placed(grid_shape)], dim=1)
    is_image = ids == model.config.image_token_id
    embedded = model.get_input_embeddings()(ids).masked_scatter(is_image[..., None], tokens)
    grids = torch.tensor([REFERENCE_GRID, (1, MERGE * height, MERGE * width)] * count, device=ids.device)
    mask = torch.ones_like(ids)
    position_ids, _ = model.model.get_rope_index(
        input_ids=ids, mm_token_type_ids=is_image.int(), image_grid_thw=grids, attention_mask=mask
    )
    output = model.model.language_model(
        inputs_embeds=embedded, position_ids=position_ids, attention_mask=mask, use_cache=False
    )
    start = int(is_image[0].nonzero().max()) + 3  # the image's end, the answer's start, then the answer
    logits = model.lm_head(output.last_hidden_state[:, start - 1 : -1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, start:].flatten())
