"""Difficulty-aware GRPO: a thin subclass of TRL's trainer that draws stuck groups anew and weights groups by difficulty.

Two hooks are overridden. Where answers are drawn, groups that teach nothing are drawn again and their tokens and
log-probabilities take the old ones' places, so that everything TRL derives afterwards (text, masks, lengths, reference
log-probabilities, rewards, metrics) belongs to the final draw. Where advantages come out, they are weighted per group, and
groups that stayed uninformative lose their completion mask; the loss is the mean of what is left. Every choice is made from
values gathered over all processes, so all ranks make it alike. The mathematics is in `advantages` and `localization`;
`trl_hooks` guards the hooks.
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
from differad.training.callbacks import FirstLine
from differad.training.clock import FollowsClock
from differad.training.context import vllm_context
from differad.training.data import build_dataset
from differad.training.localization import Outcomes, localize
from differad.training.loop import EpochSampler, OwnFolders, epoch_of, run_phase, trainer_config
from differad.training.policy import Source, load_model, lora_config
from differad.training.probe import find_other_loss
from differad.training.recipe import Grpo, RlRecipe
from differad.training.sharing import SharesPrefixes
from differad.training.trl_hooks import check_attributes, check_hooks, check_outputs, check_sampler, refuse_loss

Reward = Callable[..., list[float]]
# Completion ids of each row, and the log-probabilities that they were drawn with where the engine tells them.
Answers = tuple[list[list[int]], list[list[float]] | None]
Value = TypeVar("Value", int, float)
_BY_GRID = ("pixel_values", "image_grid_thw")
# Per-token values of a dropped answer that TRL computed before its mask went; 0 keeps exp() of them harmless.
_PER_TOKEN = ("old_per_token_logps", "ref_per_token_logps", "sampling_per_token_logps")


@dataclass(frozen=True, eq=False)
class Draw:
    """The final answers of a batch, over all processes: rewards, IoU and misses (groups, G), and what became of the groups.

    `redraws` (groups,) counts how often each group was drawn anew; `stuck` (groups,) says which stayed uninformative.
    """

    localization: Tensor
    iou: Tensor
    missed: Tensor
    redraws: Tensor
    stuck: Tensor


class AnswerReader:
    """Turns completion ids into what rewards read: the text up to its end token, special tokens kept.

    TRL's own text drops special tokens, and box tags may be among them. `format` is how the policy writes boxes.
    """

    def __init__(self, tokenizer: Any, end_ids: Sequence[int], answer_format: AnswerFormat) -> None:
        self.format = answer_format
        self._tokenizer = tokenizer
        self._ends = {*end_ids, tokenizer.pad_token_id}

    def __call__(self, completion_ids: Sequence[Sequence[int]]) -> list[str]:
        """The text of each completion."""
        return [str(self._tokenizer.decode(self._cut(list(ids)), skip_special_tokens=False)) for ids in completion_ids]

    def _cut(self, ids: list[int]) -> list[int]:
        return ids[: next((place for place, token in enumerate(ids) if token in self._ends), len(ids))]


def make_rewards(reader: AnswerReader, name: str) -> list[Reward]:
    """The two rewards as TRL calls them: `format_reward`, then `localization_reward` by its name in `VARIANTS`."""

    def format_reward(completion_ids: Sequence[Sequence[int]], **_columns: Any) -> list[float]:
        return [float(value) for value in format_scores(reader(completion_ids), reader.format)]

    def localization_reward(
        completion_ids: Sequence[Sequence[int]], solution: Sequence[Any], units: Sequence[Any], **_columns: Any
    ) -> list[float]:
        order = reader.format.syntax.order
        return [float(value) for value in localize(reader(completion_ids), solution, units, name, order).reward]

    return [format_reward, localization_reward]


class DifficultyAwareTrainer(FollowsClock, SharesPrefixes, OwnFolders, GRPOTrainer):
    """GRPO with group-wise resampling and adaptive reweighting (arXiv 2606.16601)."""

    beta: float  # TRL's

    def __init__(self, *args: Any, grpo: Grpo, reader: AnswerReader, **kwargs: Any) -> None:
        check_hooks()
        self.start_sharing(grpo.share_prefix, grpo.remember_pictures_mb)
        super().__init__(*args, reward_funcs=make_rewards(reader, grpo.reward), **kwargs)
        check_attributes(self)
        self.processing_class.device = self.accelerator.device
        self._grpo = grpo
        self._reader = reader
        self._rows: list[dict[str, Any]] = []
        self._draw: Draw | None = None
        self._scale = 1.0

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As TRL's; first of all it is tried what this does with the releases at hand. Raises OptionError for another loss."""
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):  # engines that would take a miniature for the model
            refuse_loss(self, find_other_loss(self, self._bare(self.model)))
        self.try_sharing()
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
    ) -> Answers:
        """Draw answers; draw the groups that teach nothing again, up to the recipe's limit, all ranks in step."""

        def draw(rows: list[int]) -> Answers:
            if len(rows) == len(prompt_ids):
                return self._draw_answers(prompt_ids, images, multimodal_fields, num_generations)
            chosen = [images[row] for row in rows] if images is not None else None
            fields = take_rows(multimodal_fields, images, rows)
            return self._draw_answers([prompt_ids[row] for row in rows], chosen, fields, num_generations)

        answers = self._draw_answers(prompt_ids, images, multimodal_fields, num_generations)
        if not self.model.training:
            return answers
        redraws = torch.zeros(
            len(prompt_ids) * self.accelerator.num_processes // self.num_generations, dtype=torch.long
        )
        for attempt in range(self._grpo.resamples + 1):
            localization, overlap, missed = self._gather(answers[0])
            stuck = is_uninformative(localization)
            if attempt == self._grpo.resamples or not stuck.any():
                break
            redraws += stuck.cpu()
            rows = rows_of(stuck, self.num_generations, self.accelerator.process_index, len(prompt_ids))
            together = not can_take_rows(multimodal_fields, images)
            answers = splice(answers, rows, self._redraw(draw, rows, len(prompt_ids), together))
        self._draw = Draw(localization, overlap, missed, redraws, stuck)
        return answers

    def _draw_answers(
        self, prompt_ids: list[list[int]], images: list[Any] | None, fields: dict[str, Any], num_generations: int
    ) -> Answers:
        """One draw for the given prompts, as TRL makes it."""
        fields = into_strip(fields) if getattr(self.processing_class, "by_row", False) else fields
        answers: Answers = super()._generate_single_turn(prompt_ids, images, fields, num_generations)
        return answers

    def _redraw(self, draw: Callable[[list[int]], Answers], rows: list[int], count: int, together: bool) -> Answers:
        """New answers for `rows`; a rank without any draws one for nothing, for generation is a collective act.

        A vLLM that serves several ranks splits its answers evenly among them, so there the whole batch is drawn, and so it
        is where rows only go `together`.
        """
        shared = self.use_vllm and (self.vllm_mode == "server" or self.vllm_tensor_parallel_size > 1)
        drawn = list(range(count)) if shared or together else rows or [0]
        answers, logps = draw(drawn)
        kept = [drawn.index(row) for row in rows]
        return [answers[place] for place in kept], None if logps is None else [logps[place] for place in kept]

    def _gather(self, answers: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Localization reward, IoU and miss of every process's answers, each (groups, G), in float32: MPS has no other."""
        outcomes = self._outcomes(answers)
        local = torch.tensor(
            [list(row) for row in zip(*outcomes, strict=True)], dtype=torch.float32, device=self.accelerator.device
        )
        gathered = self.accelerator.gather(local).view(-1, self.num_generations, 3)
        return gathered[..., 0], gathered[..., 1], gathered[..., 2].bool()

    def _outcomes(self, answers: list[list[int]]) -> Outcomes:
        truths, units = ([row[name] for row in self._rows] for name in ("solution", "units"))
        order = self._reader.format.syntax.order
        return localize(self._reader(answers), truths, units, self._grpo.reward, order)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._rows = inputs
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        check_outputs(output)
        if self._draw is None or not self.model.training:  # evaluation: one draw, no weights
            return output
        weights = torch.ones(len(self._draw.stuck), device=self._draw.stuck.device)
        if self._grpo.reweight:
            weights = adaptive_weights(self._draw.localization, self._draw.missed)
        count, rank = len(inputs), self.accelerator.process_index
        own = slice(rank * count, (rank + 1) * count)
        apply_weights(output, weights.repeat_interleave(self.num_generations)[own])
        drop_rows(output, rows_of(self._draw.stuck, self.num_generations, rank, count))
        mask = output["completion_mask"]
        output["num_items_in_batch"] = self.accelerator.gather(mask.sum()).sum()
        self._note(self._draw, weights)
        return output

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """As TRL's; counts what the losses of a fresh draw are the mean of, over all processes."""
        known = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self.model.training and self._buffered_inputs is not known:
            terms = count_terms(self.loss_type, [batch["completion_mask"] for batch in self._buffered_inputs])
            every, seen = self.accelerator.gather(torch.tensor([terms], device=self.accelerator.device)).sum(dim=0)
            self._scale = int(every) / max(int(seen), 1)
        return inputs

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """As TRL's, which counts masked answers in its mean; here the mean is over those that the loss sees.

        Both terms are scaled, surrogate by the advantages and KL by its coefficient: a bonus for entropy is a mean of its own.
        """
        scale = self._scale if self.model.training else 1.0
        beta = self.beta
        self.beta = beta * scale
        try:
            loss: Tensor = super()._compute_loss(model, {**inputs, "advantages": inputs["advantages"] * scale})
        finally:
            self.beta = beta
        return loss

    def _note(self, draw: Draw, weights: Tensor) -> None:
        """Put the batch's figures among TRL's metrics; they come from gathered values and are the same on every rank."""
        figures = {
            "iou": draw.iou.mean(),
            "miss_rate": draw.missed.float().mean(),
            "groups/informative": (~draw.stuck).float().mean(),
            "groups/redrawn": (draw.redraws > 0).float().mean(),
            "groups/redraws": draw.redraws.sum(),
        }
        learning = weights[~draw.stuck]
        if len(learning):
            figures |= {"weights/mean": learning.mean(), "weights/max": learning.max()}
        for name, value in figures.items():
            self._metrics["train"][name].append(float(value))


def can_take_rows(fields: dict[str, Any], images: list[Any] | None) -> bool:
    """Whether the model's extra inputs say which of their parts belongs to a row: tiles of all images end to end do not."""
    if images is None or all(name in fields for name in _BY_GRID):
        return True
    return all(len(value) in (len(images), sum(map(len, images))) for value in fields.values())


def take_rows(fields: dict[str, Any], images: list[Any] | None, rows: list[int]) -> dict[str, Any]:
    """The model's extra inputs of some rows: patches go by their image's grid, others by row or by image."""
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


def splice(answers: Answers, rows: list[int], fresh: Answers) -> Answers:
    """Tokens and log-probabilities with those of `rows` replaced by the `fresh` ones, together."""
    (ids, logps), (new_ids, new_logps) = answers, fresh
    ids = _replace(ids, rows, new_ids)
    return ids, None if logps is None or new_logps is None else _replace(logps, rows, new_logps)


def _replace(values: list[list[Value]], rows: list[int], fresh: list[list[Value]]) -> list[list[Value]]:
    by_row = dict(zip(rows, fresh, strict=True))
    return [by_row.get(row, value) for row, value in enumerate(values)]


def apply_weights(output: dict[str, Any], weights: Tensor) -> None:
    """Scale the advantages (B,): the same as weighting the clipped surrogate, before the KL term joins it."""
    output["advantages"] = output["advantages"] * weights.to(output["advantages"].dtype)


def drop_rows(output: dict[str, Any], rows: list[int]) -> None:
    """Take answers out of every loss: no completion mask, so neither surrogate nor KL nor entropy sees them."""
    output["completion_mask"] = output["completion_mask"].clone()
    output["completion_mask"][rows] = 0
    output["advantages"][rows] = 0.0
    for name in _PER_TOKEN:
        if name in output:
            output[name][rows] = 0.0


def train_rl(recipe: RlRecipe, *, resume: bool = False) -> dict[str, Any]:
    """Run reinforcement to its end; see `loop.run_phase`. Raises OptionError, ManifestError, ImageError."""
    return run_phase(recipe, lambda source, callbacks: build_trainer(recipe, source, callbacks), resume=resume)


def build_trainer(
    recipe: RlRecipe,
    source: Source,
    callbacks: list[Any],
    kind: type[DifficultyAwareTrainer] = DifficultyAwareTrainer,
) -> DifficultyAwareTrainer:
    """The trainer of a recipe. TRL loads the reference policy from `source` anew, so it is the cold start to the letter.

    Raises OptionError, also for fewer pairs than a draw of answers takes: TRL would leave them out and end without a step.
    """
    config = grpo_config(recipe)  # first: a sharding engine must know of itself before weights are loaded
    dataset = build_dataset(recipe.data, source.speech, with_answer=False)
    drawn = config.generation_batch_size // config.num_generations
    if len(dataset) < drawn:
        raise OptionError(
            f"data.pairs: {len(dataset)} pairs to train on; expected at least {drawn}, for that many are answered at once; lower "
            "train.batch_size or give more"
        )
    tokenizer = source.processor.tokenizer
    if config.use_vllm:
        config.vllm_max_model_length = vllm_context(
            config.vllm_max_model_length, config.max_completion_length, dataset, tokenizer
        )
    model = load_model(source, recipe.model)
    ends = model.generation_config.eos_token_id
    ends = [*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id]
    reader = AnswerReader(tokenizer, ends, source.speech.format)
    trainer = kind(
        model=model,
        args=config,
        train_dataset=dataset,
        processing_class=source.processor,
        peft_config=lora_config(recipe.model.lora, model),
        callbacks=callbacks,
        grpo=recipe.grpo,
        reader=reader,
    )
    if getattr(source.processor, "by_row", False) and trainer.ref_model is not None:
        read_rows(trainer.accelerator.unwrap_model(trainer.ref_model))
    trainer.add_callback(FirstLine(trainer.sharing_line))
    return trainer


def grpo_config(recipe: RlRecipe) -> GRPOConfig:
    """TRL's configuration of a recipe. Raises OptionError where it cannot be resumed exactly, or TRL refuses it."""
    grpo = recipe.grpo
    own: dict[str, Any] = {
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
        own["epsilon_high"] = 5.0  # cispo clips the ratio itself, not its distance from 1
    if grpo.vllm is not None:
        own |= {
            "use_vllm": True,
            "vllm_mode": grpo.vllm.mode,
            "vllm_gpu_memory_utilization": grpo.vllm.memory_share,
            "vllm_max_model_length": grpo.vllm.max_model_length,
            "vllm_tensor_parallel_size": grpo.vllm.tensor_parallel,
            "vllm_server_base_url": grpo.vllm.url,
            "vllm_enable_sleep_mode": grpo.vllm.sleep and grpo.vllm.mode == "colocate",
        }
    config = trainer_config(GRPOConfig, recipe, **own)
    cycle = config.steps_per_generation * config.num_iterations
    if recipe.train.save_every * recipe.train.accumulate % cycle:
        raise OptionError(
            f"train.save_every={recipe.train.save_every}: answers are drawn every {cycle} batches and a checkpoint between "
            f"two draws cannot be resumed exactly; expected a multiple of {-(-cycle // recipe.train.accumulate)}"
        )
    return config
