"""Whether prompts can be shared with the releases of transformers and TRL at hand, tried at the start of a run.

Both libraries change, and the shared way knows some of their inside (`transformers_hooks`, `trl_hooks`). So a miniature of the
run's model takes one rollout, its log-probabilities and a loss with gradients, in TRL's own way and in the shared one, from the
same inputs and random numbers. It does so in a copy of the run's own trainer, with its settings, and leaves the run as it was.

Equal is what `agreement` says: the logits that a token was drawn by, each answer's log-probabilities, losses, each gradient.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from differad.locators.agreement import FACTOR, disagreement, size, sum_rounding
from differad.locators.miniature import (
    PAD,
    VOCABULARY,
    WORDS,
    Sample,
    build_miniature,
    draw_sample,
    in_double,
    same_random_state,
)
from differad.locators.prefix import obstacle
from differad.training.trl_hooks import stand_in

MEMBERS, ANSWER, BATCHES = 2, 4, 2
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class _Losses:
    """Losses, and the gradients of each by name."""

    losses: list[float]
    gradients: list[dict[str, Tensor]]


@dataclass(frozen=True, eq=False)
class _Trainers:
    """Stand-ins in TRL's own way, in that way in float64, and in the shared way, and what they draw from and score."""

    stock: Any
    exact: Any
    shared: Any
    sample: Sample
    answers: list[list[int]]
    logits: list[Tensor]
    inputs: dict[str, Any]

    @property
    def rounding(self) -> float:
        """Of one sum of numbers of size 1."""
        return sum_rounding(self.stock.model)


def find_difference(trainer: Any, bare: Any, memory_mb: int, *, trains_tower: bool) -> dict[str, str]:
    """How the shared way differs from TRL's own in this environment: a line for "rollout", for "loss"; none for what is the same.

    `bare`: the run's model without wrappers. `memory_mb`: MiB of image features that are kept. `trains_tower`: whether the vision
    tower has gradients. A loss that the model's layers do not let share is not tried.
    """
    parts = {"rollout": _rollout_difference, "loss": _loss_difference}
    with same_random_state(trainer.accelerator.device), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a model that nobody trains
        trainers, reason = _in_words(lambda: _make_trainers(trainer, bare, memory_mb, trains_tower))
        if trainers is None:
            return dict.fromkeys(parts, str(reason))
        reasons = {}
        for part, compare in parts.items():
            different, failed = _in_words(partial(compare, trainers))
            reasons[part] = different or failed
    return {part: reason for part, reason in reasons.items() if reason is not None}


def _in_words(work: Callable[[], Result]) -> tuple[Result | None, str | None]:
    """What a part of a trial gives, or how it failed.

    A release may have changed anything, which shows as any exception. The run goes on without what failed, and the user is told
    why; miniature and copy are thrown away, so nothing half done is left behind.
    """
    try:
        return work(), None
    except Exception as error:  # noqa: BLE001
        return None, " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _make_trainers(trainer: Any, bare: Any, memory_mb: int, trains_tower: bool) -> _Trainers:
    model = build_miniature(bare)
    model.model.visual.requires_grad_(trains_tower)
    random = torch.Generator().manual_seed(0)
    sample = draw_sample(model, MEMBERS, random, 2 * BATCHES)  # a batch has more than one prompt
    models = (model, in_double(model), copy.deepcopy(model))
    stock, exact, shared = (_stand_in(trainer, each, batches=BATCHES) for each in models)
    shared.start_sharing(True, memory_mb)
    answers, logits = _draw(stock, sample)
    return _Trainers(stock, exact, shared, sample, answers, logits, _inputs(sample, answers, random))


def _rollout_difference(trainers: _Trainers) -> str | None:
    """Of what is drawn, and of log-probabilities without gradients."""
    exact, sample, inputs, answers = trainers.exact, trainers.sample, trainers.inputs, trainers.answers
    with trainers.shared.one_draw():
        drawn, logits = _draw(trainers.shared, sample)
        found = _log_probs(trainers.shared, inputs)
    steps = zip(logits, trainers.logits, _logits(exact.model, sample, answers), strict=True)
    for step, parts in enumerate(steps):
        if told := disagreement(f"logits of token {step}", *parts, trainers.rounding * size(parts[2])):
            return told
    if drawn != answers:
        return "the same random numbers draw other tokens"
    expected, true = (_log_probs(each, inputs) for each in (trainers.stock, exact))
    for row, parts in enumerate(zip(found, expected, true, strict=True)):
        if told := disagreement(f"log-probabilities of answer {row}", *parts, trainers.rounding * size(parts[2])):
            return told
    return None


def _loss_difference(trainers: _Trainers) -> str | None:
    """Of a loss and its gradients, as whole sequences and behind a cache."""
    if obstacle(trainers.stock.model, cached=False, learns=True) is not None:
        return None
    expected, true = (_losses(each, trainers.inputs, [None]) for each in (trainers.stock, trainers.exact))
    return _difference(_losses(trainers.shared, trainers.inputs, [True, False]), expected, true, trainers.rounding)


def find_other_loss(trainer: Any, bare: Any) -> str | None:
    """How a loss that leaves an answer out differs from TRL's loss of the others alone, in one line; None where it does not.

    Nothing of it shares prompts. None also where a miniature of the model cannot be trained: then nothing is known.
    """
    with same_random_state(trainer.accelerator.device), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _in_words(lambda: _compare_means(trainer, bare))[
            0
        ]  # the run itself shows what its own model makes of it


def _compare_means(trainer: Any, bare: Any) -> str | None:
    model = build_miniature(bare)
    random = torch.Generator().manual_seed(0)
    sample = draw_sample(model, MEMBERS, random)
    count = len(sample.prompts) - 1
    dropping, whole, exact = (
        _stand_in(trainer, each, batches=1) for each in (model, copy.deepcopy(model), in_double(model))
    )
    for each in (dropping, whole, exact):
        each.aux_loss_enabled = False  # what balances experts counts every token, also of an answer that is left out
    answers = torch.randint(PAD + 1, WORDS, (count + 1, ANSWER), generator=random).tolist()
    inputs = _inputs(sample, answers, random)
    for name in ("completion_mask", "advantages"):
        inputs[name][count] = 0
    inputs["num_items_in_batch"] = inputs["completion_mask"].sum()
    others = {
        name: value[:count] if isinstance(value, Tensor) and value.dim() else value for name, value in inputs.items()
    }
    images = 2 * count
    patches = int(sample.grids[:images].prod(dim=1).sum())
    others |= {
        "pixel_values": sample.patches[:patches],
        "image_grid_thw": sample.grids[:images],
        "num_images": [2] * count,
    }
    found = _losses(dropping, inputs, [None])
    expected, true = (_losses(each, others, [None]) for each in (whole, exact))
    return _difference(found, expected, true, sum_rounding(model))


def _stand_in(trainer: Any, model: Any, batches: int) -> Any:
    """A copy of a trainer for a miniature, in TRL's own way."""
    copied = stand_in(trainer, model, batches=batches, max_new_tokens=ANSWER, pad=PAD, unused=VOCABULARY)
    copied.start_sharing(False, 0)
    return copied


def _draw(trainer: Any, sample: Sample) -> tuple[list[list[int]], list[Tensor]]:
    """Answers to all rows, and the logits (B, V) of each of their tokens.

    A model that is set to answer is drawn from once: no group is drawn anew.
    """
    model, logits = trainer.model, []
    watch = model.get_output_embeddings().register_forward_hook(
        lambda _, __, output: logits.append(output[:, -1].cpu())
    )
    model.eval()
    torch.manual_seed(1)
    fields = {"pixel_values": sample.patches, "image_grid_thw": sample.grids, "mm_token_type_ids": sample.kinds}
    images = [[None, None] for _ in sample.prompts]
    answers: list[list[int]] = trainer._generate_single_turn(sample.prompts, images, fields, MEMBERS)[0]
    model.train()
    watch.remove()
    return answers, logits[-ANSWER:]


@torch.no_grad()
def _logits(model: Any, sample: Sample, answers: list[list[int]]) -> list[Tensor]:
    """Logits (B, V) of each token of answers, in one pass over whole rows."""
    sample = sample.to(model.device)
    ids, mask, kinds = _rows(sample, torch.tensor(answers, device=sample.patches.device))
    output = model(
        input_ids=ids,
        attention_mask=mask,
        mm_token_type_ids=kinds,
        pixel_values=sample.patches,
        image_grid_thw=sample.grids,
    )
    return list(output.logits[:, -ANSWER - 1 : -1].cpu().unbind(1))


def _rows(sample: Sample, completions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, mask and kinds (B, P + C) of prompts, pads on their left, and completions (B, C)."""
    longest = max(map(len, sample.prompts))
    prompts = torch.tensor([[PAD] * (longest - len(row)) + row for row in sample.prompts], device=completions.device)
    ids = torch.cat([prompts, completions], dim=1)
    return (
        ids,
        torch.cat([prompts != PAD, torch.ones_like(completions)], dim=1).long(),
        (ids == sample.image_token).int(),
    )


def _inputs(sample: Sample, answers: list[list[int]], random: torch.Generator) -> dict[str, Any]:
    """What a loss takes, advantages and earlier log-probabilities drawn; the second answer is shorter than the others."""
    device, rows = sample.patches.device, len(answers)
    said = torch.ones(rows, ANSWER, dtype=torch.long, device=device)
    said[1, 2:] = 0
    ids, mask, kinds = _rows(sample, torch.tensor(answers, device=device) * said)
    earlier = -4 + 0.1 * torch.randn(2, rows, ANSWER, generator=random)
    return {
        "prompt_ids": ids[:, :-ANSWER],
        "prompt_mask": mask[:, :-ANSWER],
        "completion_ids": ids[:, -ANSWER:],
        "completion_mask": said,
        "advantages": torch.randn(rows, generator=random).to(device),
        "old_per_token_logps": earlier[0].to(device),
        "ref_per_token_logps": earlier[1].to(device),
        "num_items_in_batch": said.sum(),
        "pixel_values": sample.patches,
        "image_grid_thw": sample.grids,
        "num_images": [2] * rows,
        "mm_token_type_ids": kinds,
    }


@torch.no_grad()
def _log_probs(trainer: Any, inputs: dict[str, Any]) -> Tensor:
    """Log-probabilities and entropies (B, 2 C) that a trainer gives answers, 0 behind their end, on the CPU."""
    inputs = _on(trainer.model.device, inputs)
    names = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
    ids, mask = (
        torch.cat([inputs[f"{part}_{kind}"] for part in ("prompt", "completion")], dim=1) for kind in ("ids", "mask")
    )
    log_probs, entropies, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model, ids, mask, ANSWER, 3, compute_entropy=True, **{name: inputs[name] for name in names}
    )
    return (torch.cat([log_probs, entropies], dim=1) * inputs["completion_mask"].repeat(1, 2)).cpu()


def _losses(trainer: Any, inputs: dict[str, Any], ways: list[bool | None]) -> _Losses:
    """What a trainer learns from answers; one loss for each of `ways`, True for whole sequences, False behind a cache."""
    model, steps = trainer.model, trainer.args.steps_per_generation
    inputs = _on(model.device, inputs)
    trainer._generate_and_score_completions = lambda _: dict(inputs)
    losses, gradients = [], []
    for trainer.together in ways:
        model.zero_grad()
        torch.manual_seed(2)  # rows are shuffled before they are cut into batches
        trainer._buffered_inputs = None
        losses.append(0.0)
        for trainer._step in range(steps):
            loss = trainer._compute_loss(model, trainer._prepare_inputs([]))
            loss.backward()
            losses[-1] += loss.item()
        gradients.append({name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None})
    return _Losses(losses, gradients)


def _on(device: torch.device, inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}


def _difference(found: _Losses, expected: _Losses, exact: _Losses, rounding: float) -> str | None:
    """What lies further from `exact` than `expected` lets it; `rounding`: of one sum of numbers of size 1."""
    off, true = _flat(expected.gradients[0]), _flat(exact.gradients[0])
    for loss, gradients in zip(found.losses, found.gradients, strict=True):
        # A loss is a mean of terms of size 1 or more and one number, which may be right by luck: it may be as wrong as its
        # gradient is.
        allowed = (FACTOR * size(off - true) / size(true) + rounding) * max(1.0, abs(exact.losses[0]))
        if not abs(loss - exact.losses[0]) <= allowed:
            return f"a loss of {loss:.6g} in place of {exact.losses[0]:.6g}"
        if gradients.keys() != exact.gradients[0].keys():
            return "other weights have gradients"
        for name, values in gradients.items():
            parts = values, expected.gradients[0][name], exact.gradients[0][name]
            # Some gradients are sums that cancel, as a bias of keys': what they are summed of is as large as others are.
            if told := disagreement(f"the gradient of {name}", *parts, rounding * size(true)):
                return told
    return None


def _flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradients[name].double().flatten() for name in sorted(gradients)])
