"""Suspicious input gives one line on stderr, in addition to the result."""

import numpy as np
from PIL import Image

from differad.cli.main import run


def test_an_inverted_mask_is_named_once(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in ("good/0.png", "good/1.png", "bad/0.png"):
        path = tmp_path / "ds" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(path)
    mask = np.full((48, 64), 255, np.uint8)
    mask[10:20, 10:20] = 0
    path = tmp_path / "ds" / "ground_truth" / "bad" / "0_mask.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(mask).save(path)
    assert run(["build", "folder", str(tmp_path / "ds"), "--out", str(tmp_path / "out"), "--check"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert lines == [
        f"differad: warning: {path}: marks 96 % of the image and every edge of it; is it inverted? 0 is background"
    ]
