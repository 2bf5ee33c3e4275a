"""What `rl` relies on inside TRL, checked before a run: a hook that moved stops it with one line instead of training wrongly."""

import inspect
from importlib.metadata import version

from trl import GRPOTrainer

from differad.errors import OptionError

# The private hooks that are overridden or called, each with the parameters that it must have, in order.
HOOKS: dict[str, tuple[str, ...]] = {
    "_generate_single_turn": (
        "self",
        "prompt_ids",
        "images",
        "multimodal_fields",
        "num_generations",
        "has_tool_images",
    ),
    "_generate_and_score_completions": ("self", "inputs"),
    "_get_train_sampler": ("self", "dataset"),
    "_prepare_inputs": ("self", "generation_batch"),
    "_compute_loss": ("self", "model", "inputs"),
    "_get_per_token_logps_and_entropies": (
        "self",
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
        "compute_entropy",
        "compute_aux_loss",
        "pixel_values",
        "image_grid_thw",
        "num_images",
        "pixel_attention_mask",
        "spatial_shapes",
        "num_tiles",
        "image_sizes",
        "token_type_ids",
        "mm_token_type_ids",
        "image_position_ids",
    ),
    "_load_from_checkpoint": ("self", "resume_from_checkpoint", "model"),
}
# What the methods must still mention: the values that are read or changed after them.
WORDS: dict[str, tuple[str, ...]] = {
    "_generate": ("_generate_single_turn(", "prompt_ids, images, multimodal_fields, num_generations"),
    "_generate_and_score_completions": (
        "_generate(prompts)",
        '"advantages"',
        '"completion_mask"',
        '"num_items_in_batch"',
    ),
    "_generate_single_turn": (".generate(", "**generate_inputs, generation_config=self.generation_config"),
    "_prepare_inputs": ("self._buffered_inputs[self._step % self.args.steps_per_generation]",),
    "_get_per_token_logps_and_entropies": (
        "labels=labels, fused_lm_head=True",
        "attention_mask_batch == 0, -100",
        "outputs.log_probs[:, -logits_to_keep:]",
        "outputs.entropy[:, -logits_to_keep:]",
    ),
    "_compute_loss": (
        'inputs["advantages"]',
        'inputs["completion_mask"]',
        'inputs["num_items_in_batch"]',
        "self._get_per_token_logps_and_entropies(",
        "per_token_loss + self.beta * per_token_kl",
        "/ mask.sum(-1).clamp(min=1.0)).mean()",
        "(per_token_loss * mask).sum(-1).mean()",
        "(per_token_loss * mask).sum() / mask.sum().clamp(min=1.0)",
        "/ (per_token_loss.size(0) * self.max_completion_length)",
    ),
    "log": ("self._metrics[mode]",),
}


def moved_hooks(trainer: type = GRPOTrainer) -> list[str]:
    """What is not where it was in `trainer`, in words; empty when all is well."""
    moved = []
    for name, expected in HOOKS.items():
        method = getattr(trainer, name, None)
        found = tuple(inspect.signature(method).parameters) if method else None
        if found != expected:
            moved.append(f"{name} takes {found} in place of {expected}" if found else f"{name} is gone")
    for name, words in WORDS.items():
        method = getattr(trainer, name, None)
        source = inspect.getsource(method) if method else ""
        moved += [f"{name} no longer has {word}" for word in words if word not in source]
    return moved


def check_hooks() -> None:
    """Raise OptionError when TRL's private hooks are not those that `rl` was written for."""
    moved = moved_hooks()
    if moved:
        raise OptionError(f"trl {version('trl')}: {'; '.join(moved)}; install the release that differad[train] names")
