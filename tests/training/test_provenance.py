"""The run info of a checkpoint, and the checkpoint that a run resumes from."""

import json

import pytest

from differad.errors import OptionError
from differad.training.provenance import complete_checkpoints, describe_run, find_start, git_commit, write_run_info


def test_only_complete_checkpoints_count(tmp_path, make_recipe):
    run = describe_run(make_recipe("sft"), {}, 1)
    assert find_start(tmp_path, run, resume=True) is None
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        write_run_info(tmp_path / f"checkpoint-{step}", run, step)
    (tmp_path / "checkpoint-11").mkdir()  # cut short: no note
    assert [folder.name for folder in complete_checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10"]
    assert find_start(tmp_path, run, resume=True).name == "checkpoint-10"
    with pytest.raises(OptionError, match=r"holds checkpoint-10 of an earlier run; pass --resume"):
        find_start(tmp_path, run, resume=False)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.batch_size=8", r"another train.batch_size \(4, now 8\)"),
        ("data.seed=4", r"another data.seed \(0, now 4\)"),
        ("train.steps=99", None),
        ("held_out.every=7", None),
    ],
)
def test_what_a_resumed_run_may_change(tmp_path, make_recipe, override, message):
    (tmp_path / "checkpoint-1").mkdir()
    write_run_info(tmp_path / "checkpoint-1", describe_run(make_recipe("sft"), {"p": "1"}, 1), 1)
    run = describe_run(make_recipe("sft", override), {"p": "1"}, 1)
    if message is None:
        assert find_start(tmp_path, run, resume=True) is not None
    else:
        with pytest.raises(OptionError, match=message):
            find_start(tmp_path, run, resume=True)


def test_other_data_is_refused(tmp_path, make_recipe):
    (tmp_path / "checkpoint-1").mkdir()
    write_run_info(tmp_path / "checkpoint-1", describe_run(make_recipe("sft"), {"p": "1"}, 1), 1)
    with pytest.raises(OptionError, match="another data"):
        find_start(tmp_path, describe_run(make_recipe("sft"), {"p": "2"}, 1), resume=True)


def test_run_info_has_recipe_data_versions_and_commit(tmp_path, make_recipe):
    pytest.importorskip("trl", reason="the train extra is not installed")
    write_run_info(tmp_path, describe_run(make_recipe("sft"), {"p": "abc"}, 2), 7)
    note = json.loads((tmp_path / "run_info.json").read_text())
    assert (note["step"], note["processes"], note["data"]) == (7, 2, {"p": "abc"})
    assert note["recipe"]["train"]["batch_size"] == 4
    assert note["versions"]["trl"].startswith("1.")
    assert "commit" in note


def test_the_commit_is_read_from_the_files(tmp_path):
    assert git_commit(tmp_path / "a" / "b.py") is None
    git = tmp_path / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "packed-refs").write_text("# pack-refs\nabc123 refs/heads/main\n")
    assert git_commit(tmp_path / "a" / "b.py") == "abc123"
    (git / "refs" / "heads" / "main").write_text("def456\n")
    assert git_commit(tmp_path / "a" / "b.py") == "def456"
    (git / "HEAD").write_text("0123\n")
    assert git_commit(tmp_path / "a" / "b.py") == "0123"
