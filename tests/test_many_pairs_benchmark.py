"""`benchmarks/many_pairs.py` in small: every piece of work runs, and the table has a row for each."""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "many_pairs.py"


def test_every_piece_of_work_is_measured():
    command = [sys.executable, PROGRAM, "--pairs", "30", "60", "--images", "20", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)["rows"]
    names = ["read", "export coco", "score", "evaluate", "evaluate, gone on with"]
    assert [(row["what"], row["pairs"]) for row in rows] == [
        *((name, count) for name in names for count in (30, 60)),
        ("build folder", 20),
    ]
    assert all(row["seconds"] > 0 and row["mib"] > 0 for row in rows)
