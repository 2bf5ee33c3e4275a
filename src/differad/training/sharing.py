"""Prefix sharing inside TRL's trainer: rollouts and log-probabilities with every distinct prompt encoded once.

Two hooks are overridden. One scores completions: for losses, old log-probabilities and reference log-probabilities. The other
generates them; inside it the policy's `generate` is replaced by one that shares prompts. Where sharing cannot work, TRL's
implementation runs and one warning gives the reason. `probe` tests before a run whether sharing works with the installed
releases. The mathematics is in `prefix`, `grouped` and `sequence`.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from trl.trainer import utils as trl_utils

from differad.errors import InputWarning
from differad.locators.prefix import obstacle
from differad.locators.transformers_hooks import supports_masks
from differad.training.peers import gather_shares
from differad.training.pictures import (
    Batch,
    Pictures,
    Row,
    VisionFeatureCache,
    has_dropout,
    have_same_vision_weights,
    weight_versions,
)
from differad.training.prefix import (
    PromptCache,
    PromptCompletions,
    completion_inputs,
    find_prompts,
    generate_shared,
    split_completions,
)
from differad.training.probe import find_difference
from differad.training.sequence import is_cheaper, pack

# Log-probabilities (B, C), entropies (B, C) and the expert-balancing loss; the last two only on request.
Scores = tuple[Tensor, Tensor | None, Tensor | None]
_OWN_GENERATION = "vLLM and continuous batching generate answers by themselves"
_BALANCES_EXPERTS = "experts are balanced over whole prompts and whole batches"
_REQUIRED_INPUTS = {"pixel_values", "image_grid_thw", "mm_token_type_ids", "num_images"}
# Losses that are a sum over rows, so the split of rows into batches does not matter.
_ROW_SUM_LOSSES = ("grpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")


class PrefixSharingMixin:
    """Mixin for `GRPOTrainer`: encode each distinct prompt once for all its completions."""

    _share: bool
    # By id of the model: the vision weights' versions at which the cache was chosen, and the cache.
    _vision_caches: dict[int, tuple[list[tuple[int, int]], VisionFeatureCache]]
    _vision_cache_mb: int
    _warned: set[str]
    # By precision and active adapters: prompts of the current rollout. None outside a rollout.
    _prompt_caches: dict[tuple[Any, ...], PromptCache] | None
    # By part ("rollout", "loss"): why the probe turned sharing off there. Then whether it turned the vision cache off.
    _mismatches: dict[str, str]
    _vision_cache_off: bool
    # Whether a pass with gradients uses packed sequences; None: where they are cheaper.
    use_packing: bool | None

    def configure_sharing(self, share: bool, memory_mb: int) -> None:
        """Set whether prompts are shared, and the vision cache's limit in MiB. Call it before training."""
        self._share, self._vision_cache_mb = share, memory_mb
        self._vision_caches, self._warned, self._prompt_caches = {}, set(), None
        self._mismatches, self.use_packing = {}, None
        self._vision_cache_off = False

    def check_sharing(self: Any) -> None:
        """Test sharing with the installed releases before training; turn off, with one warning, what differs from TRL's results.

        Every process calls it, and all reach the same decision.
        """
        bare = self._unwrapped(self.model)
        if not self._share or self._trainer_obstacle() or obstacle(bare, cached=False):
            return
        mismatches, cache_mismatch = _merge_trials(gather_shares([_run_trial(self, bare, self._vision_cache_mb)]))
        messages = []
        if cache_mismatch is not None:
            self._vision_cache_mb, self._vision_cache_off = 0, True
            messages.append(("grpo.remember_pictures_mb: image features are not cached", cache_mismatch))
        if mismatches:
            self._mismatches = {part: f"{reason}; {_releases()}" for part, reason in mismatches.items()}
            where = f"prompts are not shared in {' and '.join(mismatches)}"
            messages.append((f"grpo.share_prefix: {where}", "; ".join(dict.fromkeys(mismatches.values()))))
        for what, reason in messages if self.accelerator.is_main_process else ():
            text = f"{what}: with {_releases()} they would not train as TRL does ({reason})"
            warnings.warn(text, InputWarning, stacklevel=2)

    @contextmanager
    def one_rollout(self) -> Iterator[None]:
        """Cache encoded prompts inside the block, where weights stay the same while completions are generated and scored."""
        self._prompt_caches = {}
        try:
            yield
        finally:
            self._prompt_caches = None

    def _generate_and_score_completions(self: Any, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """As TRL's; each prompt is encoded once for the first rollout, resampled groups and all scores."""
        with self.one_rollout():
            output: dict[str, Any] = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        return output

    def _get_per_token_logps_and_entropies(self: Any, *inputs: Any, **fields: Any) -> Scores:
        """As TRL's, `batch_size` rows at a time."""
        scores: Scores | None = self._shared_scores(*inputs, **fields)
        if scores is None:
            scores = super()._get_per_token_logps_and_entropies(*inputs, **fields)  # type: ignore[misc]
        return scores

    def _shared_scores(
        self: Any,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **fields: Any,
    ) -> Scores | None:
        """Scores with shared prompts, or None if TRL's implementation must run. `fields` are the model's other inputs."""
        model_inputs = {name: value for name, value in fields.items() if value is not None}
        bare = self._unwrapped(model)
        score = None
        part = "loss" if torch.is_grad_enabled() else "rollout"
        if self._allows(part) and self._can_share(model_inputs, "scored", compute_aux_loss):
            rows = len(input_ids)
            whole = as_batch(input_ids, attention_mask, model_inputs)
            starts = range(0, rows, batch_size or rows)
            parts = [whole.take(slice(start, start + (batch_size or rows))) for start in starts]
            batches = [split_completions(each, logits_to_keep) for each in parts]
            score = self._choose_scoring(bare, batches)
        if score is None:
            return None
        with self.accelerator.autocast():
            scores = [score(model, bare, each) for each in batches]
        entropies = torch.cat([entropy for _, entropy in scores]) if compute_entropy else None
        return torch.cat([log_probs for log_probs, _ in scores]), entropies, None

    def _choose_scoring(self: Any, bare: Any, batches: list[PromptCompletions]) -> Any:
        """The method that scores batches; None for TRL's implementation.

        A pass with gradients uses packed sequences where they are cheaper, because gradients would have to flow through a cache.
        A pass whose prompts are needed only once uses them too: one pass replaces two.
        """
        learns = torch.is_grad_enabled()
        packed = self._prefers_packing(bare, batches, learns)
        if self._warn_once(obstacle(bare, cached=not packed, learns=learns), "scored"):
            return None
        return self._score_packed if packed else self._score_with_cache

    def _prefers_packing(self: Any, bare: Any, batches: list[PromptCompletions], learns: bool) -> bool:
        """Whether to score packed sequences rather than completions with a prompt cache."""
        if learns and self.use_packing is not None:
            return bool(self.use_packing)
        if not all(is_cheaper(bare, part) for part in batches):
            return False
        if learns:
            return True
        allowed = self._allows("loss") and obstacle(bare, cached=False, learns=True) is None
        return allowed and not self._prompt_cache(bare) and not has_repeated_prompt(batches)

    def _score_packed(self: Any, model: Any, bare: Any, rows: PromptCompletions) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities and entropies (B, keep) of completions; each prompt and its completions form one sequence."""
        packed = pack(bare, rows, self._vision_cache(bare))
        # Call the distributed wrapper, which must see every pass with gradients.
        output = model(**packed.inputs, labels=packed.labels, use_cache=False, fused_lm_head=True)
        entropy = output.entropy
        return packed.rows(output.log_probs), None if entropy is None else packed.rows(entropy)

    def _score_with_cache(self: Any, model: Any, bare: Any, rows: PromptCompletions) -> tuple[Tensor, Tensor | None]:
        """As `_score_packed`, with completions that read their prompts' keys and values from a cache."""
        inputs = completion_inputs(bare, rows, self._vision_cache(bare), self._prompt_cache(bare))
        labels = inputs["input_ids"].masked_fill(rows.batch.mask[:, rows.start - 1 :] == 0, -100)
        output = model(**inputs, labels=labels, fused_lm_head=True)
        return output.log_probs, output.entropy

    def _generate_single_turn(
        self: Any,
        prompt_ids: list[list[int]],
        images: list[Any] | None,
        multimodal_fields: dict[str, Any],
        num_generations: int,
        **tools: Any,
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """As TRL's, with the policy's `generate` replaced by one that shares prompts."""
        with self._sharing_generate(images):
            answers: tuple[list[list[int]], list[list[float]] | None] = super()._generate_single_turn(  # type: ignore[misc]
                prompt_ids, images, multimodal_fields, num_generations, **tools
            )
        return answers

    @contextmanager
    def _sharing_generate(self: Any, images: list[Any] | None) -> Iterator[None]:
        if not self._allows("rollout") or self._has_own_generation():
            if self._allows("rollout"):
                self._warn_once(_OWN_GENERATION, "generated")
            yield
            return
        bare = self._unwrapped(self.model)
        stock: Callable[..., Tensor] = bare.generate

        def generate(**inputs: Any) -> Tensor:
            fields = {**inputs, "num_images": [len(each or ()) for each in images or ()]}
            ids, mask, config = (fields.pop(name) for name in ("input_ids", "attention_mask", "generation_config"))
            if not self._can_share(fields, "generated") or self._warn_once(obstacle(bare), "generated"):
                return stock(**inputs)
            # One autocast context around all steps, so that it converts the weights once per rollout.
            with self.accelerator.autocast(), lora_in_autocast_dtype(bare):
                batch = as_batch(ids, mask, fields)
                return generate_shared(bare, batch, config, self._vision_cache(bare), self._prompt_cache(bare))

        bare.generate = generate
        try:
            yield
        finally:
            del bare.generate

    def _prepare_inputs(self: Any, generation_batch: Any) -> Any:
        """As TRL's; where the order of rows does not matter, completions of one prompt go into the same batch."""
        previous = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)  # type: ignore[misc]
        fresh = self.model.training and self._buffered_inputs is not previous
        if not (fresh and self._share and is_order_invariant(self.args)) or self._loss_obstacle():
            return inputs
        self._buffered_inputs = group_rows_by_prompt(self._buffered_inputs)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _allows(self: Any, part: str) -> bool:
        """Whether the recipe and the installed releases allow sharing in a part, "rollout" or "loss"."""
        return self._share and part not in self._mismatches

    def _can_share(self: Any, model_inputs: dict[str, Any], action: str, balances: bool = False) -> bool:
        """Whether this trainer and these inputs allow sharing; if not, warn once with the reason."""
        return not self._warn_once(self._batch_obstacle(model_inputs, balances), action)

    def _warn_once(self: Any, reason: str | None, action: str) -> bool:
        """Whether there is a reason against sharing; if so, warn once."""
        if reason is None:
            return False
        text = f"grpo.share_prefix: answers are {action} with their prompts repeated: {reason}"
        if not self._warned & {text, reason} and self.accelerator.is_main_process:
            warnings.warn(text, stacklevel=2)
        self._warned.add(text)
        return True

    def _batch_obstacle(self: Any, model_inputs: dict[str, Any], balances: bool) -> str | None:
        """Why this trainer, or this batch, cannot share prompts; None if it can."""
        reason: str | None = self._trainer_obstacle()
        if reason is not None:
            return reason
        if balances:
            return _BALANCES_EXPERTS
        if set(model_inputs) != _REQUIRED_INPUTS or not all(model_inputs["num_images"]):
            names = ", ".join(sorted(_REQUIRED_INPUTS))
            return f"expected images in every prompt and the inputs {names}, got {sorted(model_inputs)}"
        return None

    def _trainer_obstacle(self: Any) -> str | None:
        """Why no batch of this trainer can share prompts; None if one can."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            engine = "DeepSpeed" if self.is_deepspeed_enabled else "FSDP"
            return f"{engine}: a sharded model gathers its weights only for its own forward"
        if self.args.use_liger_kernel:
            return "liger's kernels replace the layers"
        if has_dropout(self._unwrapped(self.model)):
            return "dropout: each answer needs its own dropout, on its prompt too"
        return None

    def sharing_summary(self: Any) -> str:
        """The run's first line: where prompts are shared, and why not elsewhere; no warning repeats these reasons."""
        bare = self._unwrapped(self.model)
        common = None if self._share else "grpo.share_prefix=false"
        common = common or self._trainer_obstacle() or obstacle(bare, cached=False)
        # Neither packed sequences nor a cache work then, see `_choose_scoring`.
        no_way = self.args.gradient_checkpointing and not supports_masks(bare)
        reasons = {
            "rollout": common or (_OWN_GENERATION if self._has_own_generation() else self._mismatches.get("rollout")),
            "loss": common
            or self._loss_obstacle()
            or ("flash attention takes no mask and gradient checkpointing no cache" if no_way else None),
        }
        self._warned |= {reason for reason in reasons.values() if reason is not None}
        clauses = []
        for reason in dict.fromkeys(reasons.values()):
            where = " and ".join(part for part, why in reasons.items() if why == reason)
            clauses.append(f"shared in {where}" if reason is None else f"not shared in {where} ({reason})")
        if self._vision_cache_off:
            clauses.append("image features are not cached")
        return f"prompts are {'; '.join(clauses)}"

    def _loss_obstacle(self: Any) -> str | None:
        """Why no loss of this model can share prompts; None if one can. TRL's auxiliary loss balances experts."""
        if getattr(self, "aux_loss_enabled", False):
            return _BALANCES_EXPERTS
        mismatch: str | None = self._mismatches.get("loss")
        return obstacle(self._unwrapped(self.model), cached=False, learns=True) or mismatch

    def _has_own_generation(self: Any) -> bool:
        return bool(self.use_vllm or self.use_transformers_continuous_batching)

    def _unwrapped(self: Any, model: Any) -> Any:
        """The model without the wrappers of distributed training and PEFT; adapters stay in its layers."""
        inner = self.accelerator.unwrap_model(model)
        return inner.get_base_model() if isinstance(inner, PeftModel) else inner

    def _vision_cache(self: Any, bare: Any) -> VisionFeatureCache:
        """The vision cache of a model; the reference shares the policy's if their vision weights are equal."""
        policy = self._unwrapped(self.model)
        versions = weight_versions(bare.model.visual) + weight_versions(policy.model.visual)
        entry: tuple[list[tuple[int, int]], VisionFeatureCache] | None = self._vision_caches.get(id(bare))
        if entry is None or (bare is not policy and entry[0] != versions):
            can_reuse = bare is not policy and self._vision_cache(policy).is_usable()
            is_shared = can_reuse and have_same_vision_weights(bare, policy)
            entry = (
                versions,
                self._vision_cache(policy) if is_shared else VisionFeatureCache(bare, self._vision_cache_mb),
            )
            self._vision_caches[id(bare)] = entry
        return entry[1]

    def _prompt_cache(self: Any, bare: Any) -> PromptCache | None:
        """The cache of prompts that the policy encodes during a rollout; None if prompts must be encoded anew.

        Each precision has its own cache, and so has the policy without its adapters, which is the reference then.
        """
        if self._prompt_caches is None or torch.is_grad_enabled() or bare is not self._unwrapped(self.model):
            return None
        device = self.accelerator.device.type
        adapters = [
            (layer.disable_adapters, *layer.active_adapters)
            for layer in bare.modules()
            if isinstance(layer, BaseTunerLayer)
        ]
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        cache: PromptCache = self._prompt_caches.setdefault((precision, *adapters), PromptCache())
        return cache


# How sharing differs from TRL, by part, and why image features cannot be cached (None if they can).
_Trial = tuple[dict[str, str], str | None]


def _run_trial(trainer: Any, bare: Any, cache_mb: int) -> _Trial:
    """Run the probe. The vision cache is turned off if more parts can share prompts without it."""
    trains_tower = any(weight.requires_grad for weight in bare.model.visual.parameters())
    with_cache = find_difference(trainer, bare, cache_mb, trains_tower=False) if cache_mb else {}
    if cache_mb and not with_cache and not trains_tower:
        return {}, None
    without = find_difference(trainer, bare, 0, trains_tower=trains_tower)
    return without, next((reason for part, reason in with_cache.items() if part not in without), None)


def _merge_trials(trials: list[_Trial]) -> _Trial:
    """The differences found by any process; for each, the first process's message."""
    mismatches: dict[str, str] = {}
    for by_part, _ in trials:
        mismatches = by_part | mismatches
    return mismatches, next((reason for _, reason in trials if reason is not None), None)


def _releases() -> str:
    return f"trl {version('trl')} and transformers {version('transformers')}"


def has_repeated_prompt(parts: list[PromptCompletions]) -> bool:
    """Whether any prompt occurs in more than one of some batches of equal width."""
    if len(parts) == 1:
        return False
    # Prompts are distinct within a batch already: compare only the first row of each.
    ids, mask = (
        torch.cat([getattr(part.batch, name)[part.prompts.first, : part.start] for part in parts])
        for name in ("ids", "mask")
    )
    rows = [row for part in parts for row in _first_rows(part)]
    return find_prompts(ids, mask, rows).shared


def _first_rows(part: PromptCompletions) -> list[Row]:
    rows = part.batch.pictures.rows()
    return [rows[number] for number in part.prompts.first.tolist()]


@contextmanager
def lora_in_autocast_dtype(model: Any) -> Iterator[None]:
    """Convert LoRA's weights to autocast's precision inside the block.

    The results are the same, and each layer saves two conversions of its inputs per token.
    """
    device = model.device.type
    weights = lora_weights(model) if torch.is_autocast_enabled(device) else []
    values = [weight.data for weight in weights]
    try:
        for weight in weights:
            weight.data = weight.data.to(torch.get_autocast_dtype(device))
        yield
    finally:
        for weight, value in zip(weights, values, strict=True):
            weight.data = value


def lora_weights(model: Any) -> list[Any]:
    """The float32 matrices of a model's LoRA adapters."""
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    matrices = [getattr(layer, name) for layer in layers for name in ("lora_A", "lora_B")]
    return [weight for each in matrices for weight in each.parameters() if weight.dtype == torch.float32]


def as_batch(ids: Tensor, mask: Tensor, fields: dict[str, Any]) -> Batch:
    """Token ids and mask (B, L) with the model's other inputs of the same rows."""
    images = Pictures(fields["pixel_values"], fields["image_grid_thw"], fields["num_images"])
    return Batch(ids, mask, fields["mm_token_type_ids"], images)


def is_order_invariant(args: Any) -> bool:
    """Whether an optimiser step is the same for every split of its rows into batches."""
    whole_steps = args.gradient_accumulation_steps % args.steps_per_generation == 0
    by_row = args.loss_type in _ROW_SUM_LOSSES and args.top_entropy_quantile == 1.0 and args.entropy_coef == 0.0
    return bool(whole_steps and by_row)


def group_rows_by_prompt(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows in batches of the same size, with each prompt's rows adjacent; prompts keep their order."""
    if len(batches) == 1 or batches[0].get("pixel_values") is None or "image_grid_thw" not in batches[0]:
        return batches
    split = [trl_utils.split_pixel_values_by_grid(batch) for batch in batches]
    whole = {name: _join([batch[name] for batch in split]) for name in split[0]}
    rows = list(zip(whole["pixel_values"], whole["image_grid_thw"], strict=True))
    order = torch.argsort(
        find_prompts(whole["prompt_ids"], whole["prompt_mask"], rows).prompt_index, stable=True
    ).tolist()
    grouped = {name: _reorder(value, order) for name, value in whole.items()}
    return [
        trl_utils.unsplit_pixel_values_by_grid(batch) for batch in trl_utils.split_tensor_dict(grouped, len(batches))
    ]


def _join(values: list[Any]) -> Any:
    """Concatenate lists and tensors of all batches; a value common to all batches stays as it is."""
    if isinstance(values[0], list):
        return [item for value in values for item in value]
    return torch.cat(values) if isinstance(values[0], Tensor) and values[0].ndim else values[0]


def _reorder(value: Any, order: list[int]) -> Any:
    if isinstance(value, list):
        return [value[row] for row in order]
    return value[order] if isinstance(value, Tensor) and value.ndim else value
