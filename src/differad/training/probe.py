"""A test at the start of a run: does prefix sharing work with the installed releases of transformers and TRL?

Both libraries change, and sharing depends on their internals (`transformers_hooks`, `trl_hooks`). So a miniature of the run's
model computes one rollout, its log-probabilities and a loss with gradients twice, as TRL does and with shared prompts, from the
same inputs and random numbers. It uses a copy of the run's own trainer, with its settings, and does not change the run.

`agreement` compares the logits of each sampled token, each completion's log-probabilities, the losses and each gradient.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from differad.locators.agreement import FACTOR, disagreement, max_sum_rounding, size
from differad.locators.miniature import (
    PAD,
    VOCABULARY,
    WORDS,
    Sample,
    build_miniature,
    in_double,
    make_sample,
    same_random_state,
)
from differad.locators.prefix import obstacle
from differad.training.trl_hooks import copy_trainer

GROUP_SIZE, COMPLETION_LENGTH, BATCHES = 2, 4, 2
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class _Losses:
    """Losses, and each loss's gradients by weight name."""

    losses: list[float]
    gradients: list[dict[str, Tensor]]


@dataclass(frozen=True, eq=False)
class _Trainers:
    """Trainer copies: TRL's own, TRL's own in float64, and one with shared prompts; and the inputs that they process."""

    stock: Any
    exact: Any
    shared: Any
    sample: Sample
    answers: list[list[int]]
    logits: list[Tensor]
    inputs: dict[str, Any]

    @property
    def rounding(self) -> float:
        """Rounding error of one sum of numbers of size 1."""
        return max_sum_rounding(self.stock.model)


def find_difference(trainer: Any, bare: Any, cache_mb: int, *, trains_tower: bool) -> dict[str, str]:
    """Differences between sharing and TRL in this environment: one message each for "rollout" and "loss"; equal parts are absent.

    `bare`: the run's model without wrappers. `cache_mb`: limit of the vision cache in MiB. `trains_tower`: whether the vision
    tower has gradients. The loss is not tested if the model's layers do not allow sharing in it.
    """
    parts = {"rollout": _rollout_difference, "loss": _loss_difference}
    with same_random_state(trainer.accelerator.device), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the miniature, not the run
        trainers, reason = _result_or_error(lambda: _make_trainers(trainer, bare, cache_mb, trains_tower))
        if trainers is None:
            return dict.fromkeys(parts, str(reason))
        reasons = {}
        for part, compare in parts.items():
            difference, failure = _result_or_error(partial(compare, trainers))
            reasons[part] = difference or failure
    return {part: reason for part, reason in reasons.items() if reason is not None}


def _result_or_error(work: Callable[[], Result]) -> tuple[Result | None, str | None]:
    """The result of one part of the test, or its error message.

    A release may have changed anything, so any exception can occur. The run goes on without the part that failed, and a warning
    gives the reason; the miniature and the trainer copy are discarded, so no partial state remains.
    """
    try:
        return work(), None
    except Exception as error:  # noqa: BLE001
        return None, " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _make_trainers(trainer: Any, bare: Any, cache_mb: int, trains_tower: bool) -> _Trainers:
    model = build_miniature(bare)
    model.model.visual.requires_grad_(trains_tower)
    random = torch.Generator().manual_seed(0)
    sample = make_sample(model, GROUP_SIZE, random, 2 * BATCHES)  # more than one prompt per batch
    models = (model, in_double(model), copy.deepcopy(model))
    stock, exact, shared = (_stand_in(trainer, each, batches=BATCHES) for each in models)
    shared.configure_sharing(True, cache_mb)
    answers, logits = _generate(stock, sample)
    return _Trainers(stock, exact, shared, sample, answers, logits, _inputs(sample, answers, random))


def _rollout_difference(trainers: _Trainers) -> str | None:
    """Difference in generated tokens, their logits, and log-probabilities without gradients."""
    exact, sample, inputs, answers = trainers.exact, trainers.sample, trainers.inputs, trainers.answers
    with trainers.shared.one_rollout():
        generated, logits = _generate(trainers.shared, sample)
        shared = _log_probs(trainers.shared, inputs)
    steps = zip(logits, trainers.logits, _logits(exact.model, sample, answers), strict=True)
    for step, parts in enumerate(steps):
        if message := disagreement(f"logits of token {step}", *parts, trainers.rounding * size(parts[2])):
            return message
    if generated != answers:
        return "the same random numbers give other tokens"
    expected, true = (_log_probs(each, inputs) for each in (trainers.stock, exact))
    for row, parts in enumerate(zip(shared, expected, true, strict=True)):
        if message := disagreement(f"log-probabilities of answer {row}", *parts, trainers.rounding * size(parts[2])):
            return message
    return None


def _loss_difference(trainers: _Trainers) -> str | None:
    """Difference in a loss and its gradients, with packed sequences and with a cache."""
    if obstacle(trainers.stock.model, cached=False, learns=True) is not None:
        return None
    expected, true = (_losses(each, trainers.inputs, [None]) for each in (trainers.stock, trainers.exact))
    return _difference(_losses(trainers.shared, trainers.inputs, [True, False]), expected, true, trainers.rounding)


def find_masking_difference(trainer: Any, bare: Any) -> str | None:
    """How TRL's loss with a masked completion differs from its loss without that completion, in one line; None if it does not.

    No prompts are shared. None too if a miniature of the model cannot be trained, because then nothing is known.
    """
    with same_random_state(trainer.accelerator.device), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # An error is ignored: the run itself will show whether its model trains.
        return _result_or_error(lambda: _compare_means(trainer, bare))[0]


def _compare_means(trainer: Any, bare: Any) -> str | None:
    model = build_miniature(bare)
    random = torch.Generator().manual_seed(0)
    sample = make_sample(model, GROUP_SIZE, random)
    count = len(sample.prompts) - 1
    masking, shorter, exact = (
        _stand_in(trainer, each, batches=1) for each in (model, copy.deepcopy(model), in_double(model))
    )
    for each in (masking, shorter, exact):
        each.aux_loss_enabled = False  # expert balancing counts every token, masked completions included
    answers = torch.randint(PAD + 1, WORDS, (count + 1, COMPLETION_LENGTH), generator=random).tolist()
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
    masked = _losses(masking, inputs, [None])
    expected, true = (_losses(each, others, [None]) for each in (shorter, exact))
    return _difference(masked, expected, true, max_sum_rounding(model))


def _stand_in(trainer: Any, model: Any, batches: int) -> Any:
    """A copy of a trainer for a miniature, without sharing."""
    copied = copy_trainer(trainer, model, batches=batches, max_new_tokens=COMPLETION_LENGTH, pad=PAD, unused=VOCABULARY)
    copied.configure_sharing(False, 0)
    return copied


def _generate(trainer: Any, sample: Sample) -> tuple[list[list[int]], list[Tensor]]:
    """Completions of all rows, and the logits (B, V) of each of their tokens.

    The model is in evaluation mode, so no group is resampled.
    """
    model, logits = trainer.model, []
    hook = model.get_output_embeddings().register_forward_hook(lambda _, __, output: logits.append(output[:, -1].cpu()))
    model.eval()
    torch.manual_seed(1)
    fields = {"pixel_values": sample.patches, "image_grid_thw": sample.grids, "mm_token_type_ids": sample.kinds}
    images = [[None, None] for _ in sample.prompts]
    answers: list[list[int]] = trainer._generate_single_turn(sample.prompts, images, fields, GROUP_SIZE)[0]
    model.train()
    hook.remove()
    return answers, logits[-COMPLETION_LENGTH:]


@torch.no_grad()
def _logits(model: Any, sample: Sample, answers: list[list[int]]) -> list[Tensor]:
    """Logits (B, V) of each completion token, in one pass over whole rows."""
    sample = sample.to(model.device)
    ids, mask, kinds = _rows(sample, torch.tensor(answers, device=sample.patches.device))
    output = model(
        input_ids=ids,
        attention_mask=mask,
        mm_token_type_ids=kinds,
        pixel_values=sample.patches,
        image_grid_thw=sample.grids,
    )
    return list(output.logits[:, -COMPLETION_LENGTH - 1 : -1].cpu().unbind(1))


def _rows(sample: Sample, completions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, mask and token types (B, P + C) of left-padded prompts and completions (B, C)."""
    longest = max(map(len, sample.prompts))
    prompts = torch.tensor([[PAD] * (longest - len(row)) + row for row in sample.prompts], device=completions.device)
    ids = torch.cat([prompts, completions], dim=1)
    return (
        ids,
        torch.cat([prompts != PAD, torch.ones_like(completions)], dim=1).long(),
        (ids == sample.image_token).int(),
    )


def _inputs(sample: Sample, answers: list[list[int]], random: torch.Generator) -> dict[str, Any]:
    """Inputs of a loss, with random advantages and earlier log-probabilities; the second completion is the shortest."""
    device, rows = sample.patches.device, len(answers)
    completion_mask = torch.ones(rows, COMPLETION_LENGTH, dtype=torch.long, device=device)
    completion_mask[1, 2:] = 0
    ids, mask, kinds = _rows(sample, torch.tensor(answers, device=device) * completion_mask)
    earlier = -4 + 0.1 * torch.randn(2, rows, COMPLETION_LENGTH, generator=random)
    return {
        "prompt_ids": ids[:, :-COMPLETION_LENGTH],
        "prompt_mask": mask[:, :-COMPLETION_LENGTH],
        "completion_ids": ids[:, -COMPLETION_LENGTH:],
        "completion_mask": completion_mask,
        "advantages": torch.randn(rows, generator=random).to(device),
        "old_per_token_logps": earlier[0].to(device),
        "ref_per_token_logps": earlier[1].to(device),
        "num_items_in_batch": completion_mask.sum(),
        "pixel_values": sample.patches,
        "image_grid_thw": sample.grids,
        "num_images": [2] * rows,
        "mm_token_type_ids": kinds,
    }


@torch.no_grad()
def _log_probs(trainer: Any, inputs: dict[str, Any]) -> Tensor:
    """A trainer's log-probabilities and entropies of completions, (B, 2 C), 0 after their end, on the CPU."""
    inputs = _on(trainer.model.device, inputs)
    names = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
    ids, mask = (
        torch.cat([inputs[f"{part}_{kind}"] for part in ("prompt", "completion")], dim=1) for kind in ("ids", "mask")
    )
    log_probs, entropies, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model, ids, mask, COMPLETION_LENGTH, 3, compute_entropy=True, **{name: inputs[name] for name in names}
    )
    return (torch.cat([log_probs, entropies], dim=1) * inputs["completion_mask"].repeat(1, 2)).cpu()


def _losses(trainer: Any, inputs: dict[str, Any], packing: list[bool | None]) -> _Losses:
    """A trainer's losses with gradients, one for each value of `packing`: True packs sequences, False uses a cache."""
    model, steps = trainer.model, trainer.args.steps_per_generation
    inputs = _on(model.device, inputs)
    trainer._generate_and_score_completions = lambda _: dict(inputs)
    losses, gradients = [], []
    for trainer.use_packing in packing:
        model.zero_grad()
        torch.manual_seed(2)  # rows are shuffled before they are split into batches
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


def _difference(actual: _Losses, expected: _Losses, exact: _Losses, rounding: float) -> str | None:
    """A message if `actual` is further from `exact` than `expected` allows; `rounding`: error of one sum of numbers of size 1."""
    approximate, true = _flat(expected.gradients[0]), _flat(exact.gradients[0])
    for loss, gradients in zip(actual.losses, actual.gradients, strict=True):
        # A loss is one number, a mean of terms of size 1 or more, and may be accurate by luck. So its tolerance follows from the
        # relative error of its gradient.
        allowed = (FACTOR * size(approximate - true) / size(true) + rounding) * max(1.0, abs(exact.losses[0]))
        if not abs(loss - exact.losses[0]) <= allowed:
            return f"a loss of {loss:.6g} in place of {exact.losses[0]:.6g}"
        if gradients.keys() != exact.gradients[0].keys():
            return "other weights have gradients"
        for name, values in gradients.items():
            parts = values, expected.gradients[0][name], exact.gradients[0][name]
            # Some gradients are sums that cancel, such as a key bias's; their terms are as large as those of other gradients.
            if message := disagreement(f"the gradient of {name}", *parts, rounding * size(true)):
                return message
    return None


def _flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradients[name].double().flatten() for name in sorted(gradients)])
