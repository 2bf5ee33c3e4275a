"""Text from manifests and servers that would steer a terminal reaches none."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from desk import Desk, say

EVIL = "\x1b[2J\x1b]0;title\x07\x9b31m\u202etxt"


def differad(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "differad", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=False)


def is_harmless(text: str) -> bool:
    return all(one.isprintable() or one == "\n" for one in text)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    common = {"category": f"c{EVIL}", "reference": "0.png", "boxes": [[1, 2, 30, 40]]}
    lines = [{"id": f"{n}{EVIL}", "target": f"{n}.png", **common} for n in (1, 2)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "pairs.jsonl"


def reply_with(desk: Desk, text: str, status: int = 200) -> list[str]:
    def reply(number: int, question: dict[str, Any]) -> tuple[int, str, bytes]:
        return say(text) if status == 200 else (status, "text/plain", text.encode())

    desk.reply = reply
    return ["--model", f"openai:Qwen2-VL-tiny@{desk.url}", "-o", "retries=0"]


@pytest.mark.parametrize(
    ("text", "status"),
    [(f"<think>{EVIL}</think><answer>(98,28),(196,112)</answer>", 200), (EVIL, 200), (EVIL, 400)],
    ids=["answer", "unreadable", "refused"],
)
def test_a_servers_text(desk: Desk, manifest: Path, text: str, status: int) -> None:
    model = reply_with(desk, text, status)
    images = [manifest.parent / "0.png", manifest.parent / "1.png"]
    out = manifest.parent / "out"
    for arguments in (
        ["locate", *images, "-v"],
        ["locate", *images, "--json"],
        ["locate", "--pairs", manifest, "--out", out / "predictions.jsonl"],
        ["evaluate", manifest, "--out", out / "evaluated"],
        ["inspect", "--pairs", manifest, "--out", out / "inspected"],
        ["inspect", "--pairs", manifest, "--out", out / "as-json", "--json"],
    ):
        done = differad(*arguments, *model)
        assert done.returncode in (0, 1, 3, 4), done.stderr
        assert is_harmless(done.stdout + done.stderr), arguments
        if "--json" in arguments and status == 200:
            document = done.stdout.splitlines()[0] if arguments[0] == "inspect" else done.stdout
            assert EVIL in json.loads(document)["answer"]


def test_a_manifests_text(manifest: Path) -> None:
    predictions = manifest.parent / "predictions.jsonl"
    predictions.write_text(json.dumps({"id": f"1{EVIL}", "boxes": []}) + "\n")
    broken = manifest.parent / "broken.jsonl"
    broken.write_text(json.dumps({"id": EVIL, "category": EVIL, "reference": EVIL, "target": EVIL, "boxes": EVIL}))
    for arguments, code in (
        (["score", manifest, predictions], 0),
        (["score", manifest, predictions, "--json"], 0),
        (["score", broken, predictions], 2),
        (["split", manifest, "--by", "category", "--held-out", f"c{EVIL}", "--out", manifest.parent / "split"], None),
        (["split", manifest, "--by", "category", "--held-out", EVIL, "--out", manifest.parent / "split2"], 2),
        (["check-leaks", manifest, manifest], 2),
        (["locate", f"{EVIL}.png", f"{EVIL}.png"], 2),
    ):
        done = differad(*arguments)
        assert code is None or done.returncode == code, done.stderr
        assert is_harmless(done.stdout + done.stderr), arguments
        if "--json" in arguments:
            assert f"c{EVIL}" in json.loads(done.stdout)["categories"]
