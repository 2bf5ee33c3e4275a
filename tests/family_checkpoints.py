"""Checkpoints of the families beyond Qwen-VL, a few thousand random weights each, with the files of a published folder.

A builder is the model's configuration and its own processor's files; everything else, weights, tokenizer, chat template, is
alike for all. Knows nothing of what is tested on them.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig, PreTrainedTokenizerFast

from differad.answers.formats import FORMATS
from differad.answers.prompts import PARAPHRASES, QUESTION, SYSTEM, prompt_text

HIDDEN = 32
# A conversation with images in the words of no family: roles in brackets, one mark in place of each image.
TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}]"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<end>\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """How a checkpoint is made: tokens that its processor names, the image's mark in a prompt, configuration and files.

    `config` takes the tokenizer; `files` are JSON files of the folder beside those of weights and tokenizer.
    """

    model_type: str
    tokens: dict[str, str]
    mark: str
    config: Callable[[PreTrainedTokenizerFast], dict[str, Any]]
    files: dict[str, dict[str, Any]]
    more_tokens: tuple[str, ...] = field(default=())


def build_family(folder: Path, family: Family) -> Path:
    """Write the checkpoint; its answers depend on what it is shown."""
    torch.manual_seed(0)
    tokenizer = _tokenizer(family)
    config = AutoConfig.for_model(family.model_type, **family.config(tokenizer))
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name, values in family.files.items():
        (folder / name).write_text(json.dumps(values))
    return folder


@cache
def _words() -> str:
    """A tokenizer's JSON, trained on the prompts, digits apart: prompts take a few hundred tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d| ?\p{L}+| ?[^\s\p{L}\d]|\s+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    texts = [prompt_text(form, question) for form in FORMATS.values() for question in (QUESTION, *PARAPHRASES)]
    tokenizer.train_from_iterator([SYSTEM, *texts], trainer)
    return str(tokenizer.to_str())


def _tokenizer(family: Family) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer.from_str(_words())
    specials = dict.fromkeys(["<pad>", "<end>", *family.tokens.values(), *family.more_tokens])
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<end>",
        pad_token="<pad>",
        chat_template=TEMPLATE.replace("IMAGE", family.mark),
        extra_special_tokens=family.tokens,
    )


def _text(tokenizer: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    """What most language models of these families call their sizes."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **more,
    }


def _qwen_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25, "mrope_interleaved": True}
    text = _text(
        tokenizer,
        head_dim=32,
        layer_types=["linear_attention", "full_attention"],
        rope_parameters=rope | {"mrope_section": [2, 1, 1]},
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        linear_num_key_heads=1,
        linear_num_value_heads=2,
    )
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": HIDDEN}
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(text) for name, text in QWEN_TOKENS.items()}
    return {"text_config": text, "vision_config": vision | {"num_position_embeddings": 16}, **ids}


QWEN_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
QWEN_IMAGES = {
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "size": {"shortest_edge": 56 * 56, "longest_edge": 112 * 112},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}

FAMILIES: dict[str, Family] = {
    "qwen3_5": Family(
        "qwen3_5",
        QWEN_TOKENS,
        "<|vision_start|><|image_pad|><|vision_end|>",
        _qwen_config,
        {"preprocessor_config.json": QWEN_IMAGES},
    ),
}
