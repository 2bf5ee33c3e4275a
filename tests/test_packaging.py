"""Metadata of the built package: authors, addresses, licences, links that work outside of a checkout."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def test_links_of_the_readme_are_absolute_and_name_files_that_exist():
    repository = PROJECT["urls"]["Repository"]
    links = LINK.findall((ROOT / "README.md").read_text())
    assert len(links) > 20
    assert [link for link in links if not link.startswith("https://")] == []
    files = [link.split("/main/", 1)[1].partition("#")[0] for link in links if "/differad/differad/" in link]
    assert len(files) > 15
    assert [name for name in files if not (ROOT / name).exists()] == []
    assert {link for link in links if link.startswith(repository)}


def test_the_wheel_has_the_recipes():
    """`differad recipes` looks for them inside the package, and in a checkout beside `src`."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"recipes": "differad/recipes"}


def test_every_licence_of_shipped_weights_is_in_the_metadata():
    matched = {path for pattern in PROJECT["license-files"] for path in ROOT.glob(pattern)}
    shipped = {path for name in ("LICENSE", "NOTICE") for path in (ROOT / "src/differad/weights").rglob(name)}
    assert shipped
    assert shipped | {ROOT / "LICENSE"} == matched
    assert PROJECT["authors"]
