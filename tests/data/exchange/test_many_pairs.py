"""Exports keep only the names of a pair in memory, so that memory hardly grows with the number of pairs."""

import json
import tracemalloc

import numpy as np
import pytest

from differad.cli.exchange import load_predictions
from differad.data.exchange.registry import ANNOTATION_FORMATS, export_pairs
from differad.images import write_image

FEW, MANY = 500, 2500
# Bytes of a pair that may stay: the text of its id twice and of its image's name, each with a slot in a set, a dictionary
# or a list (about 100 each), and where its prediction and what waits on the disk lie (about 30 each).
HELD = 450
# Parts of paths are interned: that table of Python's doubles now and then, whatever stays alive.
INTERNED = 4 * 2**20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    write_image(folder / "a.png", np.full((8, 8, 3), 90, np.uint8))
    for count in (FEW, MANY):
        with (
            (folder / f"{count}.jsonl").open("w") as pairs,
            (folder / f"{count}_predictions.jsonl").open("w") as answers,
        ):
            for number in range(count):
                boxes = [[1, 1, 5, 6]] * (number % 3)
                images = {"reference": "a.png", "target": "a.png"}
                pairs.write(json.dumps({"id": f"part/{number}", **images, "boxes": [[1, 1, 5, 6]]}) + "\n")
                answers.write(json.dumps({"id": f"part/{number}", "boxes": boxes, "scores": [0.5] * len(boxes)}) + "\n")
    return folder


def peak_bytes(name, folder, count, out):
    tracemalloc.start()
    try:
        answers = load_predictions(folder / f"{count}_predictions.jsonl")
        done = export_pairs(name, folder / f"{count}.jsonl", out, predictions=answers)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (done["pairs"], done["predictions"]) == (count, count)
    return peak


@pytest.mark.parametrize("name", [name for name in ANNOTATION_FORMATS if name != "cvat"])
def test_memory_hardly_grows_with_the_number_of_pairs(name, folder, tmp_path):
    few, many = (peak_bytes(name, folder, count, tmp_path / str(count)) for count in (FEW, MANY))
    assert many - few < HELD * (MANY - FEW) + INTERNED  # a list of JSON entries took 30,000 a pair


def test_nor_if_images_are_written_in_the_order_of_their_names(folder, tmp_path):
    """CVAT merges pairs of one target, so each pair needs a separate target."""
    for count in (FEW, MANY):
        lines = [json.loads(line) for line in (folder / f"{count}.jsonl").read_text().splitlines()]
        for line in lines:
            line["target"] = f"{line['id'].replace('/', '_')}.png"
            if not (folder / line["target"]).exists():
                (folder / line["target"]).hardlink_to(folder / "a.png")
        (folder / f"{count}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    test_memory_hardly_grows_with_the_number_of_pairs("cvat", folder, tmp_path)
