"""README and docs run as printed: each page's commands and snippets, in order, in an empty folder; others give a reason.

PAGES holds the requirements of each page, its scaled-down work and further promises. docs_runner.py executes a page.
"""

import os
import subprocess
import sys

import pytest

from docs_blocks import PAGES as NAMES
from docs_blocks import ROOT, anchors, blocks, indented_code, links, read_page, without_comment
from docs_commands import examples, faults, texts
from docs_runner import Page, Run
from docs_stand_ins import (
    a_pair,
    checkout,
    checkpoint_at,
    drawn,
    folders,
    from_tool,
    good_and_test,
    images,
    inspected,
    labelled,
    more_good_parts,
    mvtec_at,
    normal_pairs,
    policy_at,
    predictions,
    real_iad_zippers,
    wrong_manifest,
)

FEW_NORMALS = {"false_alarms=0.05": "false_alarms=0.5"}  # 1 / 0.5 - 1: one normal pair is enough
SHORT = "train.steps=2 train.batch_size=8 train.log_every=1 data.limit=4 held_out.every=2 held_out.limit=2"
TRAINING = dict.fromkeys(
    (
        "bash recipes/tiny/data.sh data/tiny",
        "differad train sft recipes/tiny/compare.yaml",
        "differad train sft recipes/tiny/sft.yaml",
        "differad train rl recipes/tiny/rl.yaml",
    ),
    "docs/training.md",
)

PAGES = {
    "README.md": Page(
        setup=(good_and_test, folders(), labelled(), from_tool("label-studio", "tasks.json", "corrected.json"),
               mvtec_at("data/mvtec_ad"), checkout("Makefile", "pyproject.toml", "constraints.txt"),
               *(labelled(f"data/{name}/pairs.jsonl") for name in ("natural", "synthetic", "held_out")),
               checkpoint_at("runs/qwen3-vl-2b/sft-lora/model", "qwen3_vl")),
        scaled={
            "make ": "make --dry-run ",
            "--count 10000": "--count 4",
            "--workers 2": "--workers 1",
            "sft-lora.yaml": "sft-lora.yaml --check",
            "rl-lora.yaml": "rl-lora.yaml --check",
        },
        elsewhere={"bash recipes/tiny/train.sh work/look 0.005": "docs/training.md"},
        leaves=("overlay.png", "predictions.jsonl", "runs/auto/metrics.json", "runs/auto/report.html", "pairs/mvtec/pairs.jsonl",
                "pairs/synthetic/mask", "tasks/tasks.json", "corrected.jsonl"),
        prints={"make demo": "differad locate", "--save overlay.png": "^abnormal", "differad models": "--model openai:"},
        holds=("location.anomalous is True", "location.boxes.shape == (1, 4)", "location.confidence > 0.9", "location.reasoning"),
    ),
    "docs/ad_dualdiff.md": Page(
        setup=(mvtec_at("DATASETS/mvtec", "metal_nut", "tile"), real_iad_zippers, checkout("recipes")),
        leaves=("ad_dualdiff/pairs.jsonl", "ad_dualdiff/card.md", "ad_dualdiff/sheet.html", "my_benchmark/pairs.jsonl"),
        prints={"--out ad_dualdiff": "(?s)absent.*aitex"},
    ),
    "docs/benchmarks.md": Page(
        setup=(checkout("benchmarks", "tests"),),
        scaled={
            "--pairs 40": "--pairs 2",
            "--pairs 16": "--pairs 2",
            "--sizes 12500 25000": "--sizes 200 400 --side 96",
            "--pairs 2000": "--pairs 100",
        },
    ),
    "docs/build.md": Page(
        setup=(mvtec_at("data/mvtec"), folders(), inspected),
        scaled={"/data/mvtec": "data/mvtec"},
        leaves=(*(f"pairs/mvtec/{name}" for name in ("card.json", "card.md", "sheet.html")), "splits/train.jsonl",
                "splits/test.jsonl"),
    ),
    "docs/command_line.md": Page(
        setup=(folders(),),
        leaves=tuple(f"inspected/{name}" for name in ("results.csv", "overlays", "report.html", "pairs.jsonl")),
    ),
    "docs/data.md": Page(setup=(wrong_manifest,)),
    "docs/difference.md": Page(
        setup=(good_and_test,),
        scaled={"false_alarms=0.02": "false_alarms=0.5"},
        names=lambda folder: {"pair": a_pair(), "normal_pairs": normal_pairs()},
        holds=("location.anomalous", "stricter.options.threshold != locator.options.threshold"),
    ),
    "docs/evaluation.md": Page(
        setup=(labelled(), labelled("more/pairs.jsonl", "more/"), predictions),
        leaves=("runs/difference/predictions.jsonl", "runs/difference/metrics.json", "runs/difference/report.html"),
    ),
    "docs/exchange.md": Page(
        setup=(labelled(), predictions, from_tool("label-studio", "tasks.json", "export.json"),
               from_tool("cvat", "annotations.xml", "annotations.xml"), from_tool("coco", "instances.json", "instances.json")),
        scaled={
            "--root /data": "--root .",
            # The page's sections are other ways to the same; nothing is overwritten.
            "cvat pairs.jsonl review": "cvat pairs.jsonl review_in_cvat",
            "annotations.xml pairs.jsonl corrected.jsonl": "annotations.xml pairs.jsonl from_cvat.jsonl",
            "data pairs.jsonl corrected.jsonl": "data pairs.jsonl from_yolo.jsonl",
            "instances.json pairs.jsonl corrected.jsonl": "instances.json pairs.jsonl from_coco.jsonl",
        },
        leaves=("review/tasks.json", "review/config.xml", "review_in_cvat/annotations.xml", "review_in_cvat/labels.json",
                "data/data.yaml", "data/labels", "corrected.jsonl", "from_cvat.jsonl", "from_yolo.jsonl", "from_coco.jsonl"),
        holds=("len(evaluation.params.imgIds) == 3",),
    ),
    "docs/features.md": Page(
        setup=(good_and_test, more_good_parts),
        scaled=FEW_NORMALS,
        names=lambda folder: {"pair": a_pair(), "normal_pairs": normal_pairs()},
        holds=("location.anomalous", "heat.ndim == 2", "several.locate(pair).anomalous"),
    ),
    "docs/models.md": Page(
        setup=(good_and_test, labelled(), checkpoint_at("my-qwen2.5-vl", "qwen2_5_vl")),
        scaled={"device=cuda": "device=cpu", "http://127.0.0.1:8000/v1": "SERVER"},
        names=lambda folder: {"targets": ["test.png", "good.png"]},
        leaves=("runs/features/metrics.json", "runs/qwen3/metrics.json"),
        prints={"./my-qwen2.5-vl": "^abnormal", "--out runs/qwen3": "board"},
        holds=("outcome.anomalous",),
    ),
    "docs/python.md": Page(
        setup=(good_and_test, folders("more_good"), labelled(), drawn("normal.jsonl", 2, normal_share=1)),
        scaled=FEW_NORMALS,
        leaves=("overlay.png",),
        holds=("location.anomalous", "len(pairs) == 3", "bgr.ndim == 3"),
    ),
    "docs/scale.md": Page(
        scaled={"--count 100000": "--count 4", "--workers 8": "--workers 1"},
        leaves=("synthetic/reference/00000000.png", "synthetic/pairs.jsonl", "shards/shard-00000000.tar", "shards/shards.jsonl"),
        holds=("len(list(read_shards('shards'))) == 4", "len(shard_files('shards')) == 1"),
    ),
    "docs/tiny.md": Page(
        setup=(good_and_test, policy_at("runs/tiny/own/model"), drawn("my/pairs.jsonl", 8),
               drawn("my/calibration.jsonl", 12, size=96), checkout("recipes", "benchmarks")),
        scaled={
            **FEW_NORMALS,
            "recipes/tiny/own.yaml": "recipes/tiny/own.yaml train.steps=1 train.batch_size=2 held_out.limit=2",
            "--write": "--write --once",
        },
        elsewhere=TRAINING,
        names=lambda folder: {"pair": a_pair(), "normal_pairs": normal_pairs()},
        leaves=("runs/tiny/own/model/decision.json",),
        prints={"--model tiny": "^abnormal", "tiny@runs": "^abnormal", "auto@runs": "^abnormal"},
        holds=("location.anomalous",),
    ),
    "docs/training.md": Page(
        setup=(good_and_test, images("PHOTOGRAPHS", size=720)),
        scaled={
            "bash recipes/tiny/train.sh work/look 0.005": f"LEAST=4 bash recipes/tiny/train.sh work/look 0.0005 {SHORT}",
            # What train.sh has just made by the same scripts and recipes.
            "bash recipes/tiny/data.sh data/tiny": "cp -r work/look/data work/look/runs .",
            "recipes/tiny/compare.yaml": "recipes/tiny/compare.yaml --check",
            "train sft recipes/tiny/sft.yaml": "train sft recipes/tiny/sft.yaml --check",
            "recipes/tiny/rl.yaml": "recipes/tiny/rl.yaml --check",
            "--workers 2": "--workers 1 data.limit=4 held_out.limit=2",
            "--count 10000": "--count 2",
            "--count 200": "--count 2",
            "--workers 8": "--workers 1",
        },
        leaves=("data/natural/pairs.jsonl", "data/synthetic/pairs.jsonl", "data/held_out/pairs.jsonl"),
        prints={"recipes/tiny/train.sh": "policy: work/look/runs/tiny/rl/model",
                "--model runs/tiny/rl/model": r"score 0\.\d\d|normal"},
    ),
    "docs/versions.md": Page(
        setup=(checkout("benchmarks"),),
        scaled={"--count 100": "--count 1", "--size 384": "--size 160"},
        leaves=("old.jsonl", "new.jsonl"),
    ),
    "docs/synthesis.md": Page(
        setup=(images("good_parts"), images("photos", size=720)),
        scaled={"--count 10000": "--count 2", "--workers 2": "--workers 1"},
        leaves=("pairs/pairs.jsonl", "own/pairs.jsonl", "natural/pairs.jsonl"),
        holds=(
            "pair.mask.shape == (224, 224)",
            "(pair.target == PairGenerator(SynthesisOptions(seed=0, size=224)).generate(17).target).all()",
        ),
    ),
}  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="pages are written for a POSIX shell")
@pytest.mark.parametrize("name", NAMES)
def test_a_page_runs_as_printed(name, tmp_path, desk):
    Run(name, PAGES.get(name, Page()), tmp_path, desk.url).all_of(read_page(name))


@pytest.mark.parametrize("name", NAMES)
def test_what_a_page_names_exists(name):
    found = [f"{place}: {code}: {fault}" for place, code in texts(name) for fault in faults(code)]
    assert found == []


def test_what_help_texts_and_heads_of_files_name_exists():
    found = examples()
    assert len(found) > 100
    assert [f"{place}: {code}: {fault}" for place, code in found for fault in faults(code)] == []


@pytest.mark.parametrize("name", NAMES)
def test_code_stands_in_fences(name):
    """Indented code has no info string, so nothing states whether it runs."""
    assert [f"{name}:{number}" for number in indented_code(read_page(name))] == []


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    for file, heading in links(read_page(name)):
        target = (ROOT / name).parent / file if file else ROOT / name
        assert target.exists(), f"{name}: no file {file}"
        assert not heading or heading in anchors(target.read_text(encoding="utf-8")), (
            f"{name}: no heading {file}#{heading}"
        )


def test_what_one_page_leaves_to_another_is_run_there():
    for name, page in PAGES.items():
        for command, other in page.elsewhere.items():
            run = [
                block
                for block in blocks(other, read_page(other))
                if block.language == "sh" and not block.attribute("not_run")
            ]
            assert command in [without_comment(line) for block in run for _, line in block.commands()], (name, command)


def test_the_page_on_python_is_strictly_typed(tmp_path):
    for block in blocks("docs/python.md", read_page("docs/python.md")):
        if block.language != "python":
            continue
        (tmp_path / f"line_{block.line}.py").write_text(block.text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", *map(str, tmp_path.iterdir())],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "MYPYPATH": str(ROOT / "src")}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
