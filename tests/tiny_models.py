"""Checkpoints of the three Qwen-VL classes, a few thousand weights each, with the files of published ones.

They read a prompt and images like the real ones and then say one fixed text: each token of the answer names the next
in the output layer, whatever the images show. What a test checks is therefore the whole way, not the model's wits.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|box_start|>",
    "<|box_end|>",
)
# The part of the published template that conversations with images use.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PATCH = {"qwen2_vl": 14, "qwen2_5_vl": 14, "qwen3_vl": 16, "qwen3_vl_moe": 16}
MIN_PIXELS, MAX_PIXELS = 3136, 50176
HIDDEN = 64


def build_checkpoint(folder: Path, model_type: str, answer: str | None) -> Path:
    """Write a checkpoint that always answers `answer`, or (None) one with random weights, whose answers depend on its input."""
    torch.manual_seed(0)
    pieces = [] if answer is None else cut(answer)
    tokenizer = build_tokenizer(pieces)
    config = AutoConfig.for_model(model_type, **_settings(model_type, tokenizer))
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    if answer is None:
        _stir(model)
    else:
        _chain(model, tokenizer, ["\n", *pieces, "<|im_end|>"])
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _write_image_processor(folder, model_type)
    return folder


def generate_plainly(model: Any, batch: Any, config: Any) -> torch.Tensor:
    """The output of `model.generate` for a batch of prompts with images, every row encoded completely."""
    return model.generate(
        input_ids=batch.ids,
        attention_mask=batch.mask,
        mm_token_type_ids=batch.types,
        pixel_values=batch.pictures.patches,
        image_grid_thw=batch.pictures.grids,
        generation_config=config,
    )


def cut(answer: str, count: int = 4) -> list[str]:
    """The answer in pieces, each its own token, so that its text is composed of several."""
    size = -(-len(answer) // count)
    pieces = [answer[start : start + size] for start in range(0, len(answer), size)]
    if len(set(pieces)) < len(pieces):
        raise ValueError(f"{answer!r}: its pieces repeat, so a token cannot name the next; choose another answer")
    return pieces


def build_tokenizer(pieces: list[str]) -> PreTrainedTokenizerFast:
    """Bytes as tokens, the Qwen special tokens, and its chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in pieces])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=TEMPLATE,
    )


def _settings(model_type: str, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if model_type.endswith("_moe"):
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    vision: dict[str, Any] = {"depth": 2, "num_heads": 2, "patch_size": PATCH[model_type]}
    if model_type == "qwen2_vl":
        vision |= {"embed_dim": 32, "hidden_size": HIDDEN, "mlp_ratio": 2}
    elif model_type == "qwen2_5_vl":
        vision |= {"hidden_size": 32, "out_hidden_size": HIDDEN, "intermediate_size": 64}
        vision |= {"fullatt_block_indexes": [1], "window_size": 112}
    else:
        vision |= {"hidden_size": 32, "out_hidden_size": HIDDEN, "intermediate_size": 64}
        vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    tokens = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{text}|>")
        for name, text in {
            "image": "image_pad",
            "video": "video_pad",
            "vision_start": "vision_start",
            "vision_end": "vision_end",
        }.items()
    }
    return {"text_config": text, "vision_config": vision, "tie_word_embeddings": False, **tokens}


def _chain(model: Any, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> None:
    """Make each token name the next: the layers add nothing, the embeddings are orthogonal, the head reads them."""
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    if any(len(each) != 1 for each in ids):
        raise ValueError(f"{texts}: expected one token each, got {ids}")
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        head.zero_()
        for axis, ((here,), (following,)) in enumerate(pairwise(ids)):
            embedding[here] = torch.eye(HIDDEN)[axis]
            head[following, axis] = 1.0


def _stir(model: Any) -> None:
    """Weights large enough that an image's content changes the answer."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 2.0 / parameter[0].numel() ** 0.5)


def _write_image_processor(folder: Path, model_type: str) -> None:
    """`preprocessor_config.json` as the published checkpoints have it: areas, patch and merge size, a class name."""
    settings = {
        "image_processor_type": "Qwen2VLImageProcessor" + ("Fast" if model_type.startswith("qwen3_vl") else ""),
        "min_pixels": MIN_PIXELS,
        "max_pixels": MAX_PIXELS,
        "patch_size": PATCH[model_type],
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    if model_type.startswith("qwen3_vl"):
        settings["size"] = {"shortest_edge": settings.pop("min_pixels"), "longest_edge": settings.pop("max_pixels")}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
