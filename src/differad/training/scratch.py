"""A small, randomly initialised Qwen2-VL, so that a whole training run fits on a CPU.

The tokenizer is trained on the run's own prompts and answers, with single digits, so a prompt takes a quarter of the tokens that
bytes would. The folder has the form of a published checkpoint: safetensors, no code.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig, PreTrainedTokenizerFast

from differad.answers.formats import FORMATS
from differad.answers.prompts import PARAPHRASES, QUESTION, SYSTEM, prompt_text
from differad.files import write_text
from differad.training.recipe import Scratch

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
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
# The part of the published template that conversations with images use.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PATCH, MERGE = 14, 2
MIN_PIXELS, MAX_PIXELS = 56 * 56, 448 * 448
# Sentences with all words of the templated reasoning of `data.describe_defect`.
_REASONING = (
    "The target shows the part as the reference does. Nothing is missing, added or damaged.",
    "The target differs from the reference: defect, texture, in the upper middle lower left centre right, a speck, small, "
    "of medium size, large.",
)


def build_small_qwen2_vl(folder: Path, scratch: Scratch, seed: int) -> Path:
    """Write the checkpoint to `folder`; the seed fixes the weights."""
    torch.manual_seed(seed)
    tokenizer = _tokenizer(scratch.vocabulary)
    config = AutoConfig.for_model("qwen2_vl", **_settings(scratch, tokenizer))
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    ends = [tokenizer.convert_tokens_to_ids(text) for text in ("<|im_end|>", "<|endoftext|>")]
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": MIN_PIXELS,
        "max_pixels": MAX_PIXELS,
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": MERGE,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    write_text(folder / "preprocessor_config.json", json.dumps(settings, indent=2) + "\n")
    return folder


def _corpus() -> Iterator[str]:
    yield from (SYSTEM, *_REASONING)
    for answer_format in FORMATS.values():
        yield from (prompt_text(answer_format, question) for question in (QUESTION, *PARAPHRASES))


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d| ?\p{L}+| ?[^\s\p{L}\d]|\s+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    # Ordinary tokens: completions are decoded without special tokens, and rewards search for the tags.
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE
    )


def _settings(scratch: Scratch, tokenizer: PreTrainedTokenizerFast) -> dict[str, object]:
    vision = {
        "depth": scratch.vision_depth,
        "embed_dim": scratch.vision_size,
        "hidden_size": scratch.hidden_size,
        "num_heads": scratch.heads,
        "mlp_ratio": 2,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
    }
    text = text_settings(tokenizer, scratch.hidden_size, scratch.layers, scratch.heads, positions=8192)
    return {"text_config": text, "vision_config": vision, "tie_word_embeddings": True, **token_ids(tokenizer)}


def text_settings(
    tokenizer: PreTrainedTokenizerFast, hidden_size: int, layers: int, heads: int, positions: int
) -> dict[str, object]:
    """Qwen2-VL's `text_config` of a small language model without shared key/value heads."""
    head = hidden_size // heads
    # Sections of the rotary frequencies for time, height and width, in the published proportion 2 : 3 : 3.
    third = head * 3 // 16
    sections = [head // 2 - 2 * third, third, third]
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": 3 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": positions,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The ids of image tokens, under the names of Qwen2-VL's configuration."""
    names = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    return {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{text}|>") for name, text in names.items()}
