"""Checkpoints of the families beyond Qwen-VL, a few thousand random weights each, with the files of a published folder.

A builder is the model's configuration and its own processor's files; everything else, weights, tokenizer, chat template, is
alike for all. Knows nothing of what is tested on them.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig, PreTrainedTokenizerFast

from differad.answers.formats import FORMATS
from differad.answers.prompts import PARAPHRASES, QUESTION, SYSTEM, prompt_text

HIDDEN = 32
# Before it, layers that choose tokens by an index do not repeat it with their rows; a run then says so and does not share.
REPEATS_INDEX = Version(version("transformers")) >= Version("5.23")
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
    """Write the checkpoint; its answers depend on its inputs."""
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
    """Size parameters by the names that most language models of these families use."""
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
QWEN_MARK = "<|vision_start|><|image_pad|><|vision_end|>"
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
QWEN_IMAGES = HALF | {
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "size": {"shortest_edge": 56 * 56, "longest_edge": 112 * 112},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
}


def _ids(tokenizer: PreTrainedTokenizerFast, **names: str) -> dict[str, int]:
    """Values of a configuration that are the ids of tokens."""
    return {name: tokenizer.convert_tokens_to_ids(text) for name, text in names.items()}


def _qwen_moe_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    config = _qwen_config(tokenizer)
    experts = {"num_experts": 2, "num_experts_per_tok": 1}
    sizes = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    return config | {"text_config": config["text_config"] | experts | sizes}


def _qwen4_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    config = _qwen_moe_config(tokenizer)
    indexer = {"indexer_n_heads": 1, "indexer_kv_heads": 1, "indexer_head_dim": 16}
    indexer |= {"indexer_budget": 64, "indexer_compress_ratio": 4, "hc_count": 2, "hc_lowrank": 8}
    layers = {"layer_types": ["linear_attention", "indexed_attention"]}
    return config | {"text_config": config["text_config"] | indexer | layers}


def _internvl_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return {
        "text_config": _text(tokenizer) | {"model_type": "qwen2"},
        "vision_config": vision | {"image_size": [56, 56], "patch_size": [14, 14]},
        "image_seq_length": 4,
        **_ids(tokenizer, image_token_id="<IMG_CONTEXT>"),
    }


def _glm_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "image_size": 112, "patch_size": 14}
    return {
        "text_config": _text(tokenizer, rope_parameters=rope) | {"model_type": "glm4v_text"},
        "vision_config": vision | {"out_hidden_size": HIDDEN, "intermediate_size": 16, "model_type": "glm4v_vision"},
        **_ids(
            tokenizer,
            image_token_id="<|image|>",
            video_token_id="<|video|>",
            image_start_token_id="<|begin_of_image|>",
            image_end_token_id="<|end_of_image|>",
            video_start_token_id="<|begin_of_video|>",
            video_end_token_id="<|end_of_video|>",
        ),
    }


def _gemma_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    text = _text(
        tokenizer,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=64,
        global_head_dim=16,
        vocab_size_per_layer_input=len(tokenizer),
        hidden_size_per_layer_input=8,
    )
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision |= {"num_key_value_heads": 1, "head_dim": 16, "position_embedding_size": 64}
    return {
        "text_config": text,
        "vision_config": vision,
        "audio_config": None,
        **_ids(
            tokenizer,
            image_token_id="<|image|>",
            boi_token_id="<|image>",
            eoi_token_id="<image|>",
            video_token_id="<|video|>",
            audio_token_id="<|audio|>",
            boa_token_id="<|audio>",
            eoa_token_index="<audio|>",
        ),
    }


def _smolvlm_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {
        "text_config": _text(tokenizer) | {"model_type": "llama"},
        "vision_config": vision | {"image_size": 64, "patch_size": 16},
        "scale_factor": 2,
        **_ids(tokenizer, image_token_id="<image>"),
    }


def _minicpm_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    text = _qwen_config(tokenizer)["text_config"] | {"model_type": "qwen3_5_text"}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return {
        "text_config": text,
        "vision_config": vision | {"image_size": 112, "patch_size": 14},
        "insert_layer_id": 0,
        "image_size": 112,
        **_ids(tokenizer, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>"),
    }


def _minicpm_marks_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    marks = {"image_start_id": "<image>", "image_end_id": "</image>", "slice_start_id": "<slice>"}
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"][0]
    return _minicpm_config(tokenizer) | _ids(tokenizer, **marks, slice_end_id="</slice>") | {"newline_id": newline}


def _lfm_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    text = _text(tokenizer, layer_types=["conv", "full_attention"], sliding_window=64) | {"model_type": "lfm3"}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return {
        "text_config": text,
        "vision_config": vision | {"num_key_value_heads": 1, "layer_types": ["conv", "full_attention"]},
        "projector_hidden_size": 32,
        **{f"{name}_id": tokenizer.convert_tokens_to_ids(text) for name, text in QWEN_TOKENS.items()},
    }


def _lfm2_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    text = _text(tokenizer, layer_types=["conv", "full_attention"], block_ff_dim=48) | {"model_type": "lfm2"}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {
        "text_config": text,
        "vision_config": vision | {"num_patches": 16, "patch_size": 16, "model_type": "siglip2_vision_model"},
        "projector_hidden_size": 32,
        **_ids(tokenizer, image_token_id="<image>"),
    }


def _mistral_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {
        "text_config": _text(tokenizer) | {"model_type": "mistral"},
        "vision_config": vision | {"image_size": 112, "patch_size": 14, "head_dim": 8, "model_type": "pixtral"},
        **_ids(tokenizer, image_token_index="[IMG]"),
    }


MINICPM_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "image_start_token": "<image>",
    "image_end_token": "</image>",
    "slice_start_token": "<slice>",
    "slice_end_token": "</slice>",
    "image_id_start_token": "<image_id>",
    "image_id_end_token": "</image_id>",
}
MINICPM_IMAGES = {"image_processor_type": "MiniCPMV4_6ImageProcessor", "scale_resolution": 112, "patch_size": 14}


def _qwen(model_type: str, config: Callable[[PreTrainedTokenizerFast], dict[str, Any]] = _qwen_config) -> Family:
    return Family(model_type, QWEN_TOKENS, QWEN_MARK, config, {"preprocessor_config.json": QWEN_IMAGES})


FAMILIES: dict[str, Family] = {
    "qwen3_5": _qwen("qwen3_5"),
    "qwen3_5_moe": _qwen("qwen3_5_moe", _qwen_moe_config),
    "qwen4_exp": _qwen("qwen4_exp", _qwen4_config),
    "internvl": Family(
        "internvl",
        {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        "<IMG_CONTEXT>\n",
        _internvl_config,
        {
            "processor_config.json": {"image_seq_length": 4, "processor_class": "InternVLProcessor"},
            # Two tiles and the whole: three for each image.
            "preprocessor_config.json": {
                "image_processor_type": "GotOcr2ImageProcessor",
                "size": {"height": 56, "width": 56},
                "crop_to_patches": True,
                "min_patches": 2,
                "max_patches": 2,
            },
        },
    ),
    "glm46v": Family(
        "glm46v",
        {"image_token": "<|image|>", "video_token": "<|video|>"},
        "<|begin_of_image|><|image|><|end_of_image|>",
        _glm_config,
        {
            "preprocessor_config.json": {
                "image_processor_type": "Glm46VImageProcessor",
                "size": {"shortest_edge": 2 * 56 * 56, "longest_edge": 2 * 112 * 112},
                "patch_size": 14,
                "temporal_patch_size": 2,
                "merge_size": 2,
            }
        },
        ("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
    ),
    "gemma4": Family(
        "gemma4",
        {
            "image_token": "<|image|>",
            "boi_token": "<|image>",
            "eoi_token": "<image|>",
            "audio_token": "<|audio|>",
            "boa_token": "<|audio>",
            "eoa_token": "<audio|>",
        },
        "<|image|>",
        _gemma_config,
        {
            "processor_config.json": {
                "processor_class": "Gemma4Processor",
                "image_seq_length": 70,
                "image_processor": {"image_processor_type": "Gemma4ImageProcessor", "max_soft_tokens": 70},
                "feature_extractor": {"feature_extractor_type": "Gemma4AudioFeatureExtractor"},
                "video_processor": {"video_processor_type": "Gemma4VideoProcessor"},
            }
        },
        ("<|video|>",),
    ),
    "smolvlm": Family(
        "smolvlm",
        {
            "image_token": "<image>",
            "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>",
        },
        "<image>",
        _smolvlm_config,
        {
            "processor_config.json": {"image_seq_len": 4, "processor_class": "SmolVLMProcessor"},
            "preprocessor_config.json": HALF
            | {
                "image_processor_type": "SmolVLMImageProcessor",
                "size": {"longest_edge": 64},
                "max_image_size": {"longest_edge": 64},
            },
        },
        ("<end_of_utterance>", "<video>"),
    ),
    "minicpmv4_6": Family(
        "minicpmv4_6", MINICPM_TOKENS, "<|image_pad|>", _minicpm_config, {"preprocessor_config.json": MINICPM_IMAGES}
    ),
    "minicpmv4_7": Family(
        "minicpmv4_7",
        MINICPM_TOKENS,
        "<|image_pad|>",
        _minicpm_marks_config,
        {"preprocessor_config.json": MINICPM_IMAGES},
    ),
    "lfm3_vl": Family("lfm3_vl", QWEN_TOKENS, QWEN_MARK, _lfm_config, {"preprocessor_config.json": QWEN_IMAGES}),
    "lfm2_vl": Family(
        "lfm2_vl",
        {
            "image_token": "<image>",
            "image_start_token": "<|image_start|>",
            "image_end_token": "<|image_end|>",
            "image_thumbnail_token": "<|img_thumbnail|>",
        },
        "<image>",
        _lfm2_config,
        {
            "preprocessor_config.json": HALF
            | {
                "image_processor_type": "Lfm2VlImageProcessor",
                "min_image_tokens": 2,
                "max_image_tokens": 9,
                "max_num_patches": 36,
                "tile_size": 64,
                "encoder_patch_size": 16,
            }
        },
    ),
    "mistral3": Family(
        "mistral3",
        {"image_token": "[IMG]"},
        "[IMG]",
        _mistral_config,
        {
            "processor_config.json": {"patch_size": 14, "spatial_merge_size": 2, "processor_class": "PixtralProcessor"},
            "preprocessor_config.json": {
                "image_processor_type": "PixtralImageProcessor",
                "size": {"longest_edge": 112},
                "patch_size": {"height": 14, "width": 14},
            },
        },
        ("[IMG_BREAK]", "[IMG_END]"),
    ),
}
