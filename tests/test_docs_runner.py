"""Tests of the documentation's test; the pages themselves are tested in test_docs.py."""

import os

import pytest

from docs_blocks import blocks, indented_code, spans
from docs_commands import faults
from docs_runner import Page, Run

needs_shell = pytest.mark.skipif(os.name == "nt", reason="pages are written for a POSIX shell")


def run(text, folder, **page):
    folder.mkdir(exist_ok=True)
    Run("page.md", Page(**page), folder, "http://127.0.0.1:9/v1").all_of(text)


@pytest.mark.parametrize(
    ("info", "fault"),
    [
        ("bash", "unknown language; expected one of sh, python"),
        ("", "unknown language"),
        ("sh not run", "expected nothing, not run: WHY"),
        ("sh not run:", "expected nothing, not run: WHY"),
        ("sh needs a GPU", "expected nothing, not run: WHY"),
        ("json", "neither run nor says why"),
        ("text", "neither run nor says why"),
    ],
)
def test_a_fence_that_neither_runs_nor_says_why(info, fault, tmp_path):
    with pytest.raises(AssertionError, match=rf"page\.md:2: .*{fault}"):
        run(f"```{info}\ntrue\n```\n", tmp_path)


@needs_shell
@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("```sh\ndifferad modells\n```", r"exit code 2: page.md:2: differad modells\n.*No such command"),
        ("```sh\ndifferad models --jsonn\n```", "No such option"),
        ("\n```sh\ntrue\nfalse | cat\n```", "exit code 1: page.md:4"),
        ("```sh\ntrue  # exit code 3: abnormal\n```", "exit code 0: page.md:2"),
        ("```sh\necho --out there\n```", "--out there is not there"),
        ("```sh\ntouch there; echo --out there\n```", "--out there is empty"),
        ("```sh\necho Traceback\n```", "page.md:2"),
        ("```sh\necho 3 pairs\n```\n```text output\n4 parts\n```", "page.md:5: not printed by echo 3 pairs: 4 parts"),
    ],
)
def test_a_command_that_is_not_as_printed(text, fault, tmp_path):
    with pytest.raises(AssertionError, match=fault):
        run(text, tmp_path)


@needs_shell
def test_what_is_not_promised_of_a_page(tmp_path):
    for page in (
        Page(leaves=("a",)),
        Page(holds=("1 == 2",)),
        Page(scaled={"--count 9": "--count 1"}),
        Page(prints={"x": "y"}),
    ):
        with pytest.raises(AssertionError, match=r"^page\.md"):
            Run("page.md", page, tmp_path, "").all_of("```sh\ntrue\n```")


@needs_shell
def test_a_page_is_one_story(tmp_path):
    text = """
```json file: a.json
{"a": 1}
```

```python
import json
from pathlib import Path
```

```sh
cp a.json \\
  b.json      # exit code 0
cat b.json; echo 'loss 0.25   of 10'
```

```text output
loss -3 of 8
```

```sh not run: needs a GPU
false
```

```python
found = json.loads(Path("b.json").read_text())
```
"""
    run(text, tmp_path, holds=("found == {'a': 1}",), leaves=("b.json",))


@pytest.mark.parametrize(
    ("opening", "closing"),
    [("~~~{}", "~~~"), ("````{}", "````"), ("   ```{}", "   ```"), ("> ```{}", "> ```"), ("```  {}", "````")],
)
def test_every_way_to_write_a_fence(opening, closing):
    mark = opening[: len(opening) - len(opening.lstrip(" >"))]
    text = f"1. Text\n\n{opening.format('sh not run: why')}\n{mark}a `b`\n{mark}  ``c``\n{closing}\n\n`d`\n"
    (block,) = blocks("page.md", text)
    assert (block.line, block.language, block.attribute("not_run")) == (4, "sh", "not run: why")
    assert block.text == "a `b`\n  ``c``"
    assert spans(text) == [(8, "d")]


def test_a_fence_that_is_not_closed():
    with pytest.raises(AssertionError, match=r"page\.md:3: a fence that is not closed"):
        blocks("page.md", "a\n\n```sh\nls\n~~~\n")


def test_a_traceback_names_the_line_of_the_page(tmp_path):
    with pytest.raises(ZeroDivisionError) as raised:
        run("# Page\n\n```python\none = 1\none / 0\n```\n", tmp_path)
    assert (str(raised.traceback[-1].path), raised.traceback[-1].lineno + 1) == ("page.md", 5)


def test_code_in_sentences():
    text = "A `differad locate\na b` is ``a `b` c``.\n\n```sh\n`no`\n```\n\n| `x\\|y` |\n\n    indented\n"
    assert spans(text) == [(1, "differad locate a b"), (2, "a `b` c"), (8, "x|y")]
    assert indented_code(text) == [10]
    assert [block.line for block in blocks("page.md", text)] == [5]


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("differad check-leakage a b", "differad has no command check-leakage"),
        ("differad train sft|sl RECIPE", "differad train has no command sl"),
        ("differad evaluate p.jsonl --output runs", "differad evaluate has no option --output"),
        ("cat x | differad score --jsonn", "differad score has no option --jsonn"),
        ("accelerate launch -m differad train rl R --resumes", "differad train rl has no option --resumes"),
        ("--share-references", "no command has the option --share-references"),
        ("differad locate a b -o difference.tolerances=3", "no model has the option difference.tolerances"),
        ("python benchmarks/rewards_speed.py --jsons", "benchmarks/rewards_speed.py has no option --jsons"),
        ("train.minuts", "no recipe has the key train.minuts"),
        ("model.lora.dropouts=0.1", "no recipe has the key model.lora.dropouts"),
        ("data.{pairs, limits}", "no recipe has the key data.limits"),
        ("bash recipes/tiny/trian.sh", "no file recipes/tiny/trian.sh"),
        ("locators/registrations.py", "no file ends in locators/registrations.py"),
        ("differad.rewards.score", "no module or name differad.rewards.score"),
        ("DIFFERAD_MODELL", "nothing reads the variable DIFFERAD_MODELL"),
        ("pip install 'differad[training]'", "no extra training"),
    ],
)
def test_what_does_not_exist(code, fault):
    assert faults(code) == [fault]


@pytest.mark.parametrize(
    "code",
    [
        "differad COMMAND --help",
        "differad export FORMAT pairs.jsonl OUT [--predictions predictions.jsonl] [--root FOLDER]",
        "differad train sft recipes/tiny/own.yaml 'data.pairs=[a.jsonl]' --check",
        "differad --version",
        "--no-boxes",
        "train.more.router_aux_loss_coef",
        "data.yaml",
        "differad locate a b --model tiny -o threshold=0.5 --json | head",
        "pip install '.[train,data]'",
        "recipes/MODEL/{sft,rl}-{full,lora}.yaml",
        "differad: warning: a b --c",
    ],
)
def test_what_exists(code):
    assert faults(code) == []
