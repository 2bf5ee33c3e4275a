"""Untrusted YAML: alias bombs, deep nesting and invalid values are quick one-line errors; recipes are read correctly."""

import time
from pathlib import Path

import pytest

from differad.data.recipe import read_recipe
from differad.data.yaml_text import MAX_CHARACTERS, MAX_DEPTH, MAX_VALUES, load_yaml
from differad.errors import InputError, ManifestError, OptionError
from differad.training.recipe import RlRecipe, load_any_recipe, load_recipe

yaml = pytest.importorskip("yaml", reason="recipes need pyyaml: pip install 'differad[data]'")

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))


def bomb(wide, levels):
    """`wide` ** `levels` values from `levels` lines."""
    lines = [f"l0: &l0 [{', '.join(['x'] * wide)}]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * wide)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


def doubled(line):
    """Forty lines, each of which holds the one before twice."""
    return "a0: &a0 {k: 1}\n" + "".join(line.format(n=n, before=f"*a{n - 1}") for n in range(1, 40))


BAD = {
    "alias bomb": (bomb(10, 9), f"more than {MAX_VALUES} values, with aliases expanded"),
    "bomb of merges": (
        "a0: &a0 {k: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40)),
        "values",
    ),
    "bomb of keys": (
        "a0: &a0 {k: 1}\n" + "".join(f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}\n" for n in range(1, 40)),
        "values",
    ),
    "a list in itself": ("a: &a [*a]\n", "alias 'a' refers to a value that contains it"),
    "nested lists": ("a: " + "[" * 5000 + "]" * 5000, f"nested more than {MAX_DEPTH} deep"),
    "nested lists, unclosed": ("[" * 5000, f"nested more than {MAX_DEPTH} deep"),
    "nested mappings": ("{a: " * 5000 + "1" + "}" * 5000, f"nested more than {MAX_DEPTH} deep"),
    "nested blocks": ("- " * 5000 + "x", f"nested more than {MAX_DEPTH} deep"),
    "many values": ("a: [" + "1, " * (MAX_VALUES + 1) + "]", "values"),
    "long": ("# " + "x" * MAX_CHARACTERS, f"characters; expected at most {MAX_CHARACTERS}"),
    "a date": ("a: 2026-99-99", "cannot be read"),
    "a number": ("a: " + "9" * 5000, "a number of 5000 digits"),
    "a hexadecimal number": ("a: 0x" + "f" * 9000, "a number of 9002 digits"),
    "of base 60": ("a: 1" + ":1" * 5000, "a number of 10001 digits"),
    "an object": ("a: !!python/object/apply:os.system [ls]", "not YAML"),
    "a list as key": ("? [1]\n: 2\n", "not YAML"),
    "an unknown alias": ("a: *b", "not YAML"),
    "control letters": ("a: \x00", "not YAML"),
    "two documents": ("a: 1\n---\nb: 2\n", "not YAML"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD.keys())
def test_one_line_at_once(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    for read in (read_recipe, load_any_recipe, lambda path: load_recipe(path, RlRecipe)):
        start = time.process_time()
        with pytest.raises((ManifestError, OptionError), match=message) as caught:
            read(path)
        # The bomb took 100 s; reading 200,000 letters or 20,000 values takes about one.
        assert time.process_time() - start < 5
        assert str(caught.value).startswith(f"{path}: ")
        assert len(str(caught.value)) < 600 + len(str(path))


@pytest.mark.parametrize("value", ["[" * 5000, "2026-99-99", "9" * 5000, "[1"])
def test_a_value_on_the_command_line(tmp_path, value):
    path = tmp_path / "recipe.yaml"
    path.write_text("phase: rl\n")
    with pytest.raises(OptionError, match=r"'out=.*: the value is .*; put it in quotes") as caught:
        load_recipe(path, RlRecipe, [f"out={value}"])
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipes_of_this_repository_read_as_the_library_reads_them(path):
    text = path.read_text(encoding="utf-8")
    assert load_yaml(text) == yaml.safe_load(text)


def test_aliases_and_merges_of_a_sane_size():
    text = "base: &base {count: 4, kinds: [a, b]}\none: {<<: *base, count: 5}\ntwo: [*base, *base]\n"
    assert load_yaml(text) == yaml.safe_load(text)
    nested = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert load_yaml(nested) == yaml.safe_load(nested)
    with pytest.raises(InputError, match="nested more than"):
        load_yaml(f"[{nested}]")
