"""Files that the documentation assumes: images, manifests, data sets, checkpoints, all small and generated.

Each function takes the folder of a page and writes there under the names that the page uses.
"""

import io
import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np

from differad.cli.main import run
from differad.core import Pair
from differad.data.manifest import read_pairs
from differad.synthesis.draw import SynthesisOptions
from differad.synthesis.run import synthesize
from docs_blocks import ROOT
from miniatures import damage, marked, mvtec, part, save

EXAMPLES = ROOT / "examples"
SHIPPED_POLICY = ROOT / "src" / "differad" / "weights" / "tiny"


def good_and_test(folder: Path) -> None:
    """`good.png`, a board, and `test.png`, the same with a defect."""
    shutil.copy(EXAMPLES / "board_good.png", folder / "good.png")
    shutil.copy(EXAMPLES / "board_defect.png", folder / "test.png")


def folders(good: str = "good", test: str = "test") -> Callable[[Path], None]:
    """A folder of good boards, and one of boards to inspect, one of them with a defect."""

    def build(folder: Path) -> None:
        for name, image in (
            (f"{good}/1", "good"),
            (f"{good}/2", "normal"),
            (f"{test}/1", "defect"),
            (f"{test}/2", "normal"),
        ):
            path = folder / f"{name}.png"
            path.parent.mkdir(exist_ok=True)
            shutil.copy(EXAMPLES / f"board_{image}.png", path)

    return build


def inspected(folder: Path) -> None:
    """`inspected`, the output of `differad inspect good/ test/`, and `corrected.json`, its correction from Label Studio."""
    manifest, answers = "inspected/pairs.jsonl", "inspected/predictions.jsonl"
    with redirect_stdout(io.StringIO()):
        assert run(["inspect", "good", "test", "--out", "inspected", "--quiet"]) == 3
        assert run(["export", "label-studio", manifest, "sent", "--root", ".", "--predictions", answers]) == 0
    tasks = json.loads((folder / "sent" / "tasks.json").read_text())
    (folder / "corrected.json").write_text(
        json.dumps([{**task, "annotations": [{"result": task["predictions"][0]["result"]}]} for task in tasks])
    )
    shutil.rmtree(folder / "sent")


def more_good_parts(folder: Path) -> None:
    """`good_2.png` and `good_3.png`."""
    for name in ("good_2.png", "good_3.png"):
        shutil.copy(EXAMPLES / "board_good.png", folder / name)


def labelled(name: str = "pairs.jsonl", prefix: str = "") -> Callable[[Path], None]:
    """The three pairs of `examples` as a manifest of that name, their ids behind `prefix`."""

    def build(folder: Path) -> None:
        manifest = folder / name
        manifest.parent.mkdir(parents=True, exist_ok=True)
        for image in EXAMPLES.glob("*.png"):
            shutil.copy(image, manifest.parent)
        text = (EXAMPLES / "pairs.jsonl").read_text()
        manifest.write_text(text.replace('"id": "', f'"id": "{prefix}'))

    return build


def predictions(folder: Path) -> None:
    """`predictions.jsonl`: a box for each pair of `pairs.jsonl` that has one."""
    lines = [
        {"id": pair.id, "boxes": np.asarray(pair.boxes).tolist(), "confidence": 0.9}
        for pair in read_pairs("pairs.jsonl")
    ]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def drawn(name: str, count: int, size: int = 128, **options: float) -> Callable[[Path], None]:
    """A manifest of that name with synthetic pairs, each of another part."""

    def build(folder: Path) -> None:
        manifest = folder / name
        out = manifest.with_name(f"{manifest.stem}_drawn")
        made = synthesize(SynthesisOptions(seed=5, size=size, **options), count, out, progress=False)  # type: ignore[arg-type]
        lines = [json.loads(line) for line in Path(made.manifest).read_text().splitlines()]
        for line in lines:
            line |= {key: f"{out.name}/{line[key]}" for key in ("reference", "target", "mask") if line[key]}
        manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))

    return build


def mvtec_at(name: str, *categories: str) -> Callable[[Path], None]:
    """MVTec AD's layout, a few parts of each category."""
    return lambda folder: void(mvtec(folder / name, categories or ("nut", "tile")))


def real_iad_zippers(folder: Path) -> None:
    """`DATASETS/real_iad`: zippers under camera C1, four good ones and one with a part missing."""
    root = folder / "DATASETS" / "real_iad"
    train, test = [], []
    for number in range(4):
        name = f"OK/S{number:04}/zipper_{number:04}_OK_C1_20231021130235.jpg"
        save(root / "realiad_1024/zipper" / name, part(number))
        train.append({"category": "zipper", "anomaly_class": "OK", "image_path": name, "mask_path": None})
    name = "NG/QS/S0009/zipper_0009_NG_QS_C1_20231021130235.jpg"
    save(root / "realiad_1024/zipper" / name, damage(part(9), (10, 10, 40, 40)))
    save(root / "realiad_1024/zipper" / name.replace(".jpg", ".png"), marked((10, 10, 40, 40)))
    test.append(
        {"category": "zipper", "anomaly_class": "QS", "image_path": name, "mask_path": name.replace(".jpg", ".png")}
    )
    (root / "realiad_jsons").mkdir()
    (root / "realiad_jsons" / "zipper.json").write_text(json.dumps({"train": train, "test": test}))


def from_tool(tool: str, file: str, name: str) -> Callable[[Path], None]:
    """The export of an annotation tool for `pairs.jsonl` without corrections: its `file`, stored as `name`."""

    def build(folder: Path) -> None:
        with redirect_stdout(io.StringIO()):
            assert run(["export", tool, "pairs.jsonl", "sent"]) == 0
        (folder / "sent" / file).rename(folder / name)
        shutil.rmtree(folder / "sent")

    return build


def images(name: str, count: int = 3, size: int = 96) -> Callable[[Path], None]:
    """A folder of images."""
    return lambda folder: void(*(save(folder / name / f"{number}.png", part(number, size)) for number in range(count)))


def wrong_manifest(folder: Path) -> None:
    """`wrong.jsonl`, whose second line has a box with its corners the wrong way round."""
    labelled("wrong.jsonl")(folder)
    first, second, third = map(json.loads, (folder / "wrong.jsonl").read_text().splitlines())
    second["boxes"] = [[3, 2, 1, 4]]
    (folder / "wrong.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (first, second, third)))


def policy_at(name: str) -> Callable[[Path], None]:
    """The user's own embedded policy: a copy of the shipped one."""
    return lambda folder: void(shutil.copytree(SHIPPED_POLICY, folder / name))


def checkpoint_at(name: str, model_type: str) -> Callable[[Path], None]:
    """A checkpoint of a few thousand weights, with the files of a published one."""

    def build(folder: Path) -> None:
        from desk import SAID
        from tiny_models import build_checkpoint

        build_checkpoint(folder / name, model_type, SAID)

    return build


def checkout(*names: str) -> Callable[[Path], None]:
    """Files of a checkout for a page whose commands run at its root."""
    return lambda folder: void(*((folder / name).symlink_to(ROOT / name) for name in names))


def a_pair() -> Pair:
    return Pair(reference="good.png", target="test.png")


def normal_pairs() -> list[Pair]:
    return [Pair(EXAMPLES / "board_good.png", EXAMPLES / "board_normal.png")]


def void(*_: object) -> None:
    """Ignores return values of functions that are called for their effects."""
