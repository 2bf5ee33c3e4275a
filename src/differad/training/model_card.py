"""The README.md of a trained model's folder: its origin, its scores, its use. Knows nothing of torch."""

from collections.abc import Iterable, Mapping
from typing import Any

MODEL_CARD = "README.md"
_PHASES = {"sft": "cold start (supervised)", "rl": "reinforcement learning (difficulty-aware GRPO)"}
_HELD_OUT = {
    "eval_miou": "mIoU of abnormal pairs",
    "eval_acc_0.3": "abnormal pairs with IoU of 0.3 or more",
    "eval_detection_f1": "F1 of normal against abnormal",
    "eval_normal_accuracy": "normal pairs answered as normal",
    "eval_valid": "answers that could be read",
}


def model_card(run: Mapping[str, Any], step: int, last: Mapping[str, Any]) -> str:
    """Markdown with the description of a run (`describe_run`), its `step` and the `last` value of each logged metric."""
    recipe = run["recipe"]
    checkpoint = recipe["model"]["checkpoint"]
    start = f"`{checkpoint}`" if checkpoint else "random weights"
    scores = [f"| {name} | {last[key]:.3f} |" for key, name in _HELD_OUT.items() if isinstance(last.get(key), float)]
    held_out = ", ".join(f"`{path}`" for path in recipe["held_out"]["pairs"])
    return "\n".join(
        [
            *("---", "library_name: transformers", "pipeline_tag: image-text-to-text", "tags: [differad]", "---", ""),
            *("# A policy for one-shot visual inspection, trained with differad", ""),
            "Given images of a normal part (reference) and of a part to inspect (target), it answers whether the target is "
            "abnormal, and where.",
            *("", "    differad locate good.png test.png --model THIS_FOLDER", ""),
            *("## Training", ""),
            f"- {_PHASES[recipe['phase']]}, {step} steps, from {start}",
            *(f"- data: `{path}` (SHA-256 {digest[:16]}…)" for path, digest in run["data"].items()),
            f"- versions: {', '.join(f'{name} {number}' for name, number in run['versions'].items() if number)}",
            *("- recipe, full checksums and commit: `run_info.json` beside this file", ""),
            *(_held_out(held_out, scores) if scores else ["Not evaluated on held-out pairs during training.", ""]),
            *("## Licence", ""),
            "That of the checkpoint it was trained from and of the data, whose terms hold for what is trained on them; "
            "differad adds none.",
            "",
        ]
    )


def last_values(history: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The last logged value of every metric."""
    last: dict[str, Any] = {}
    for entry in history:
        last |= entry
    return last


def _held_out(names: str, scores: list[str]) -> list[str]:
    return [f"Last evaluation during training, on {names}:", "", "| metric | value |", "|---|---|", *scores, ""]
