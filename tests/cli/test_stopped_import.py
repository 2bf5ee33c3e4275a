"""An import that is stopped while it writes leaves no manifest, and the same command makes it whole."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from differad.data.manifest import read_pairs


def many_pairs(folder, count):
    """A manifest of `count` pairs of one image, and the COCO file that draws a box on it."""
    Image.new("RGB", (80, 50)).save(folder / "0.png")
    (folder / "many.jsonl").write_text(
        "".join(
            json.dumps({"id": f"n{n}", "reference": "0.png", "target": "0.png", "boxes": []}) + "\n"
            for n in range(count)
        )
    )
    document = {
        "images": [{"id": 1, "file_name": "0.png", "width": 80, "height": 50}],
        "annotations": [{"id": 1, "image_id": 1, "bbox": [1, 2, 30, 20]}],
    }
    (folder / "labels.json").write_text(json.dumps(document))
    return ["import", "coco", *(str(folder / name) for name in ("labels.json", "many.jsonl", "new.jsonl"))]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_an_import_that_is_stopped_while_it_writes_leaves_no_manifest(tmp_path, how):
    count = 10_000  # written in about 0.15 s, so that the first look below comes in the middle
    command = [sys.executable, "-m", "differad", *many_pairs(tmp_path, count)]
    work = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A suite that was started in the background hands down an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (begun := list(tmp_path.glob("new.jsonl*"))) and work.poll() is None:
        time.sleep(0.002)
    assert [path.name for path in begun] == [f"new.jsonl.{work.pid}.tmp"]
    os.kill(work.pid, how)
    message = work.communicate(timeout=60)[1]
    assert work.returncode != 0
    assert "Traceback" not in message
    assert not (tmp_path / "new.jsonl").exists()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    assert done.returncode == 0
    assert sum(1 for _ in read_pairs(tmp_path / "new.jsonl")) == count
    assert not list(tmp_path.glob("*.tmp"))
