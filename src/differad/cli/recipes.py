"""`differad recipes`: list or copy the recipes that come with differad."""

import shutil
from itertools import takewhile
from pathlib import Path
from typing import Annotated

import typer

from differad.cli.options import AsJson, print_json
from differad.cli.output import say
from differad.errors import DifferadError, InputError
from differad.files import atomic_folder, write_errors

_PACKAGE = Path(__file__).parents[1]
# In a wheel they are inside the package, in a checkout beside `src`.
_FOLDERS = (_PACKAGE / "recipes", _PACKAGE.parents[1] / "recipes")
_NO_RECIPES = shutil.ignore_patterns("__pycache__", ".*")
_ENDINGS = (".yaml", ".sh")


def recipes_command(
    copy: Annotated[
        Path | None, typer.Option("--copy", metavar="FOLDER", help="Copy all of them to this new or empty folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the recipes that come with differad, or copy them with their scripts.

    Example: differad recipes --copy recipes
    """
    root = recipes_folder()
    names = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.suffix in _ENDINGS]
    if copy is not None:
        _copy(root, copy)
    if as_json:
        print_json({"folder": str(copy or root), "recipes": {name: _title(root / name) for name in names}})
    elif copy is not None:
        say(f"{len(names)} recipes and scripts: {copy}")
    else:
        width = max(map(len, names))
        for name in names:
            say(f"{name:{width}}  {_title(root / name)}")
        say("differad recipes --copy recipes copies them here", err=True)


def recipes_folder() -> Path:
    """The folder with the recipes of this installation. Raises DifferadError."""
    existing = next((folder for folder in _FOLDERS if (folder / "tiny" / "sft.yaml").is_file()), None)
    if existing is None:
        raise DifferadError(f"{_FOLDERS[0]}: no recipes; install differad from a wheel or a checkout")
    return existing


def _copy(root: Path, folder: Path) -> None:
    with write_errors(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder}: not empty; expected a new or empty folder, so that nothing is overwritten")
    with atomic_folder(folder) as temporary:
        shutil.copytree(root, temporary, dirs_exist_ok=True, ignore=_NO_RECIPES)


def _title(path: Path) -> str:
    """The first sentence of a file's first comment."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#!")]
    comment = " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines))
    return comment.partition(". ")[0].partition(": ")[0].rstrip(".:")
