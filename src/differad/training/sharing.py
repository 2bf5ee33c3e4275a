"""Prefix sharing inside TRL's trainer: rollouts and log-probabilities with every distinct prompt encoded once.

Two hooks are overridden: the one that scores answers, for losses, old and reference log-probabilities alike, and the one
that draws them, inside which the policy's `generate` is replaced by one that shares. Where sharing cannot work, TRL's own
way is taken and a warning says so once; whether it works with the releases at hand, `probe` tries before a run. The mathematics
is in `prefix`, `grouped` and `sequence`.
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
from differad.locators.transformers_hooks import takes_masks
from differad.training.peers import join_shares
from differad.training.pictures import Batch, PictureMemory, Pictures, Row, drops_out, same_tower, state_of
from differad.training.prefix import (
    Answered,
    PromptMemory,
    answer_inputs,
    find_prompts,
    generate_shared,
    split_answers,
)
from differad.training.probe import find_difference
from differad.training.sequence import lay_out, pays

# Log-probabilities (B, C), entropies (B, C) and the loss that balances experts, the last two where they are asked for.
Scores = tuple[Tensor, Tensor | None, Tensor | None]
_OWN_ENGINE = "vLLM and continuous batching draw answers their own way"
_BALANCED = "experts are balanced over whole prompts and whole batches"
_FIELDS = {"pixel_values", "image_grid_thw", "mm_token_type_ids", "num_images"}
# Losses that are a sum over rows, whichever rows are summed together first.
_SUMS = ("grpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")


class SharesPrefixes:
    """Mixin for `GRPOTrainer`: prompts are encoded once for all answers to them."""

    _share: bool
    # By model: the weights at which it was decided, and the memory that serves it.
    _memories: dict[int, tuple[list[tuple[int, int]], PictureMemory]]
    _memory_mb: int
    _told: set[str]
    # By the way in which the policy ran: prompts of the draw that is being made and scored.
    _encoded: dict[tuple[Any, ...], PromptMemory] | None
    # By part, "rollout" and "loss": why prompts are not shared there although the recipe says so. Then whether image features
    # are not kept although it does.
    _unlike: dict[str, str]
    _keeps_nothing: bool
    # Whether a pass that is differentiated takes whole sequences; None: where they pay.
    together: bool | None

    def start_sharing(self, share: bool, memory_mb: int) -> None:
        """Say whether prompts are shared, and how many MiB of image features are kept; before training."""
        self._share, self._memory_mb = share, memory_mb
        self._memories, self._told, self._encoded = {}, set(), None
        self._unlike, self.together = {}, None
        self._keeps_nothing = False

    def try_sharing(self: Any) -> None:
        """Try sharing with the releases at hand, before training; what differs from TRL's own way is left out, with one warning.

        Every process calls it, and all decide alike.
        """
        bare = self._bare(self.model)
        if not self._share or self._trainers_refusal() or obstacle(bare, cached=False):
            return
        unlike, unkept = _join_trials(join_shares([_try(self, bare, self._memory_mb)]))
        told = []
        if unkept is not None:
            self._memory_mb, self._keeps_nothing = 0, True
            told.append(("grpo.remember_pictures_mb: image features are not kept", unkept))
        if unlike:
            self._unlike = {part: f"{reason}; {_releases()}" for part, reason in unlike.items()}
            where = f"prompts are not shared in {' and '.join(unlike)}"
            told.append((f"grpo.share_prefix: {where}", "; ".join(dict.fromkeys(unlike.values()))))
        for what, reason in told if self.accelerator.is_main_process else ():
            text = f"{what}: with {_releases()} they would not train as TRL does ({reason})"
            warnings.warn(text, InputWarning, stacklevel=2)

    @contextmanager
    def one_draw(self) -> Iterator[None]:
        """Meanwhile answers are drawn and scored with the same weights, so that a prompt is encoded once."""
        self._encoded = {}
        try:
            yield
        finally:
            self._encoded = None

    def _generate_and_score_completions(self: Any, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """As TRL's; prompts are encoded once for the draw, for what is drawn anew and for the scores of all that was drawn."""
        with self.one_draw():
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
        """Scores of prompts that are encoded once; None where TRL's way is to be taken. `fields` are the model's other inputs."""
        given = {name: value for name, value in fields.items() if value is not None}
        bare = self._bare(model)
        plan = None
        part = "loss" if torch.is_grad_enabled() else "rollout"
        if self._lets(part) and self._shares(given, "scored", compute_aux_loss):
            rows = len(input_ids)
            whole = as_batch(input_ids, attention_mask, given)
            starts = range(0, rows, batch_size or rows)
            parts = [whole.take(slice(start, start + (batch_size or rows))) for start in starts]
            answered = [split_answers(each, logits_to_keep) for each in parts]
            plan = self._plan(bare, answered)
        if plan is None:
            return None
        with self.accelerator.autocast():
            found = [plan(model, bare, each) for each in answered]
        entropies = torch.cat([entropy for _, entropy in found]) if compute_entropy else None
        return torch.cat([log_probs for log_probs, _ in found]), entropies, None

    def _plan(self: Any, bare: Any, answered: list[Answered]) -> Any:
        """How a model is to score batches; None for TRL's own way.

        A pass that is differentiated takes whole sequences, where they pay: a cache would have to hand gradients back. So does
        one whose prompts nobody else needs: it is one pass in place of two.
        """
        learns = torch.is_grad_enabled()
        together = self._prefers_whole(bare, answered, learns)
        if self._tells(obstacle(bare, cached=not together, learns=learns), "scored"):
            return None
        return self._score_together if together else self._score_behind

    def _prefers_whole(self: Any, bare: Any, answered: list[Answered], learns: bool) -> bool:
        """Whether whole sequences are scored rather than answers behind a cache."""
        if learns and self.together is not None:
            return bool(self.together)
        if not all(pays(bare, part) for part in answered):
            return False
        if learns:
            return True
        allowed = self._lets("loss") and obstacle(bare, cached=False, learns=True) is None
        return allowed and not self._known(bare) and not any_prompt_again(answered)

    def _score_together(self: Any, model: Any, bare: Any, answered: Answered) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities and entropies (B, keep) of answers, each prompt and its answers as one sequence."""
        layout = lay_out(bare, answered, self._memory(bare))
        # Through the wrapper of several processes: it has to know of the pass that is differentiated.
        output = model(**layout.inputs, labels=layout.labels, use_cache=False, fused_lm_head=True)
        entropy = output.entropy
        return layout.rows(output.log_probs), None if entropy is None else layout.rows(entropy)

    def _score_behind(self: Any, model: Any, bare: Any, answered: Answered) -> tuple[Tensor, Tensor | None]:
        """The same, with the prompts' keys and values handed to their answers."""
        inputs = answer_inputs(bare, answered, self._memory(bare), self._known(bare))
        labels = inputs["input_ids"].masked_fill(answered.batch.mask[:, answered.start - 1 :] == 0, -100)
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
        """As TRL's, with the policy's `generate` sharing prompts meanwhile."""
        with self._generating(images):
            answers: tuple[list[list[int]], list[list[float]] | None] = super()._generate_single_turn(  # type: ignore[misc]
                prompt_ids, images, multimodal_fields, num_generations, **tools
            )
        return answers

    @contextmanager
    def _generating(self: Any, images: list[Any] | None) -> Iterator[None]:
        if not self._lets("rollout") or self._draws_its_own_way():
            if self._lets("rollout"):
                self._tells(_OWN_ENGINE, "drawn")
            yield
            return
        bare = self._bare(self.model)
        stock: Callable[..., Tensor] = bare.generate

        def generate(**inputs: Any) -> Tensor:
            given = {**inputs, "num_images": [len(each or ()) for each in images or ()]}
            ids, mask, config = (given.pop(name) for name in ("input_ids", "attention_mask", "generation_config"))
            if not self._shares(given, "drawn") or self._tells(obstacle(bare), "drawn"):
                return stock(**inputs)
            # One context about all steps: weights that it turns into another precision are turned once a draw.
            with self.accelerator.autocast(), adapters_as_computed(bare):
                return generate_shared(bare, as_batch(ids, mask, given), config, self._memory(bare), self._known(bare))

        bare.generate = generate
        try:
            yield
        finally:
            del bare.generate

    def _prepare_inputs(self: Any, generation_batch: Any) -> Any:
        """As TRL's; where the order of rows is free, answers to one prompt are put into the same batch."""
        known = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)  # type: ignore[misc]
        fresh = self.model.training and self._buffered_inputs is not known
        if not (fresh and self._share and order_is_free(self.args)) or self._loss_obstacle():
            return inputs
        self._buffered_inputs = gather_prompts(self._buffered_inputs)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _lets(self: Any, part: str) -> bool:
        """Whether the recipe and the releases at hand let prompts be shared in a part."""
        return self._share and part not in self._unlike

    def _shares(self: Any, given: dict[str, Any], what: str, balances: bool = False) -> bool:
        """Whether this trainer and these inputs let prompts be shared; a reason against it is told once."""
        return not self._tells(self._refusal(given, balances), what)

    def _tells(self: Any, reason: str | None, what: str) -> bool:
        """Whether there is a reason against sharing, which is then told once."""
        if reason is None:
            return False
        text = f"grpo.share_prefix: answers are {what} with their prompts repeated: {reason}"
        if not self._told & {text, reason} and self.accelerator.is_main_process:
            warnings.warn(text, stacklevel=2)
        self._told.add(text)
        return True

    def _refusal(self: Any, given: dict[str, Any], balances: bool) -> str | None:
        """Why this trainer, or this batch, cannot share; None where it can."""
        reason: str | None = self._trainers_refusal()
        if reason is not None:
            return reason
        if balances:
            return _BALANCED
        if set(given) != _FIELDS or not all(given["num_images"]):
            return f"expected pictures in every prompt and the inputs {', '.join(sorted(_FIELDS))}, got {sorted(given)}"
        return None

    def _trainers_refusal(self: Any) -> str | None:
        """Why no batch of this trainer can share; None where one can."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            engine = "DeepSpeed" if self.is_deepspeed_enabled else "FSDP"
            return f"{engine}: a sharded model gathers its weights for its own forward alone"
        if self.args.use_liger_kernel:
            return "liger's kernels replace the layers"
        if drops_out(self._bare(self.model)):
            return "dropout: every answer drops out by itself, of its prompt too"
        return None

    def sharing_line(self: Any) -> str:
        """What a run says first: where prompts are shared, and why not where they are not; no warning says it again."""
        bare = self._bare(self.model)
        always = None if self._share else "grpo.share_prefix=false"
        always = always or self._trainers_refusal() or obstacle(bare, cached=False)
        thrown = self.args.gradient_checkpointing and not takes_masks(bare)  # see `_plan`
        reasons = {
            "rollout": always or (_OWN_ENGINE if self._draws_its_own_way() else self._unlike.get("rollout")),
            "loss": always
            or self._loss_obstacle()
            or ("flash attention takes no mask and gradient checkpointing no cache" if thrown else None),
        }
        self._told |= {reason for reason in reasons.values() if reason is not None}
        said = []
        for reason in dict.fromkeys(reasons.values()):
            where = " and ".join(part for part, why in reasons.items() if why == reason)
            said.append(f"shared in {where}" if reason is None else f"not shared in {where} ({reason})")
        if self._keeps_nothing:
            said.append("image features are not kept")
        return f"prompts are {'; '.join(said)}"

    def _loss_obstacle(self: Any) -> str | None:
        """Why no loss of this model shares prompts; None where one can. Experts get equal shares by a loss that TRL adds."""
        if getattr(self, "aux_loss_enabled", False):
            return _BALANCED
        unlike: str | None = self._unlike.get("loss")
        return obstacle(self._bare(self.model), cached=False, learns=True) or unlike

    def _draws_its_own_way(self: Any) -> bool:
        return bool(self.use_vllm or self.use_transformers_continuous_batching)

    def _bare(self: Any, model: Any) -> Any:
        """The model without what processes and adapters wrap around it; adapters stay in its layers."""
        inner = self.accelerator.unwrap_model(model)
        return inner.get_base_model() if isinstance(inner, PeftModel) else inner

    def _memory(self: Any, bare: Any) -> PictureMemory:
        """The memory that serves a model: the policy's serves the reference too, where both see alike."""
        policy = self._bare(self.model)
        state = state_of(bare.model.visual) + state_of(policy.model.visual)
        decided: tuple[list[tuple[int, int]], PictureMemory] | None = self._memories.get(id(bare))
        if decided is None or (bare is not policy and decided[0] != state):
            alike = bare is not policy and self._memory(policy).serves() and same_tower(bare, policy)
            decided = state, self._memory(policy) if alike else PictureMemory(bare, self._memory_mb)
            self._memories[id(bare)] = decided
        return decided[1]

    def _known(self: Any, bare: Any) -> PromptMemory | None:
        """What is known of prompts that the policy encodes while a draw is made; None where they have to be encoded.

        The policy without its adapters, which is then the reference, and another precision are others.
        """
        if self._encoded is None or torch.is_grad_enabled() or bare is not self._bare(self.model):
            return None
        device = self.accelerator.device.type
        adapters = [
            (layer.disable_adapters, *layer.active_adapters)
            for layer in bare.modules()
            if isinstance(layer, BaseTunerLayer)
        ]
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        known: PromptMemory = self._encoded.setdefault((precision, *adapters), PromptMemory())
        return known


# How sharing differs from TRL's way, by part, and why image features are not kept, None where they are.
_Trial = tuple[dict[str, str], str | None]


def _try(trainer: Any, bare: Any, memory_mb: int) -> _Trial:
    """What is tried before a run. Features are not kept where prompts can be shared in more parts without them."""
    trains_tower = any(weight.requires_grad for weight in bare.model.visual.parameters())
    keeping = find_difference(trainer, bare, memory_mb, trains_tower=False) if memory_mb else {}
    if memory_mb and not keeping and not trains_tower:
        return {}, None
    sharing = find_difference(trainer, bare, 0, trains_tower=trains_tower)
    return sharing, next((reason for part, reason in keeping.items() if part not in sharing), None)


def _join_trials(trials: list[_Trial]) -> _Trial:
    """What holds for all processes, in the words of the first that found it."""
    unlike: dict[str, str] = {}
    for found, _ in trials:
        unlike = found | unlike
    return unlike, next((unkept for _, unkept in trials if unkept is not None), None)


def _releases() -> str:
    return f"trl {version('trl')} and transformers {version('transformers')}"


def any_prompt_again(parts: list[Answered]) -> bool:
    """Whether a prompt stands in more than one of some batches of the same width."""
    if len(parts) == 1:
        return False
    # Each batch knows its own prompts already: only the first row of each is held against the others'.
    ids, mask = (
        torch.cat([getattr(part.batch, name)[part.prompts.first, : part.start] for part in parts])
        for name in ("ids", "mask")
    )
    rows = [pictured for part in parts for pictured in _first_rows(part)]
    return find_prompts(ids, mask, rows).shared


def _first_rows(part: Answered) -> list[Row]:
    rows = part.batch.pictures.rows()
    return [rows[number] for number in part.prompts.first.tolist()]


@contextmanager
def adapters_as_computed(model: Any) -> Iterator[None]:
    """Meanwhile LoRA's weights are in the precision that autocast computes in.

    The numbers are the same, and each layer is spared two changes of its inputs' precision a token.
    """
    device = model.device.type
    wide = lora_weights(model) if torch.is_autocast_enabled(device) else []
    values = [weight.data for weight in wide]
    try:
        for weight in wide:
            weight.data = weight.data.to(torch.get_autocast_dtype(device))
        yield
    finally:
        for weight, value in zip(wide, values, strict=True):
            weight.data = value


def lora_weights(model: Any) -> list[Any]:
    """The float32 matrices of a model's LoRA adapters."""
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    matrices = [getattr(layer, name) for layer in layers for name in ("lora_A", "lora_B")]
    return [weight for each in matrices for weight in each.parameters() if weight.dtype == torch.float32]


def as_batch(ids: Tensor, mask: Tensor, given: dict[str, Any]) -> Batch:
    """Rows (B, L) and the model's other inputs of the same rows."""
    pictures = Pictures(given["pixel_values"], given["image_grid_thw"], given["num_images"])
    return Batch(ids, mask, given["mm_token_type_ids"], pictures)


def order_is_free(args: Any) -> bool:
    """Whether an optimiser's step is the same whichever of its batches a row is in."""
    whole_steps = args.gradient_accumulation_steps % args.steps_per_generation == 0
    by_row = args.loss_type in _SUMS and args.top_entropy_quantile == 1.0 and args.entropy_coef == 0.0
    return bool(whole_steps and by_row)


def gather_prompts(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows in batches of the same size, those of one prompt together; prompts stay in the order they came in."""
    if len(batches) == 1 or batches[0].get("pixel_values") is None or "image_grid_thw" not in batches[0]:
        return batches
    split = [trl_utils.split_pixel_values_by_grid(batch) for batch in batches]
    whole = {name: _join([batch[name] for batch in split]) for name in split[0]}
    rows = list(zip(whole["pixel_values"], whole["image_grid_thw"], strict=True))
    order = torch.argsort(find_prompts(whole["prompt_ids"], whole["prompt_mask"], rows).of_row, stable=True).tolist()
    together = {name: _reorder(value, order) for name, value in whole.items()}
    return [
        trl_utils.unsplit_pixel_values_by_grid(batch) for batch in trl_utils.split_tensor_dict(together, len(batches))
    ]


def _join(values: list[Any]) -> Any:
    """What was split: lists end to end, tensors too; what belongs to all batches alike stays as it is."""
    if isinstance(values[0], list):
        return [item for value in values for item in value]
    return torch.cat(values) if isinstance(values[0], Tensor) and values[0].ndim else values[0]


def _reorder(value: Any, order: list[int]) -> Any:
    if isinstance(value, list):
        return [value[row] for row in order]
    return value[order] if isinstance(value, Tensor) and value.ndim else value
