"""Difficulty-aware GRPO: a thin subclass of TRL's trainer that resamples uninformative groups and weights groups by difficulty.

Two hooks are overridden. The first generates completions: it resamples uninformative groups and replaces their tokens and
log-probabilities, so everything that TRL derives afterwards (text, masks, lengths, reference log-probabilities, rewards,
metrics) belongs to the final rollout. The second computes advantages: it weights them per group and masks the completions of
groups that stayed uninformative; the loss is the mean over the others. Every decision uses values gathered over all processes,
so all ranks decide alike. The mathematics is in `advantages` and `localization`; `trl_hooks` checks the hooks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer
from trl.trainer import utils as trl_utils

from differad.answers.formats import AnswerFormat
from differad.errors import OptionError
from differad.locators.packed_images import into_strip, read_rows
from differad.rewards import format_scores
from differad.training.advantages import adaptive_weights, count_terms, is_uninformative, rows_of
from differad.training.callbacks import StartMessage
from differad.training.clock import ClockMixin
from differad.training.context import vllm_context
from differad.training.data import build_dataset
from differad.training.localization import Outcomes, localize
from differad.training.loop import EpochSampler, RunFoldersMixin, epoch_of, run_phase, trainer_config
from differad.training.policy import CheckpointParts, load_model, lora_config
from differad.training.probe import find_masking_difference
from differad.training.recipe import Grpo, RlRecipe
from differad.training.sharing import PrefixSharingMixin
from differad.training.trl_hooks import check_attributes, check_hooks, check_outputs, check_sampler, refuse_loss

Reward = Callable[..., list[float]]
# Completion ids of each row, and their log-probabilities at sampling if the engine returns them.
Completions = tuple[list[list[int]], list[list[float]] | None]
Value = TypeVar("Value", int, float)
_BY_GRID = ("pixel_values", "image_grid_thw")
# Per-token values that TRL computed before a completion was masked; 0 keeps their exp() finite.
_PER_TOKEN = ("old_per_token_logps", "ref_per_token_logps", "sampling_per_token_logps")


@dataclass(frozen=True, eq=False)
class Rollout:
    """A batch's final completions over all processes: localization rewards, IoU and misses, each (groups, G).

    `resamples` (groups,) counts each group's resamples; `uninformative` (groups,) marks groups that stayed uninformative.
    """

    localization: Tensor
    iou: Tensor
    missed: Tensor
    resamples: Tensor
    uninformative: Tensor


class CompletionDecoder:
    """Decodes completion ids for the rewards: the text up to its end token, with special tokens.

    TRL's own text lacks special tokens, which may include box tags. `format` is the policy's answer format.
    """

    def __init__(self, tokenizer: Any, end_ids: Sequence[int], answer_format: AnswerFormat) -> None:
        self.format = answer_format
        self._tokenizer = tokenizer
        self._ends = {*end_ids, tokenizer.pad_token_id}

    def __call__(self, completion_ids: Sequence[Sequence[int]]) -> list[str]:
        """The text of each completion."""
        return [str(self._tokenizer.decode(self._cut(list(ids)), skip_special_tokens=False)) for ids in completion_ids]

    def _cut(self, ids: list[int]) -> list[int]:
        return ids[: next((position for position, token in enumerate(ids) if token in self._ends), len(ids))]


def make_rewards(decoder: CompletionDecoder, name: str) -> list[Reward]:
    """The two TRL reward functions: `format_reward`, then `localization_reward`, the entry `name` of `VARIANTS`."""

    def format_reward(completion_ids: Sequence[Sequence[int]], **_columns: Any) -> list[float]:
        return [float(value) for value in format_scores(decoder(completion_ids), decoder.format)]

    def localization_reward(
        completion_ids: Sequence[Sequence[int]], solution: Sequence[Any], units: Sequence[Any], **_columns: Any
    ) -> list[float]:
        order = decoder.format.syntax.order
        return [float(value) for value in localize(decoder(completion_ids), solution, units, name, order).reward]

    return [format_reward, localization_reward]


class DifficultyAwareTrainer(ClockMixin, PrefixSharingMixin, RunFoldersMixin, GRPOTrainer):
    """GRPO with group-wise resampling and adaptive reweighting (arXiv 2606.16601)."""

    beta: float  # TRL's

    def __init__(self, *args: Any, grpo: Grpo, decoder: CompletionDecoder, **kwargs: Any) -> None:
        check_hooks()
        self.configure_sharing(grpo.share_prefix, grpo.remember_pictures_mb)
        super().__init__(*args, reward_funcs=make_rewards(decoder, grpo.reward), **kwargs)
        check_attributes(self)
        self.processing_class.device = self.accelerator.device
        self._grpo = grpo
        self._decoder = decoder
        self._rows: list[dict[str, Any]] = []
        self._rollout: Rollout | None = None
        self._scale = 1.0

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As TRL's, after tests with the installed releases. Raises OptionError if TRL's loss is no longer the expected one."""
        if not (
            self.is_fsdp_enabled or self.is_deepspeed_enabled
        ):  # these would treat the test's small model as the run's
            refuse_loss(self, find_masking_difference(self, self._unwrapped(self.model)))
        self.check_sharing()
        return super().train(*args, **kwargs)

    def _get_train_sampler(self, dataset: Any = None) -> EpochSampler:
        stock = super()._get_train_sampler(dataset)
        if self.args.shuffle_dataset:
            check_sampler(stock)
        return EpochSampler(stock, self.args.seed, lambda: epoch_of(self.state))

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: list[Any] | None,
        multimodal_fields: dict[str, Any],
        num_generations: int,
        **_tools: Any,
    ) -> Completions:
        """Generate completions and resample uninformative groups, up to the recipe's limit; all ranks take the same steps."""

        def generate(rows: list[int]) -> Completions:
            if len(rows) == len(prompt_ids):
                return self._generate_completions(prompt_ids, images, multimodal_fields, num_generations)
            chosen = [images[row] for row in rows] if images is not None else None
            fields = take_rows(multimodal_fields, images, rows)
            return self._generate_completions([prompt_ids[row] for row in rows], chosen, fields, num_generations)

        completions = self._generate_completions(prompt_ids, images, multimodal_fields, num_generations)
        if not self.model.training:
            return completions
        resamples = torch.zeros(
            len(prompt_ids) * self.accelerator.num_processes // self.num_generations, dtype=torch.long
        )
        for attempt in range(self._grpo.resamples + 1):
            localization, overlap, missed = self._gather(completions[0])
            uninformative = is_uninformative(localization)
            if attempt == self._grpo.resamples or not uninformative.any():
                break
            resamples += uninformative.cpu()
            rows = rows_of(uninformative, self.num_generations, self.accelerator.process_index, len(prompt_ids))
            whole_batch = not can_take_rows(multimodal_fields, images)
            fresh = self._resample(generate, rows, len(prompt_ids), whole_batch)
            completions = replace_rows(completions, rows, fresh)
        self._rollout = Rollout(localization, overlap, missed, resamples, uninformative)
        return completions

    def _generate_completions(
        self, prompt_ids: list[list[int]], images: list[Any] | None, fields: dict[str, Any], num_generations: int
    ) -> Completions:
        """TRL's completions of the given prompts."""
        fields = into_strip(fields) if getattr(self.processing_class, "by_row", False) else fields
        completions: Completions = super()._generate_single_turn(prompt_ids, images, fields, num_generations)
        return completions

    def _resample(
        self, generate: Callable[[list[int]], Completions], rows: list[int], count: int, whole_batch: bool
    ) -> Completions:
        """New completions for `rows`. A rank without any generates one unused row, because generation is collective.

        The whole batch is generated where `whole_batch` says so, and by a vLLM that serves several ranks, because it splits
        completions evenly among them.
        """
        shared = self.use_vllm and (self.vllm_mode == "server" or self.vllm_tensor_parallel_size > 1)
        generated = list(range(count)) if shared or whole_batch else rows or [0]
        ids, logps = generate(generated)
        wanted = [generated.index(row) for row in rows]
        return [ids[index] for index in wanted], None if logps is None else [logps[index] for index in wanted]

    def _gather(self, completion_ids: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Localization reward, IoU and miss of all processes' completions, each (groups, G), in float32 for MPS."""
        outcomes = self._outcomes(completion_ids)
        local = torch.tensor(
            [list(row) for row in zip(*outcomes, strict=True)], dtype=torch.float32, device=self.accelerator.device
        )
        gathered = self.accelerator.gather(local).view(-1, self.num_generations, 3)
        return gathered[..., 0], gathered[..., 1], gathered[..., 2].bool()

    def _outcomes(self, completion_ids: list[list[int]]) -> Outcomes:
        truths, units = ([row[name] for row in self._rows] for name in ("solution", "units"))
        order = self._decoder.format.syntax.order
        return localize(self._decoder(completion_ids), truths, units, self._grpo.reward, order)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._rows = inputs
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        check_outputs(output)
        if self._rollout is None or not self.model.training:  # evaluation: no resampling, no weights
            return output
        weights = torch.ones(len(self._rollout.uninformative), device=self._rollout.uninformative.device)
        if self._grpo.reweight:
            weights = adaptive_weights(self._rollout.localization, self._rollout.missed)
        count, rank = len(inputs), self.accelerator.process_index
        local = slice(rank * count, (rank + 1) * count)
        apply_weights(output, weights.repeat_interleave(self.num_generations)[local])
        mask_rows(output, rows_of(self._rollout.uninformative, self.num_generations, rank, count))
        mask = output["completion_mask"]
        output["num_items_in_batch"] = self.accelerator.gather(mask.sum()).sum()
        self._log_rollout(self._rollout, weights)
        return output

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """As TRL's; for a new rollout, count over all processes the terms that its losses average."""
        previous = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self.model.training and self._buffered_inputs is not previous:
            terms = count_terms(self.loss_type, [batch["completion_mask"] for batch in self._buffered_inputs])
            total, unmasked = self.accelerator.gather(torch.tensor([terms], device=self.accelerator.device)).sum(dim=0)
            self._scale = int(total) / max(int(unmasked), 1)
        return inputs

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """As TRL's, but the mean excludes masked completions, which TRL counts.

        The surrogate is scaled through the advantages, the KL term through its coefficient. An entropy bonus has its own mean.
        """
        scale = self._scale if self.model.training else 1.0
        beta = self.beta
        self.beta = beta * scale
        try:
            loss: Tensor = super()._compute_loss(model, {**inputs, "advantages": inputs["advantages"] * scale})
        finally:
            self.beta = beta
        return loss

    def _log_rollout(self, rollout: Rollout, weights: Tensor) -> None:
        """Add the batch's values to TRL's metrics; they come from gathered values and are the same on every rank."""
        values = {
            "iou": rollout.iou.mean(),
            "miss_rate": rollout.missed.float().mean(),
            "groups/informative": (~rollout.uninformative).float().mean(),
            "groups/redrawn": (rollout.resamples > 0).float().mean(),
            "groups/redraws": rollout.resamples.sum(),
        }
        learning = weights[~rollout.uninformative]
        if len(learning):
            values |= {"weights/mean": learning.mean(), "weights/max": learning.max()}
        for name, value in values.items():
            self._metrics["train"][name].append(float(value))


def can_take_rows(fields: dict[str, Any], images: list[Any] | None) -> bool:
    """Whether the model's extra inputs can be split by row; concatenated tiles of all images cannot."""
    if images is None or all(name in fields for name in _BY_GRID):
        return True
    return all(len(value) in (len(images), sum(map(len, images))) for value in fields.values())


def take_rows(fields: dict[str, Any], images: list[Any] | None, rows: list[int]) -> dict[str, Any]:
    """The model's extra inputs of some rows: patches are split by their image's grid, others by row or by image."""
    if images is None or "pixel_values" not in fields:
        return {name: _take(value, rows) for name, value in fields.items()}
    counts = [len(each) for each in images]
    if "image_grid_thw" not in fields:
        starts = np.cumsum([0, *counts])
        of_images = [number for row in rows for number in range(starts[row], starts[row + 1])]
        return {name: _take(value, rows if len(value) == len(images) else of_images) for name, value in fields.items()}
    tensors = {name: _as_tensor(fields[name]) for name in _BY_GRID}
    split = trl_utils.split_pixel_values_by_grid({**fields, **tensors, "num_images": counts})
    chosen = {name: _take(value, rows) for name, value in split.items() if name != "num_images"}
    return dict(trl_utils.unsplit_pixel_values_by_grid(chosen))


def _as_tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))


def _take(value: Any, rows: list[int]) -> Any:
    return value[rows] if isinstance(value, Tensor) else [value[row] for row in rows]


def replace_rows(completions: Completions, rows: list[int], fresh: Completions) -> Completions:
    """Replace the tokens and the log-probabilities of `rows` by the `fresh` ones."""
    (ids, logps), (new_ids, new_logps) = completions, fresh
    ids = _replace(ids, rows, new_ids)
    return ids, None if logps is None or new_logps is None else _replace(logps, rows, new_logps)


def _replace(values: list[list[Value]], rows: list[int], fresh: list[list[Value]]) -> list[list[Value]]:
    by_row = dict(zip(rows, fresh, strict=True))
    return [by_row.get(row, value) for row, value in enumerate(values)]


def apply_weights(output: dict[str, Any], weights: Tensor) -> None:
    """Scale the advantages (B,). This weights the clipped surrogate and leaves the KL term alone."""
    output["advantages"] = output["advantages"] * weights.to(output["advantages"].dtype)


def mask_rows(output: dict[str, Any], rows: list[int]) -> None:
    """Exclude completions from every loss by masking all their tokens, from surrogate, KL and entropy alike."""
    output["completion_mask"] = output["completion_mask"].clone()
    output["completion_mask"][rows] = 0
    output["advantages"][rows] = 0.0
    for name in _PER_TOKEN:
        if name in output:
            output[name][rows] = 0.0


def train_rl(recipe: RlRecipe, *, resume: bool = False) -> dict[str, Any]:
    """Run reinforcement learning to its end; see `loop.run_phase`. Raises OptionError, ManifestError, ImageError."""
    return run_phase(recipe, lambda checkpoint, callbacks: build_trainer(recipe, checkpoint, callbacks), resume=resume)


def build_trainer(
    recipe: RlRecipe,
    checkpoint: CheckpointParts,
    callbacks: list[Any],
    kind: type[DifficultyAwareTrainer] = DifficultyAwareTrainer,
) -> DifficultyAwareTrainer:
    """The trainer of a recipe. TRL loads the reference policy again from the checkpoint, so it equals the start policy exactly.

    Raises OptionError, also for fewer pairs than one rollout takes: TRL would drop them and end without a step.
    """
    config = grpo_config(recipe)  # first: a sharding engine must be configured before weights are loaded
    dataset = build_dataset(recipe.data, checkpoint.convention, with_answer=False)
    needed = config.generation_batch_size // config.num_generations
    if len(dataset) < needed:
        raise OptionError(
            f"data.pairs: {len(dataset)} pairs to train on; expected at least {needed}, for that many are answered at once; "
            "lower train.batch_size or give more"
        )
    tokenizer = checkpoint.processor.tokenizer
    if config.use_vllm:
        config.vllm_max_model_length = vllm_context(
            config.vllm_max_model_length, config.max_completion_length, dataset, tokenizer
        )
    model = load_model(checkpoint, recipe.model)
    ends = model.generation_config.eos_token_id
    ends = [*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id]
    decoder = CompletionDecoder(tokenizer, ends, checkpoint.convention.format)
    trainer = kind(
        model=model,
        args=config,
        train_dataset=dataset,
        processing_class=checkpoint.processor,
        peft_config=lora_config(recipe.model.lora, model),
        callbacks=callbacks,
        grpo=recipe.grpo,
        decoder=decoder,
    )
    if getattr(checkpoint.processor, "by_row", False) and trainer.ref_model is not None:
        read_rows(trainer.accelerator.unwrap_model(trainer.ref_model))
    trainer.add_callback(StartMessage(trainer.sharing_summary))
    return trainer


def grpo_config(recipe: RlRecipe) -> GRPOConfig:
    """TRL's configuration of a recipe. Raises OptionError if a run could not be resumed exactly, or if TRL refuses it."""
    grpo = recipe.grpo
    settings: dict[str, Any] = {
        "num_generations": grpo.generations,
        "max_completion_length": grpo.max_new_tokens,
        "temperature": grpo.temperature,
        "beta": grpo.kl,
        "epsilon": grpo.clip_low,
        "epsilon_high": grpo.clip_high,
        "loss_type": grpo.loss,
        "num_iterations": grpo.iterations,
        "mask_truncated_completions": grpo.mask_truncated,
        "reward_weights": [grpo.format_weight, grpo.localization_weight],
        "scale_rewards": "group",
    }
    if grpo.loss == "cispo":
        settings["epsilon_high"] = 5.0  # cispo clips the ratio itself, not its distance from 1
    if grpo.vllm is not None:
        settings |= {
            "use_vllm": True,
            "vllm_mode": grpo.vllm.mode,
            "vllm_gpu_memory_utilization": grpo.vllm.memory_share,
            "vllm_max_model_length": grpo.vllm.max_model_length,
            "vllm_tensor_parallel_size": grpo.vllm.tensor_parallel,
            "vllm_server_base_url": grpo.vllm.url,
            "vllm_enable_sleep_mode": grpo.vllm.sleep and grpo.vllm.mode == "colocate",
        }
    config = trainer_config(GRPOConfig, recipe, **settings)
    cycle = config.steps_per_generation * config.num_iterations
    if recipe.train.save_every * recipe.train.accumulate % cycle:
        raise OptionError(
            f"train.save_every={recipe.train.save_every}: answers are generated every {cycle} batches and a checkpoint between "
            f"two rollouts cannot be resumed exactly; expected a multiple of {-(-cycle // recipe.train.accumulate)}"
        )
    return config
