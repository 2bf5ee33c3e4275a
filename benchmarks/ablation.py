"""Does the method work? Add each of its parts to the cold start separately, with several seeds, and test on unseen categories.

    differad train sft recipes/tiny/sft.yaml                     # the cold start that all arms share
    python benchmarks/ablation.py run --seeds 3 --workers 2      # trains missing runs, then writes docs/ablation.json
    python benchmarks/ablation.py report                         # docs/ablation.md and its figure from docs/ablation.json

Finished runs are reused, interrupted ones start again. All arms are evaluated on the same held-out pairs, without the locator's
calibrated decision. Intervals are Student's over seeds (95 %), for the cold start, which is one policy, over pairs (bootstrap).
Arms are compared by the paired differences of their seeds: they differ only if the interval of the differences excludes 0.
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np

from differad.evaluation.metrics import SIZES

RECIPE = Path("recipes/tiny/rl.yaml")
HELD_OUT = Path("data/tiny/held_out/pairs.jsonl")
COLD = "cold start"
ARMS = {
    "GRPO, IoU": ("iou", 0, False),
    "GRPO, DCLR": ("dclr", 0, False),
    "DCLR + resampling": ("dclr", 3, False),
    "DCLR + reweighting": ("dclr", 0, True),
    "all, DCLR": ("dclr", 3, True),
    "all, guarded": ("guarded", 3, True),
}
METRICS = ("miou", "acc_0.3", "normal_accuracy", "detection_f1")
# Compared arms: each part of the method with the arm that lacks it.
COMPARED = (
    ("GRPO, DCLR", "GRPO, IoU"),
    ("DCLR + resampling", "GRPO, DCLR"),
    ("DCLR + reweighting", "GRPO, DCLR"),
    ("all, DCLR", "GRPO, DCLR"),
    ("all, DCLR", "GRPO, IoU"),
    ("all, guarded", "all, DCLR"),
)
INFORMATIVE = "informative groups, last 20 steps"
# Student's t for 95 % at 1 to 9 degrees of freedom.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def train(arm: str, seed: int, root: Path, more: list[str]) -> Path:
    reward, resamples, reweight = ARMS[arm]
    out = root / f"{arm.replace(', ', '-').replace(' + ', '-').replace(' ', '-')}-{seed}"
    if (out / "model" / "run_info.json").exists():
        return out
    settings = {
        "out": out,
        "train.seed": seed,
        "data.seed": seed,
        "grpo.reward": reward,
        "grpo.resamples": resamples,
        "grpo.reweight": str(reweight).lower(),
    }
    command = [sys.executable, "-m", "differad", "train", "rl", str(RECIPE)]
    log = root / f"{out.name}.log"
    with log.open("w") as file:
        subprocess.run(
            [*command, *(f"{key}={value}" for key, value in settings.items()), *more, "train.report_to=[]"],
            stdout=file,
            stderr=subprocess.STDOUT,
            check=True,
        )
    return out


def by_size(metrics: dict) -> dict[str, float]:
    """Mean IoU of anomalous pairs by the size of their defect, with the size classes of `differad evaluate`."""
    return {name: metrics["sizes"][name]["miou"] for name, _ in SIZES}


def read_run(out: Path) -> dict:
    """Final metrics, metrics over steps, and the trainer's logged values of one run."""
    folders = sorted((out / "evaluation").glob("step-*"), key=lambda folder: int(folder.name.partition("-")[2]))
    steps = {
        int(folder.name.partition("-")[2]): json.loads((folder / "metrics.json").read_text()) for folder in folders
    }
    logged = json.loads((max(out.glob("checkpoint-*")) / "trainer_state.json").read_text())["log_history"]
    return {
        "final": {name: steps[max(steps)]["overall"][name] for name in METRICS},
        "sizes": by_size(steps[max(steps)]),
        "curve": {step: {name: values["overall"][name] for name in METRICS} for step, values in steps.items()},
        "informative": [
            [entry["step"], entry["groups/informative"]] for entry in logged if "groups/informative" in entry
        ],
        "rollout_iou": [[entry["step"], entry["iou"]] for entry in logged if "iou" in entry],
    }


def run(arguments: argparse.Namespace) -> None:
    arguments.root.mkdir(parents=True, exist_ok=True)
    cold = arguments.root / "cold-start"
    command = [
        sys.executable,
        "-m",
        "differad",
        "evaluate",
        str(HELD_OUT),
        "--model",
        arguments.cold_start,
        "--out",
        str(cold),
    ]
    subprocess.run([*command, "-o", "max_new_tokens=16", "-o", "batch_size=32"], check=True, stdout=subprocess.DEVNULL)
    jobs = list(product(range(arguments.seeds), ARMS))
    with ThreadPoolExecutor(arguments.workers) as pool:
        outs = list(pool.map(lambda job: train(job[1], job[0], arguments.root, arguments.more), jobs))
    metrics = json.loads((cold / "metrics.json").read_text())
    overall = metrics["overall"]
    stored = {
        "cold": {
            "final": {name: overall[name] for name in METRICS},
            "miou_ci95": overall["miou_ci95"],
            "pairs": overall["pairs"],
            "sizes": by_size(metrics),
        },
        "arms": {
            arm: [read_run(out) for (_, name), out in zip(jobs, outs, strict=True) if name == arm] for arm in ARMS
        },
    }
    arguments.stored.write_text(json.dumps(stored, indent=1) + "\n")
    report(arguments)


def half_width(values: list[float]) -> float:
    """Half of the 95 % interval (Student's t) of the mean of two or more values."""
    return STUDENT[len(values) - 2] * float(np.std(values, ddof=1)) / len(values) ** 0.5


def interval(values: list[float]) -> str:
    mean = float(np.mean(values))
    return f"{mean:.3f}" if len(values) < 2 else f"{mean:.3f} ± {half_width(values):.3f}"


def informative(one: dict) -> float:
    """Share of informative groups over the last 20 steps of a run."""
    return float(np.mean([value for _, value in one["informative"][-4:]]))


def differences(runs: dict[str, list[dict]]) -> list[str]:
    """Table of the paired differences of `COMPARED`, and a sentence on which of them exclude 0."""
    names = (*METRICS, INFORMATIVE)
    lines = [f"| paired difference | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    significant = []
    for arm, other in COMPARED:
        cells = []
        for name in names:
            a, b = ([informative(one) if name == INFORMATIVE else one["final"][name] for one in runs[which]]
                    for which in (arm, other))  # fmt: skip
            values = [x - y for x, y in zip(a, b, strict=True)]
            mean, half = float(np.mean(values)), half_width(values)
            # Equal differences have no spread and so no interval.
            cells.append(f"{mean - half:+.3f} to {mean + half:+.3f}" if half else f"{mean:+.3f} in each")
            if abs(mean) > half > 0:
                significant.append(f"{name} of {arm} − {other}")
        lines.append(f"| {arm} − {other} | {' | '.join(cells)} |")
    count, seeds = len(COMPARED) * len(names), len(runs[COMPARED[0][0]])
    listed = f" ({'; '.join(significant)})" if significant else ""
    summary = (
        f"95 % intervals of the paired differences over {seeds} seeds. {len(significant)} of {count} exclude 0{listed}; "
        "1 in 20 is expected by chance."
    )
    return [*lines, "", summary]


def replace_block(page: str, name: str, lines: list[str]) -> str:
    """The page with the lines between `<!-- NAME -->` and `<!-- end of NAME -->` replaced."""
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, _, rest = page.partition(start)
    return before + start + "\n".join(lines) + "\n" + end + rest.partition(end)[2]


def report(arguments: argparse.Namespace) -> None:
    stored = json.loads(arguments.stored.read_text())
    cold = stored["cold"]
    low, high = cold["miou_ci95"]
    names = [*METRICS, *(f"mIoU, {size}" for size, _ in SIZES), INFORMATIVE]
    lines = [f"| arm | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    cells = [f"{cold['final'][name]:.3f}" for name in METRICS]
    cells[0] += f" ({low:.3f}–{high:.3f} over pairs)"
    cells += [f"{cold['sizes'][size]:.3f}" for size, _ in SIZES]
    lines.append(f"| {COLD} | {' | '.join([*cells, '–'])} |")
    for arm, runs in stored["arms"].items():
        row = [interval([one["final"][name] for one in runs]) for name in METRICS]
        row += [interval([one["sizes"][size] for one in runs]) for size, _ in SIZES]
        row.append(f"{np.mean([informative(one) for one in runs]):.2f}")
        lines.append(f"| {arm} | {' | '.join(row)} |")
    page = replace_block(arguments.page.read_text(encoding="utf-8"), "table", lines)
    compared = (
        differences(stored["arms"]) if len(stored["arms"][COMPARED[0][0]]) > 1 else ["One seed gives no differences."]
    )
    arguments.page.write_text(replace_block(page, "differences", compared), encoding="utf-8")
    plot(stored, arguments.picture)
    print("\n".join([*lines, "", *compared]))


def plot(stored: dict, path: Path) -> None:
    import matplotlib as mpl
    from matplotlib import pyplot

    mpl.use("Agg")

    figure, axes = pyplot.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    for arm, runs in stored["arms"].items():
        steps = [int(step) for step in runs[0]["curve"]]
        for axis, metric in zip(axes, ("miou", "normal_accuracy"), strict=False):
            values = np.array([[one["curve"][str(step)][metric] for step in steps] for one in runs])
            values = np.concatenate([np.full((len(runs), 1), stored["cold"]["final"][metric]), values], axis=1)
            axis.plot([0, *steps], values.mean(axis=0), label=arm, marker="o", markersize=3)
            axis.fill_between([0, *steps], values.min(axis=0), values.max(axis=0), alpha=0.12)
        shares = np.array([[value for _, value in one["informative"]] for one in runs])
        axes[2].plot([step for step, _ in runs[0]["informative"]], shares.mean(axis=0), label=arm)
    for axis, title in zip(
        axes, ("held-out mIoU", "held-out normal accuracy", "share of informative groups"), strict=True
    ):
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("more", nargs="*", help="further keys of the recipe, such as train.steps=4")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="parallel runs; OMP_NUM_THREADS=1 gives each one core")
    parser.add_argument("--root", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--cold-start", default="runs/tiny/sft/model")
    parser.add_argument("--stored", type=Path, default=Path("docs/ablation.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/ablation.md"))
    parser.add_argument("--picture", type=Path, default=Path("docs/images/ablation.png"))
    arguments = parser.parse_args()
    (run if arguments.what == "run" else report)(arguments)


if __name__ == "__main__":
    main()
