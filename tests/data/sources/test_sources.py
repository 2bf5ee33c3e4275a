"""The table of sources: complete, documented, and every reader behaves alike."""

from pathlib import Path

import pytest

from differad.data.sources.registry import SOURCES, find_source
from differad.data.sources.sample import ProblemList, list_folder, path_inside
from differad.errors import ManifestError, OptionError

DOCUMENT = Path(__file__).parents[3] / "docs" / "sources.md"


def test_every_source_is_documented():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [name for name in SOURCES if f"`{name}`" not in text] == []
    assert [name for name, source in SOURCES.items() if source.url not in text] == []
    readme = (DOCUMENT.parents[1] / "README.md").read_text(encoding="utf-8")
    assert f"# {len(SOURCES)} layouts" in readme


def test_an_unknown_name_lists_the_known_ones():
    assert find_source("mvtec") is SOURCES["mvtec"]
    with pytest.raises(OptionError, match=r"source 'mvtek' is not known; expected one of 3cad, aitex"):
        find_source("mvtek")


@pytest.mark.parametrize("name", SOURCES)
def test_a_foreign_folder_is_refused_before_any_sample(name, plant):
    """The message names the folder and what is missing, in one line, whether or not problems are collected."""
    root = plant({"holiday/beach.txt": "sand"})
    for problems in ([], [ProblemList()]):
        with pytest.raises(ManifestError) as error:
            find_source(name).read(root, *problems)
        assert str(root) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", SOURCES)
def test_entries_hold_what_a_user_needs(name):
    source = SOURCES[name]
    assert all((source.title, source.licence, source.url, source.layout))
    assert "\n" not in source.title + source.layout


def test_listing_is_sorted_and_leaves_hidden_files_out(plant):
    listing = list_folder(plant({"b.PNG": None, "a.jpeg": None, ".x.png": None, "note.txt": "", "z/q.png": None}))
    assert (listing.files, listing.folders, list(listing.images)) == (
        ("a.jpeg", "b.PNG", "note.txt"),
        ("z",),
        ["a.jpeg", "b.PNG"],
    )
    assert listing.find("c.png", "b.PNG") == listing.path / "b.PNG"
    assert listing.find("c.png") is None


def test_paths_with_backslashes_are_read():
    assert path_inside(Path("root"), "a\\b.png", "labels.csv:2") == Path("root/a/b.png")
