"""Imports point down, and the light package stays light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "differad"
# Lower numbers may not import higher ones; modules of one layer may use each other.
LAYERS = {
    "errors": 0,
    "text": 0,
    "tiff": 1,
    "webp": 1,
    "boxes": 1,
    "decoding": 1,
    "files": 1,
    "scaling": 1,
    "headers": 1,
    "images": 1,
    "memory": 1,
    "options": 1,
    "progress": 1,
    "weights": 1,
    "core": 2,
    "answers": 3,
    "data": 3,
    "synthesis": 3,
    "drawing": 3,
    "rewards": 4,
    "locators": 4,
    "training": 5,
    "evaluation": 5,
    "cli": 6,
    "web": 6,
    "__main__": 7,
}
HEAVY = ("torch", "transformers", "openai", "accelerate", "skimage", "scipy", "jinja2", "ray", "pyarrow", "pandas")


def imported_layers(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""] if node.level == 0 else ["relative"]
        else:
            continue
        for name in names:
            assert name != "relative", f"{path.name}:{node.lineno} imports relatively"
            if name.startswith("differad."):
                yield name.split(".")[1], node.lineno


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path):
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if own == "__init__":
        return  # the package's front door gathers names from everywhere below the command line
    upward = [(layer, line) for layer, line in imported_layers(path) if LAYERS[layer] > LAYERS[own]]
    assert upward == []


def test_every_module_has_a_layer():
    modules = {path.name.removesuffix(".py") for path in SOURCE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert modules - {"__init__", "__pycache__"} - {"py.typed"} <= set(LAYERS)


def test_importing_the_package_loads_nothing_heavy():
    code = f"import sys, differad; print([name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# Calls that write a file by its name; `files.py` has them, or they stand in the block of its `atomic_write`.
WRITES = re.compile(r"""\.write_(?:text|bytes)\(|open\([^)]*["'][wax]b?["']|\bshutil\.(?:copy|move)|\bnp\.save""")


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_are_written_in_one_place(path):
    if path == SOURCE / "files.py":
        return
    lines = path.read_text().splitlines()
    found = [line.strip() for line in lines if WRITES.search(line) and "atomic_write(" not in line]
    into_folder = ["shutil.copytree(root, temporary, dirs_exist_ok=True, ignore=_NO_RECIPES)"]
    assert found in ([], ["shutil.copy2(source, fresh)"], ["np.save(content, half)"], into_folder)


def test_no_two_test_files_have_one_name():
    # Tests are no package: pytest imports each file by its name, and refuses a second one of the same.
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_nothing_is_pickled(path):
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {
        name for node in imports for name in (getattr(node, "module", None), *(alias.name for alias in node.names))
    }
    assert not names & {"pickle", "shelve", "marshal", "joblib", "dill", "cloudpickle"}
