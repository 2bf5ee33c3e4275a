"""Shards: a round trip, the files as read by the formats' own libraries, and broken files."""

import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from differad.data.shards import Sample, read_shards, shard_files, write_parquet, write_webdataset
from differad.errors import ImageError, InputError, ManifestError, MissingExtraError


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def images(number):
    rng = np.random.default_rng(number)
    reference, target = rng.integers(0, 255, (2, 20, 30, 3), np.uint8)
    mask = np.zeros((20, 30), np.uint8)
    mask[2:6, 3:13] = 255
    return reference, target, mask


def make_samples(count):
    """`count` pairs, the odd ones normal."""
    for number in range(count):
        reference, target, mask = images(number)
        defect = number % 2 == 0
        record = {"id": f"a-{number}", "category": "tüle", "boxes": [[3, 2, 13, 6]] if defect else [], "group": None}
        record |= {"kind": "hole" if defect else "", "facts": {"grade": "easy", "share": 0.5}}
        yield Sample(f"{number:08d}", png(reference), png(target), png(mask) if defect else None, record)


def write(form, path, samples):
    if form == "parquet":
        pytest.importorskip("pyarrow")
        write_parquet(path, samples)
    else:
        write_webdataset(path, samples)
    return path


FORMS = ["tar", "parquet"]


@pytest.mark.parametrize("form", FORMS)
def test_round_trip(tmp_path, form):
    path = write(form, tmp_path / f"one.{form}", make_samples(70))  # more than one row group of 64
    pairs = list(read_shards(path))
    assert [pair.id for pair in pairs] == [f"a-{number}" for number in range(70)]
    for number, pair in enumerate(pairs):
        reference, target, mask = images(number)
        np.testing.assert_array_equal(pair.reference, reference)
        np.testing.assert_array_equal(pair.target, target)
        assert (pair.category, pair.group, pair.mask) == ("tüle", None, None)
        assert pair.extra["facts"] == {"grade": "easy", "share": 0.5}
        assert pair.anomalous is (number % 2 == 0)
        if pair.anomalous:
            assert (pair.boxes.tolist(), pair.extra["kind"]) == ([[3, 2, 13, 6]], "hole")
            np.testing.assert_array_equal(pair.extra["mask"], mask > 0)
        else:
            assert "mask" not in pair.extra


@pytest.mark.parametrize("form", FORMS)
def test_same_samples_same_bytes(tmp_path, form):
    one, two = (write(form, tmp_path / f"{name}.{form}", make_samples(5)) for name in "ab")
    assert hashlib.sha256(one.read_bytes()).digest() == hashlib.sha256(two.read_bytes()).digest()
    assert sorted(tmp_path.iterdir()) == [one, two]  # nothing temporary stays


@pytest.mark.parametrize("form", FORMS)
def test_a_shard_is_written_atomically(tmp_path, form):
    def failing():
        yield from make_samples(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(form, tmp_path / f"half.{form}", failing())
    assert list(tmp_path.iterdir()) == []


def test_the_tar_as_tarfile_sees_it(tmp_path):
    with tarfile.open(write("tar", tmp_path / "one.tar", make_samples(2))) as tar:
        members = tar.getmembers()
        line = json.load(tar.extractfile("00000000.json"))
        assert tar.extractfile("00000001.target.png").read() == png(images(1)[1])
    assert [member.name for member in members] == [
        *(f"00000000.{part}" for part in ("reference.png", "target.png", "mask.png", "json")),
        *(f"00000001.{part}" for part in ("reference.png", "target.png", "json")),
    ]
    assert {(member.mtime, member.uid, member.uname, member.mode) for member in members} == {(0, 0, "", 0o644)}
    assert (line["mask"], line["boxes"]) == ("00000000.mask.png", [[3, 2, 13, 6]])


def test_the_parquet_as_pyarrow_sees_it(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(write("parquet", tmp_path / "one.parquet", make_samples(2)))
    first, second = table.to_pylist()
    assert first["boxes"] == [[3, 2, 13, 6]]
    assert (second["boxes"], second["mask"], second["kind"]) == ([], None, "")
    assert first["mask"] == png(images(0)[2])
    assert json.loads(first["facts"]) == {"grade": "easy", "share": 0.5}


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_is_read_in_order(tmp_path, form):
    samples = list(make_samples(5))
    write(form, tmp_path / f"shard-1.{form}", samples[3:])
    write(form, tmp_path / f"shard-0.{form}", samples[:3])
    (tmp_path / "shards.jsonl").write_text("")
    assert [file.stem for file in shard_files(tmp_path)] == ["shard-0", "shard-1"]
    assert [pair.id for pair in read_shards(tmp_path)] == [f"a-{number}" for number in range(5)]


@pytest.mark.parametrize("form", FORMS)
def test_an_unlabelled_pair_and_boxes_from_a_mask(tmp_path, form):
    plain, other = make_samples(2)
    for sample in (plain, other):
        del sample.record["boxes"]
    from_mask, unlabelled = read_shards(write(form, tmp_path / f"one.{form}", [plain, other]))
    assert from_mask.boxes.tolist() == [[3, 2, 13, 6]]
    assert unlabelled.boxes is None


@pytest.mark.parametrize("form", FORMS)
def test_a_truncated_shard_is_reported(tmp_path, form):
    path = write(form, tmp_path / f"one.{form}", make_samples(4))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ManifestError, match=rf"one\.{form}: incomplete, its end is missing; write the shard again"):
        list(read_shards(path))


def test_a_tar_truncated_between_two_pairs_is_found_before_the_first_pair(tmp_path):
    for number in range(3):
        path = write("tar", tmp_path / f"shard-{number}.tar", make_samples(4))
    middle = tmp_path / "shard-1.tar"
    with tarfile.open(middle) as tar:
        boundary = tar.getmember("00000002.reference.png").offset
    middle.write_bytes(middle.read_bytes()[:boundary])  # two whole pairs, and nothing that says that there were more
    with pytest.raises(ManifestError, match=r"shard-1\.tar: incomplete"):
        next(read_shards(tmp_path))
    assert len(list(read_shards(path))) == 4


@pytest.mark.parametrize("form", FORMS)
def test_a_broken_image_is_named(tmp_path, form):
    (sample,) = make_samples(1)
    broken = Sample(sample.key, sample.reference, sample.target[:200], sample.mask, sample.record)
    with pytest.raises(ImageError, match=r"(00000000|a-0): target: broken or truncated image"):
        list(read_shards(write(form, tmp_path / f"one.{form}", [broken])))


def test_a_tar_of_something_else(tmp_path):
    (sample,) = make_samples(1)
    path = write("tar", tmp_path / "one.tar", [sample])
    with tarfile.open(path) as tar, tarfile.open(tmp_path / "two.tar", "w") as copy:
        for member in tar:
            if "target" not in member.name:
                copy.addfile(member, tar.extractfile(member))
    with pytest.raises(ManifestError, match=r"two\.tar: 00000000: no target image"):
        list(read_shards(tmp_path / "two.tar"))
    with tarfile.open(tmp_path / "three.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("readme.txt"), io.BytesIO())
    with pytest.raises(ManifestError, match=r"three\.tar: readme: line: .*"):
        list(read_shards(tmp_path / "three.tar"))


def test_a_set_of_single_files_is_named_as_one(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("")
    with pytest.raises(
        InputError, match=r"holds single images; expected shards \(read_pairs\('.*pairs.jsonl'\) reads these\)"
    ):
        list(read_shards(tmp_path))


def test_a_path_without_shards(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    for path in (tmp_path, tmp_path / "notes.txt", tmp_path / "nowhere.tar"):
        with pytest.raises(InputError, match=r"no shard; expected a file that ends in \.tar or \.parquet"):
            list(read_shards(path))


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'differad\[data\]'"):
        write_parquet(tmp_path / "one.parquet", make_samples(1))


@pytest.mark.parametrize("form", FORMS)
def test_a_defect_at_an_unknown_place_is_read_back(tmp_path, form):
    plain, other = make_samples(2)
    plain.record.update(boxes=None, anomalous=True)
    other.record.update(boxes=None)
    unmasked = [Sample(sample.key, sample.reference, sample.target, None, sample.record) for sample in (plain, other)]
    unknown, unlabelled = read_shards(write(form, tmp_path / f"one.{form}", unmasked))
    assert (unknown.boxes, unknown.anomalous) == (None, True)
    assert (unlabelled.boxes, unlabelled.anomalous) == (None, None)
    assert "anomalous" not in unknown.extra
