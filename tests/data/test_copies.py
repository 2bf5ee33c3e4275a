"""Files are compared by size, by their beginning, and by all of their bytes."""

import pytest

from differad.data.copies import FileComparer
from differad.errors import ImageError

LONG = b"a" * 70_000  # more than the first block


@pytest.fixture
def files(tmp_path):
    contents = {
        "a": LONG + b"1",
        "b": LONG + b"2",
        "c": LONG + b"1",
        "d": b"x",
        "e": b"y",
        "f": b"x",
        "g": b"",
        "h": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "linked").hardlink_to(tmp_path / "a")
    return tmp_path


@pytest.mark.parametrize(
    ("pair", "same"),
    [("ac", True), ("ab", False), ("de", False), ("df", True), ("ad", False), ("gh", False), ("az", False)],
)
def test_same(files, pair, same):
    a, b = pair
    assert FileComparer().same(files / a, files / b) is same


def test_a_link_equals_its_file_without_being_read(files, monkeypatch):
    monkeypatch.chdir(files)
    assert FileComparer().same(files / "a", files / "linked")


def test_groups_are_read_only_as_far_as_needed(files):
    paths = [files / name for name in "abcdefgh"]
    found = FileComparer().copies(paths, lambda group: True)
    assert [[path.name for path in group] for group in found] == [["a", "c"], ["d", "f"]]
    (files / "d").unlink()
    (files / "d").mkdir()  # cannot be read
    assert FileComparer().copies([files / "a", files / "c", files / "d"], lambda group: files / "d" not in group) == [
        [files / "a", files / "c"]
    ]


def test_an_unreadable_file_is_an_image_error(files):
    for name in ("one", "two"):
        (files / name).mkdir()
    with pytest.raises(ImageError, match="one: cannot be read"):
        FileComparer().same(files / "one", files / "two")
