"""All code that depends on TRL's internals: the private hooks that `rl` overrides or calls, and a trainer copy for another model.

Written for TRL 1.16. A hook that has changed stops a run with one line instead of training wrongly. This module checks only
what is needed without prefix sharing too; `probe` tests at the start of each run whether sharing still gives TRL's own losses.
"""

import copy
import inspect
from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import torch
from trl import GRPOTrainer
from trl.trainer import utils as trl_utils

from differad.errors import OptionError

# Each hook's required parameters, in order.
SIGNATURES: dict[str, tuple[str, ...]] = {
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
    "_load_from_checkpoint": ("self", "resume_from_checkpoint", "model"),
}
# Functions that split and join batches with patches grouped by image.
FUNCTIONS = ("split_pixel_values_by_grid", "split_tensor_dict", "unsplit_pixel_values_by_grid")
# What a trainer must have once it is built, and what its scored batch must contain.
ATTRIBUTES = ("_buffered_inputs", "_metrics", "_step", "beta", "loss_type", "num_generations")
OUTPUTS = ("advantages", "completion_mask", "num_items_in_batch")
_REMEDY = "install the release that differad[train] names"


def moved_hooks(trainer: type = GRPOTrainer) -> list[str]:
    """Each hook of `trainer` that has changed, as a message; empty if none has."""
    moved = []
    for name, expected in SIGNATURES.items():
        method = getattr(trainer, name, None)
        actual = tuple(inspect.signature(method).parameters) if method else None
        if actual != expected:
            moved.append(f"{name} takes {actual} in place of {expected}" if actual else f"{name} is gone")
    return [*moved, *(f"trl.trainer.utils.{name} is gone" for name in FUNCTIONS if not hasattr(trl_utils, name))]


def check_hooks() -> None:
    """Raise OptionError if TRL's private hooks differ from those that `rl` was written for."""
    _refuse(moved_hooks())


def check_attributes(trainer: Any) -> None:
    """Raise OptionError if a trainer lacks an attribute that `rl` reads."""
    _refuse([f"{type(trainer).__name__} has no {name}" for name in ATTRIBUTES if not hasattr(trainer, name)])


def check_sampler(sampler: Any) -> None:
    """Raise OptionError if TRL's sampler of prompts has no random generator of its own."""
    if not isinstance(getattr(sampler, "generator", None), torch.Generator):
        _refuse([f"_get_train_sampler gives a {type(sampler).__name__} without a generator"])


def check_outputs(output: dict[str, Any]) -> None:
    """Raise OptionError if a scored batch lacks what `rl` weights and masks."""
    _refuse([f"_generate_and_score_completions gives no {name!r}" for name in OUTPUTS if name not in output])


def refuse_loss(trainer: Any, difference: str | None) -> None:
    """Raise OptionError if TRL's loss with masked completions no longer equals that of the others."""
    if difference is not None:
        _refuse(
            [f"the loss {trainer.loss_type!r} of answers that are left out is not that of the others ({difference})"]
        )


def _refuse(moved: list[str]) -> None:
    if moved:
        raise OptionError(f"trl {version('trl')}: {'; '.join(moved)}; {_REMEDY}")


def copy_trainer(trainer: Any, model: Any, *, batches: int, max_new_tokens: int, pad: int, unused: int) -> Any:
    """A copy of a trainer, with its settings, that generates and scores completions of another model in this process only.

    An optimiser step takes `batches` batches. Its logs stay separate. `pad` pads short prompts. `unused` is the end token: no
    completion ends early if the model never generates it.
    """
    copied = copy.copy(trainer)
    copied.args = copy.copy(trainer.args)
    copied.args.report_to = []
    copied.args.gradient_accumulation_steps = copied.args.steps_per_generation = batches
    copied.accelerator = _OneProcess(trainer.accelerator)
    copied.model = copied.model_wrapped = model
    copied.ref_model = None
    copied._metrics = {mode: defaultdict(list) for mode in trainer._metrics}
    copied._tokenizer = SimpleNamespace(pad_token_id=pad)
    copied.eos_token_ids = [unused]
    copied.generation_config = copy.deepcopy(trainer.generation_config)
    copied.generation_config.update(
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        eos_token_id=[unused],
        suppress_tokens=[model.config.image_token_id],  # as TRL does: the token would need an image
    )
    copied.generation_kwargs = None
    copied.use_vllm = copied.use_transformers_continuous_batching = False
    copied.top_entropy_quantile = 1.0  # rounding could move a token across the threshold
    copied.current_gradient_accumulation_steps = batches
    # TRL makes the policy's head return log-probabilities and entropies instead of logits.
    trl_utils.add_fused_lm_head(
        model,
        temperature=trainer.temperature,
        cast_lm_head_to_fp32=trainer.args.cast_lm_head_to_fp32,
        outputs=("log_probs", "entropy"),
    )
    return copied


class _OneProcess:
    """An accelerator in full precision for one process: gathering returns its own values and waits for nobody."""

    num_processes, process_index, is_main_process = 1, 0, True

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)

    def autocast(self, *_: Any, **__: Any) -> AbstractContextManager[None]:
        """Full precision."""
        return nullcontext()

    def gather(self, values: Any) -> Any:
        """The values."""
        return values

    def gather_for_metrics(self, values: Any, *_: Any, **__: Any) -> Any:
        """The values."""
        return values

    def reduce(self, values: Any, *_: Any, **__: Any) -> Any:
        """The values."""
        return values
