"""All saved folders load in stock transformers: image processor, tokenizer, and no class of differad."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="the train extra is not installed")
from transformers import AutoImageProcessor, AutoTokenizer
from transformers.utils import is_torchvision_available

from differad.answers.prompts import QUESTION
from differad.training.data import prompt_messages
from differad.training.policy import export, load_model, open_checkpoint
from differad.training.recipe import Tiny
from differad.training.rl import train_rl
from differad.training.sft import train_sft
from differad.training.tiny import build_tiny

sys.path.insert(0, str(Path(__file__).parents[1] / "locators"))
sys.path.insert(0, str(Path(__file__).parent))
from scripted import make_trainer

from tiny_models import build_checkpoint

STOCK = {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor"}
# A process of its own, which has never heard of differad: what a user of the folder has.
READER = """
import json, sys
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
found = {}
for folder in sys.argv[1:]:
    tokenizer, images = AutoTokenizer.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    try:
        whole = type(AutoProcessor.from_pretrained(folder)).__name__
    except ImportError as error:
        whole = str(error).strip().split()[0]
    found[folder] = [tokenizer.chat_template is not None, tokenizer("(1,2),(30,40)")["input_ids"],
                     type(images).__name__, images.patch_size, dict(images.size), whole]
assert not any(name.startswith("differad") for name in sys.modules)
print(json.dumps(found))
"""


def read_by_stock(*folders):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", READER, *map(str, folders)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def names_no_class_of_ours(folder):
    texts = [path.read_text() for path in Path(folder).glob("*.json") if path.name != "run_info.json"]
    return not any("PairProcessor" in text for text in texts)


def check(sources):
    """Every folder reads as the source's own processor does; `AutoProcessor` is stock, or says what it lacks."""
    found = read_by_stock(*sources)
    assert len(found) == len(sources) > 0
    for folder, source in sources.items():
        template, ids, kind, patch, size, whole = found[str(folder)]
        settings = source.processor.image_processor
        assert names_no_class_of_ours(folder), folder
        tokens = source.processor.tokenizer("(1,2),(30,40)")["input_ids"]
        assert (template, ids, patch) == (True, tokens, settings.patch_size), folder
        assert kind.startswith("Qwen2VLImageProcessor"), folder
        assert {name: value for name, value in size.items() if value is not None} == {
            "shortest_edge": settings.size.shortest_edge,
            "longest_edge": settings.size.longest_edge,
        }
        stock = STOCK[source.config.model_type] if is_torchvision_available() else "Qwen2VLVideoProcessor"
        assert whole == stock, folder


def test_what_runs_save(make_recipe, tmp_path):
    """Both phases, with adapters and without: every checkpoint and the result."""
    sources = {}
    for phase, train in (("sft", train_sft), ("rl", train_rl)):
        for lora in ("null", "{rank: 4, alpha: 8}"):
            recipe = make_recipe(
                phase, "train.steps=2", f"model.lora={lora}", f"out={tmp_path / f'{phase}-{len(lora)}'}"
            )
            train(recipe)
            source = open_checkpoint(recipe.model, recipe.out, 0)
            sources |= {recipe.out / name: source for name in ("checkpoint-1", "checkpoint-2", "model")}
    check(sources)


def test_what_a_sharded_run_saves(make_recipe, tmp_path):
    """Under FSDP and ZeRO the trainer gathers the weights and writes them itself; `export` is not called."""
    recipe = make_recipe("rl", "train.batch_size=4")
    trainer = make_trainer(recipe)
    trainer._save(str(tmp_path / "gathered"), state_dict=trainer.accelerator.get_state_dict(trainer.model))
    trainer.save_model(str(tmp_path / "whole"))
    check(dict.fromkeys((tmp_path / "gathered", tmp_path / "whole"), open_checkpoint(recipe.model, recipe.out, 0)))


def test_what_is_exported_names_the_stock_processor(make_recipe, tmp_path):
    sources = {}
    for model_type, stock in STOCK.items():
        folder = build_checkpoint(tmp_path / "start" / model_type, model_type, None)
        recipe = make_recipe("sft", f"model.checkpoint={folder}")
        source = open_checkpoint(recipe.model, recipe.out, 0)
        export(load_model(source, recipe.model), source, tmp_path / model_type)
        source.processor.save_pretrained(tmp_path / model_type)  # a checkpoint's over the export's: no difference
        sources[tmp_path / model_type] = source
        saved = json.loads((tmp_path / model_type / "tokenizer_config.json").read_text())
        assert saved["processor_class"] == stock
    check(sources)


def test_a_folder_of_an_earlier_version_is_mended_when_it_is_saved_again(make_recipe, tmp_path, start):
    """Earlier checkpoints name the class without a video processor."""
    source = open_checkpoint(make_recipe("sft").model, tmp_path, 0)
    export(load_model(source, make_recipe("sft").model), source, tmp_path / "old")
    path = tmp_path / "old" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"processor_class": "PairProcessor"}))
    again = open_checkpoint(make_recipe("sft", f"model.checkpoint={tmp_path / 'old'}").model, tmp_path, 0)
    again.processor.save_pretrained(tmp_path / "new")
    export(load_model(again, make_recipe("sft").model), again, tmp_path / "new")
    check({tmp_path / "new": again})


def test_the_embedded_policy_is_read_once_differad_is_there(make_recipe, tmp_path):
    """Its model type is no stock one, so its image processor is known to whoever imports differad."""
    small = {"hidden_size": 32, "heads": 2, "layers": 1, "channels": 8, "blocks": 1}
    folder = build_tiny(tmp_path / "start", Tiny(**small), seed=0)
    source = open_checkpoint(
        make_recipe("sft", f"model.checkpoint={folder}", "model.max_pixels=null").model, tmp_path, 0
    )
    source.processor.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text((folder / "config.json").read_text())
    assert names_no_class_of_ours(tmp_path / "saved")
    assert type(AutoImageProcessor.from_pretrained(tmp_path / "saved")).__name__ == "EvidenceProcessor"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    text = tokenizer.apply_chat_template(prompt_messages(QUESTION), tokenize=False, add_generation_prompt=True)
    assert text.count("<|image_pad|>") == 2
