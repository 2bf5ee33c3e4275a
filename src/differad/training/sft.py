"""Cold start: supervised fine-tuning on reference-target pairs, TRL's `SFTTrainer` with a reproducible order of the data."""

from typing import Any

import torch
from torch.utils.data import RandomSampler
from trl import SFTConfig, SFTTrainer

from differad.locators.tiny.model import DENSE_WEIGHT, ChangeEncoder, dense_loss
from differad.locators.tiny.processor import EvidenceProcessor
from differad.training.clock import ClockMixin
from differad.training.coverage import WithCoverage
from differad.training.data import build_dataset
from differad.training.loop import EpochSampler, RunFoldersMixin, epoch_of, run_phase, trainer_config
from differad.training.policy import CheckpointParts, load_model, lora_config
from differad.training.recipe import SftRecipe


class PairSftTrainer(ClockMixin, RunFoldersMixin, SFTTrainer):
    """TRL's trainer with a loss on the answers only; the embedded policy also has a dense loss on its change map."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss, plus the dense loss if the batch has `coverage`.

        TRL replaces the model's forward and ignores its loss, so the dense loss is added here, as TRL adds a model's own.
        """
        coverage = inputs.pop("coverage", None)
        text_loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if coverage is None:
            return text_loss
        comparer = next(module for module in self.model.modules() if isinstance(module, ChangeEncoder))
        dense = DENSE_WEIGHT * dense_loss(comparer.logits, coverage, inputs["image_grid_thw"])
        # If the text loss is divided by the tokens of a whole step, the trainer sums over its batches.
        dense = dense / (self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1)
        return (text_loss[0] + dense, text_loss[1]) if return_outputs else text_loss + dense

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        stock = RandomSampler(dataset, generator=torch.Generator())
        return EpochSampler(stock, self.args.seed, lambda: epoch_of(self.state))


def train_sft(recipe: SftRecipe, *, resume: bool = False) -> dict[str, Any]:
    """Run a cold start to its end; see `loop.run_phase`. Raises OptionError, ManifestError, ImageError."""
    return run_phase(recipe, lambda checkpoint, callbacks: build_trainer(recipe, checkpoint, callbacks), resume=resume)


def build_trainer(recipe: SftRecipe, checkpoint: CheckpointParts, callbacks: list[Any]) -> PairSftTrainer:
    """The trainer of a recipe. Raises OptionError, ManifestError, ImageError."""
    # A length limit could cut off a prompt's image tokens.
    config = trainer_config(SFTConfig, recipe, max_length=None, completion_only_loss=True)
    model = load_model(checkpoint, recipe.model)
    trainer = PairSftTrainer(
        model=model,
        args=config,
        train_dataset=build_dataset(recipe.data, checkpoint.convention, with_answer=True),
        processing_class=checkpoint.processor,
        peft_config=lora_config(recipe.model.lora, model),
        callbacks=callbacks,
    )
    if isinstance(checkpoint.processor.image_processor, EvidenceProcessor):
        trainer.data_collator = WithCoverage(trainer.data_collator)
    return trainer
