"""Small images and manifests for the tests of import and export."""

import json

import numpy as np
from PIL import Image

from differad.data.exchange.registry import export_pairs, import_pairs
from differad.data.manifest import read_pairs

WIDTH, HEIGHT = 80, 50
FORMATS = ["coco", "yolo", "label-studio", "cvat"]
# What `differad import` is given of an exported folder.
MAIN_FILE = {"coco": "instances.json", "yolo": "", "label-studio": "tasks.json", "cvat": "annotations.xml"}


def make_images(folder, count=3, size=(WIDTH, HEIGHT)):
    """`count` targets with names that are difficult for file formats, and a reference; their paths below `folder`."""
    (folder / "täst & <set>").mkdir(parents=True, exist_ok=True)
    names = [f"täst & <set>/part #{number} 100%'\".png" for number in range(count)]
    for name in [*names, "good.png"]:
        Image.new("RGB", size).save(folder / name)
    return names


def write_manifest(folder, lines, name="pairs.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def line(target, pair_id="a", boxes=None, **more):
    """A manifest line; `boxes` None leaves the pair unlabelled."""
    known = {} if boxes is None else {"boxes": boxes}
    return {"id": pair_id, "reference": "good.png", "target": target, **known, **more}


def without_truth(manifest):
    """The same manifest with every pair unlabelled, so that boxes can only come from an import."""
    lines = [json.loads(text) for text in manifest.open(encoding="utf-8")]
    return write_manifest(
        manifest.parent, [{k: v for k, v in one.items() if k != "boxes"} for one in lines], "blank.jsonl"
    )


def sample(folder):
    """A manifest of three pairs: two boxes, normal, unlabelled."""
    names = make_images(folder)
    boxes = [[10, 5, 30.5, 25], [40, 30, 80, 50]]
    return write_manifest(
        folder,
        [
            line(names[0], "tile/ü 1", boxes, category="tile", note=7),
            line(names[1], "Tile/Ü 1", []),
            line(names[2], "unseen"),
        ],
    )


def truth(manifest):
    return {pair.id: None if pair.boxes is None else pair.boxes.tolist() for pair in read_pairs(manifest)}


def there_and_back(name, manifest, folder, **options):
    """Export, and import into the unlabelled manifest; the summary and the imported boxes."""
    export_pairs(name, manifest, folder / "sent")
    out = manifest.parent / f"{folder.name}-back.jsonl"
    done = import_pairs(name, folder / "sent" / MAIN_FILE[name], without_truth(manifest), out, **options)
    return done, truth(out)


def predicted(*boxes, scores=()):
    return np.array(boxes, dtype=float).reshape(-1, 4), np.array(scores, dtype=float)
