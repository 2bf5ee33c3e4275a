"""Untrusted shards: every fault is a one-line error that names the shard, and no pair is lost silently."""

import io
import json
import subprocess
import sys
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_shards import images, make_samples, png, write

from differad.data.shards import read_shards
from differad.data.stamps import sha256
from differad.errors import DifferadError, ManifestError
from differad.synthesis.draw import SynthesisOptions
from differad.synthesis.run import synthesize


def refused(path, message):
    with pytest.raises(ManifestError, match=message) as caught:
        list(read_shards(path))
    assert "\n" not in str(caught.value)


def offset(path, name):
    with tarfile.open(path) as tar:
        return tar.getmember(name).offset


def index(folder, *lines):
    (folder / "shards.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_a_set_has_an_index_with_counts_and_checksums(tmp_path, form):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    synthesize(SynthesisOptions(seed=5, size=64), 5, tmp_path, progress=False, shard_size=3, format=form)
    lines = [json.loads(line) for line in (tmp_path / "shards.jsonl").read_text().splitlines()]
    assert [line["pairs"] for line in lines] == [3, 2]
    assert [line["sha256"] for line in lines] == [sha256(tmp_path / line["shard"]) for line in lines]
    assert len(list(read_shards(tmp_path))) == 5
    second = tmp_path / lines[1]["shard"]
    whole = second.read_bytes()
    second.write_bytes(whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:])
    refused(tmp_path, "has another checksum than .*shards.jsonl says; fetch or write the shard again")
    second.unlink()
    with pytest.raises(ManifestError, match=r"no such file, though shards\.jsonl names it with 2 pairs"):
        next(read_shards(tmp_path))


@pytest.mark.parametrize("whole_folder", [True, False])
def test_a_tar_closed_between_two_pairs_is_found_by_its_index(tmp_path, whole_folder):
    path = write("tar", tmp_path / "one.tar", make_samples(4))
    index(tmp_path, {"shard": "one.tar", "pairs": 4})
    assert len(list(read_shards(path))) == 4
    path.write_bytes(path.read_bytes()[: offset(path, "00000002.reference.png")] + bytes(1024))
    refused(tmp_path if whole_folder else path, "one.tar: holds 2 pairs, and .*shards.jsonl says 4")


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_the_truncated_end_of_an_unfinished_index_is_no_error(tmp_path, form):
    path = write(form, tmp_path / f"one.{form}", make_samples(2))
    for rest in ('{"shard": "two.tar", "pa', "\0\0\0"):
        (tmp_path / "shards.jsonl").write_text(json.dumps({"shard": path.name, "pairs": 2}) + "\n" + rest)
        assert len(list(read_shards(tmp_path))) == 2


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_a_shard_that_the_index_does_not_name_is_refused(tmp_path, form):
    first, second = (write(form, tmp_path / f"{name}.{form}", make_samples(2)) for name in ("one", "two"))
    index(tmp_path, {"shard": first.name, "pairs": 2})
    refused(tmp_path, r"two\.\w+: shards\.jsonl beside it does not name it, .*; move it to another folder")
    assert len(list(read_shards(second))) == 2  # it was asked for by name
    (tmp_path / "shards.jsonl").unlink()
    assert len(list(read_shards(tmp_path))) == 4


def test_an_invalid_index(tmp_path):
    write("tar", tmp_path / "one.tar", make_samples(1))
    for line in ({}, {"shard": "one.tar"}, {"shard": "one.tar", "pairs": -1}, [3], "one.tar"):
        index(tmp_path, line)
        refused(tmp_path, r"shards\.jsonl:1: ")


@pytest.mark.parametrize("damage", [bytes(512), b"\xff" * 512, bytes(511) + b"x"], ids=["zeros", "ones", "one byte"])
@pytest.mark.parametrize("name", ["00000002.reference.png", "00000003.json"])
def test_a_broken_header_does_not_end_a_tar(tmp_path, damage, name):
    path = write("tar", tmp_path / "one.tar", make_samples(4))
    content, at = bytearray(path.read_bytes()), offset(path, name)
    content[at : at + 512] = damage
    path.write_bytes(content)
    refused(path, rf"one\.tar: more files follow a broken header at byte {at} or later; write the shard again")


@pytest.mark.parametrize("damage", [bytes(512), b"\xff" * 512])
def test_the_first_header_may_be_the_broken_one(tmp_path, damage):
    path = write("tar", tmp_path / "one.tar", make_samples(1))
    path.write_bytes(damage + path.read_bytes()[512:])
    refused(path, r"one\.tar: (not a complete tar|more files follow)")


def with_member(path, change, content=b""):
    """A tar of one pair whose member `odd.png` is as `change` makes it."""
    (sample,) = make_samples(1)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        member = tarfile.TarInfo("00000000.odd.png")
        change(member)
        tar.addfile(member, io.BytesIO(content) if content else None)
    odd = path.read_bytes()[: 512 + -(-len(content) // 512) * 512]
    write("tar", path, [sample])
    path.write_bytes(odd + path.read_bytes())
    return path


LINKS = {
    "symbolic": (tarfile.SYMTYPE, "00000000.json"),
    "symbolic to itself": (tarfile.SYMTYPE, "00000000.odd.png"),
    "symbolic out": (tarfile.SYMTYPE, "../../etc/passwd"),
    "hard": (tarfile.LNKTYPE, "00000000.json"),
    "hard to nothing": (tarfile.LNKTYPE, "nowhere"),
    "device": (tarfile.CHRTYPE, ""),
    "pipe": (tarfile.FIFOTYPE, ""),
}


@pytest.mark.parametrize(("kind", "to"), LINKS.values(), ids=LINKS.keys())
def test_links_and_devices_are_refused(tmp_path, kind, to):
    def change(member):
        member.type, member.linkname = kind, to

    refused(
        with_member(tmp_path / "one.tar", change),
        r"'00000000\.odd\.png': a link, a device or a sparse file; expected regular",
    )


def header(name, size_field):
    """A header with any twelve bytes for the size and a correct checksum."""
    member = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    member[124:136] = size_field
    member[148:156] = b" " * 8
    member[148:156] = f"{sum(member):06o}\0 ".encode()
    return bytes(member)


@pytest.mark.parametrize(
    ("field", "said"),
    [
        (b"77777777777\0", 8**11 - 1),
        (b"00000100000\0", 8**5),
        (b"\xff" * 11 + b"\x00", -256),
        (b"\x80" + b"\x7f" * 11, None),
    ],
)
def test_a_wrong_size(tmp_path, field, said):
    (sample,) = make_samples(1)
    path = write("tar", tmp_path / "one.tar", [sample])
    path.write_bytes(header("a.reference.png", field) + path.read_bytes())
    number = r"-?\d+" if said is None else said
    refused(
        path,
        rf"one\.tar: ('a\.reference\.png': holds {number} bytes by its header|more files follow|a header|not a complete)",
    )


def test_thousands_of_long_names_in_a_row(tmp_path):
    one = header("././@LongLink", b"00000000004\0")[:156] + b"L" + header("././@LongLink", b"00000000004\0")[157:]
    one = bytearray(one)
    one[148:156] = b" " * 8
    one[148:156] = f"{sum(one):06o}\0 ".encode()
    (tmp_path / "one.tar").write_bytes((bytes(one) + b"abc\0".ljust(512, b"\0")) * 5000 + bytes(1024))
    refused(tmp_path / "one.tar", r"one\.tar: ")


def test_two_files_of_one_part(tmp_path):
    path = write("tar", tmp_path / "one.tar", make_samples(1))
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("00000000.target.png"))
    refused(path, r"one\.tar: 00000000: two files for 'target'")


def test_a_tar_of_another_program_is_read(tmp_path):
    """Folders as members, names with a folder, and GNU tar's padding."""
    write("tar", tmp_path / "one.tar", make_samples(2))
    with (
        tarfile.open(tmp_path / "one.tar") as source,
        tarfile.open(tmp_path / "two.tar", "w", format=tarfile.PAX_FORMAT) as copy,
    ):
        folder = tarfile.TarInfo("train")
        folder.type = tarfile.DIRTYPE
        copy.addfile(folder)
        for member in source:
            content = source.extractfile(member).read()
            member.name = f"train/{member.name}"
            copy.addfile(member, io.BytesIO(content))
    assert [pair.id for pair in read_shards(tmp_path / "two.tar")] == ["a-0", "a-1"]


def rows(**columns):
    """One pair as columns, with others in their place."""
    reference, target, _ = images(0)
    return {
        "id": ["a"],
        "reference": [png(reference)],
        "target": [png(target)],
        "boxes": [[[3.0, 2.0, 13.0, 6.0]]],
    } | columns


def write_table(path, columns, schema=None, **options):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table(columns, schema=schema), path, **options)
    return path


def test_the_images_of_the_datasets_library_are_read(tmp_path):
    reference, target, mask = images(0)
    struct = {
        name: [{"bytes": png(pixels), "path": f"{name}.png"}]
        for name, pixels in (("reference", reference), ("target", target), ("mask", mask))
    }
    (pair,) = read_shards(write_table(tmp_path / "one.parquet", rows(**struct)))
    assert (pair.reference == reference).all()
    assert (pair.target == target).all()
    assert (pair.extra["mask"] == (mask > 0)).all()
    empty = write_table(
        tmp_path / "two.parquet", rows(mask=[{"bytes": None, "path": None}], reference=struct["reference"])
    )
    (pair,) = read_shards(empty)
    assert "mask" not in pair.extra


def test_what_the_datasets_library_itself_writes(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"id": datasets.Value("string"), "reference": datasets.Image(), "target": datasets.Image(),
         "boxes": datasets.List(datasets.List(datasets.Value("float32"), length=4))}
    )  # fmt: skip
    columns = rows()
    columns |= {name: [{"bytes": columns[name][0], "path": None}] for name in ("reference", "target")}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "one.parquet")
    (pair,) = read_shards(tmp_path / "one.parquet")
    assert (pair.reference == images(0)[0]).all()
    assert pair.boxes.tolist() == [[3, 2, 13, 6]]


ODD = {
    "path": ({"target": [{"bytes": None, "path": "a.png"}]}, "target: holds the path of an image"),
    "text": ({"target": ["a.png"]}, "target: holds a str; expected the bytes"),
    "number": ({"reference": [3]}, "reference: holds a int; expected the bytes"),
    "pixels": ({"reference": [[[1, 2], [3, 4]]]}, "reference: holds a list; expected the bytes"),
    "other struct": ({"mask": [{"data": b"x"}]}, "mask: holds a dict; expected the bytes"),
    "none": ({"target": [None]}, "no target image"),
    "no bytes": ({"target": [b""]}, "target"),
    "id": ({"id": [3]}, "id: 3: Input should be a valid string"),
    "boxes": ({"boxes": ["all"]}, "boxes: 'all'"),
    "box of structs": ({"boxes": [[{"x": 1.0}]]}, "boxes"),
    "binary column": ({"more": [b"x"]}, "a column is not text, numbers or lists"),
    "facts": ({"facts": ["{broken"]}, "a column is not text, numbers or lists"),
    "facts, nested": ({"facts": ["[" * 100_000]}, "a column is not text, numbers or lists"),
}


@pytest.mark.parametrize(("columns", "message"), ODD.values(), ids=ODD.keys())
def test_other_column_types_are_named(tmp_path, columns, message):
    path = write_table(tmp_path / "one.parquet", rows(**columns))
    with pytest.raises(DifferadError, match=message) as caught:
        list(read_shards(path))
    assert "\n" not in str(caught.value)


def test_times_and_facts_as_columns(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    refused(
        write_table(tmp_path / "one.parquet", rows(taken=arrow.array([1], arrow.timestamp("ns")))),
        "a column is not text|Python has no type for",
    )
    refused(
        write_table(tmp_path / "late.parquet", rows(taken=arrow.array([2**62], arrow.timestamp("us")))),
        "a column is not text|Python has no type for",
    )
    (pair,) = read_shards(write_table(tmp_path / "two.parquet", rows(facts=[{"grade": "easy"}], rank=[7])))
    assert (pair.extra["facts"], pair.extra["rank"]) == ({"grade": "easy"}, 7)


@pytest.mark.parametrize("cut", [4, 200, 4000, -200])
def test_damage_in_the_middle_of_a_parquet_file(tmp_path, cut):
    pytest.importorskip("pyarrow")
    content = bytearray(write("parquet", tmp_path / "one.parquet", make_samples(4)).read_bytes())
    content[cut : cut + 100] = b"\xff" * 100
    (tmp_path / "one.parquet").write_bytes(content)
    with suppress(DifferadError):  # or the damage is in a place that says nothing
        list(read_shards(tmp_path / "one.parquet"))


READ_WITHIN = """
import sys
from pathlib import Path
from differad.data.shards import read_shards
from differad.errors import DifferadError
try:
    for _ in read_shards(sys.argv[1]): pass
except DifferadError as error: print(error)
(peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(peak.split()[1]) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says how much memory was taken")
@pytest.mark.parametrize("as_dictionary", [True, False])
@pytest.mark.parametrize("megabytes", [20, 72])
def test_a_small_file_that_unpacks_to_gigabytes(tmp_path, as_dictionary, megabytes):
    """One value of 20 or 72 MB in 64 rows: a batch of them would take 1.3 or 4.6 GB, and four times that while it is unpacked."""
    arrow = pytest.importorskip("pyarrow")
    count = 64 if as_dictionary else 3 if megabytes == 20 else 2
    value = bytes(megabytes << 20)
    column = arrow.DictionaryArray.from_arrays(
        arrow.array([0] * count, arrow.int32()), arrow.array([value], arrow.binary())
    )
    columns = {"id": [str(n) for n in range(count)], "reference": column, "target": column}
    if not as_dictionary:
        columns |= {"reference": column.cast(arrow.binary()), "target": column.cast(arrow.binary())}
    path = write_table(
        tmp_path / "one.parquet",
        columns,
        compression="zstd",
        use_dictionary=as_dictionary,
        dictionary_pagesize_limit=1 << 30,
    )
    assert path.stat().st_size < 50_000
    done = subprocess.run([sys.executable, "-c", READ_WITHIN, str(path)], capture_output=True, text=True, check=True)
    message, peak = done.stdout.splitlines()
    assert int(peak) < 1000, message
    assert "one.parquet" in message
