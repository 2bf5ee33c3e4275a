"""A trainer with scripted answers, so that expected values can be worked out by hand."""

import json
from pathlib import Path

import torch

from differad.training.loop import destroy_process_group
from differad.training.policy import open_checkpoint
from differad.training.recipe import RlRecipe
from differad.training.rl import DifficultyAwareTrainer, build_trainer

UNREADABLE = "?"


def answer(*box):
    x1, y1, x2, y2 = box or (0, 0, 0, 0)
    return f"<think></think><answer>({x1},{y1}),({x2},{y2})</answer>"


class ScriptedTrainer(DifficultyAwareTrainer):
    """`script[pair][attempt]` has the answers of a group; the target's first pixel is the number of the pair."""

    script: dict[int, list[list[str]]]
    calls: int

    def begin(self, script):
        self.script, self.calls = script, 0

    def _generate_completions(self, prompt_ids, images, fields, num_generations):
        if images[0][0] is None:  # the probe of prefix sharing, whose miniature has an image's patches alone
            return super()._generate_completions(prompt_ids, images, fields, num_generations)
        pairs = [row[1].getpixel((0, 0))[0] for row in images]
        mine = [int(row["id"].removeprefix("p")) for row in self._rows]
        begin = self.accelerator.process_index * len(mine)
        texts, seen = [], {}
        for pair in pairs:
            # Which member of its group a row is: a group may have begun on the process before.
            member = (begin + mine.index(pair) + seen.setdefault(pair, 0)) % self.num_generations
            seen[pair] += 1
            attempts = self.script[pair]
            texts.append(attempts[min(self.calls, len(attempts) - 1)][member])
        self.calls += 1
        tokenizer = self.processing_class.tokenizer
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        closed = [
            row if text.endswith("…") else [*row, tokenizer.eos_token_id] for row, text in zip(ids, texts, strict=True)
        ]
        return closed, None

    def score(self, pairs):
        """What TRL would train on, for the rows of this process; the global batch is every pair, G times."""
        every = [pair for pair in pairs for _ in range(self.num_generations)]
        count = len(every) // self.accelerator.num_processes
        begin = self.accelerator.process_index * count
        self.model.train()
        rows = [self.train_dataset[pair] for pair in every[begin : begin + count]]
        return self._generate_and_score_completions(rows)


def make_trainer(recipe, kind=ScriptedTrainer):
    source = open_checkpoint(recipe.model, recipe.out, recipe.train.seed)
    return build_trainer(recipe, source, [], kind)


# Three groups of four. Pair 0: readable at once. Pair 1 (normal): all wrong twice, then one right. Pair 2: never.
SCRIPT = {
    0: [[answer(250, 250, 500, 750), answer(250, 250, 500, 500), answer(), UNREADABLE]],
    1: [[answer(1, 2, 3, 4)] * 4, [UNREADABLE] * 4, [answer(), answer(5, 6, 7, 8), UNREADABLE, answer(1, 2, 3, 4)]],
    2: [[UNREADABLE] * 4, [answer()] * 4, [UNREADABLE, "no", "none", answer()]],
}


def summarise(trainer, output):
    """The values that every process count must agree on, gathered in order."""
    gather = trainer.accelerator.gather
    rollout = trainer._rollout
    return {
        "advantages": gather(output["advantages"]).tolist(),
        "tokens": gather(output["completion_mask"].sum(dim=1)).tolist(),
        "processes": trainer.accelerator.num_processes,
        "num_items": int(output["num_items_in_batch"]),
        "uninformative": rollout.uninformative.tolist(),
        "resamples": rollout.resamples.tolist(),
        "localization": rollout.localization.tolist(),
        "metrics": {
            name: values[-1]
            for name, values in trainer._metrics["train"].items()
            if name.startswith(("groups/", "weights/", "iou", "miss_rate", "rewards/", "completions/"))
        },
    }


def learn(trainer, out):
    """Train on the script and write the weights before and after."""

    def weights():
        return {
            name: value.clone() for name, value in trainer.accelerator.unwrap_model(trainer.model).state_dict().items()
        }

    trainer.begin({**SCRIPT, 3: SCRIPT[0]})
    before = weights()
    trainer.train()
    if trainer.accelerator.is_main_process:
        torch.save({"before": before, "after": weights()}, out)


def main(recipe_path, out, task="score"):
    """Run under torchrun: score the script and write what came out, one file a process; or learn from it."""
    recipe = RlRecipe.model_validate_json(Path(recipe_path).read_text())
    trainer = make_trainer(recipe)
    if task == "learn":
        learn(trainer, Path(recipe_path).with_suffix(".pt"))
    else:
        trainer.begin(SCRIPT)
        output = trainer.score([0, 1, 2])
        summary = summarise(trainer, output)
        Path(out, f"{trainer.accelerator.process_index}.json").write_text(json.dumps(summary))
    destroy_process_group(trainer)


__all__ = ["SCRIPT", "ScriptedTrainer", "answer", "make_trainer", "summarise"]

if __name__ == "__main__":
    import sys

    main(*sys.argv[1:])
