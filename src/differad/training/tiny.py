"""The embedded policy made from nothing: a folder that reads like a Qwen2-VL checkpoint, random weights, a tokenizer of its own.

It knows one question, so its chat template leaves texts out and lays out the two pictures alone. Whole numbers from 0 to 1000
are tokens, whose embeddings start out as waves of the number: near numbers look alike from the first step on.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from differad.errors import OptionError
from differad.locators.tiny.evidence import PATCH
from differad.locators.tiny.model import COMPARISON, TinyConfig, TinyPolicy, waves
from differad.locators.tiny.network import OPENING
from differad.locators.tiny.processor import MERGE, EvidenceProcessor
from differad.training.reading import pretrain_boxes
from differad.training.recipe import Tiny
from differad.training.scratch import SPECIALS, text_settings, token_ids

# What every answer is made of; one token each, so that an answer takes ten.
PHRASES = (OPENING, "),(", ")</answer>", "<think>", "</think>", "<answer>", "</answer>")
NUMBERS = 1001
_NUMBER_LENGTH = 1.5
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}<|im_start|>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}<|im_end|>"
    "{% elif message['content'] is not string %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


def build_tiny(folder: Path, tiny: Tiny, seed: int) -> Path:
    """Write the checkpoint to `folder`; the same seed gives the same weights."""
    torch.manual_seed(seed)
    tokenizer = _tokenizer()
    model = TinyPolicy(TinyConfig(**_settings(tiny, tokenizer)))
    _write_numbers(model, tokenizer)
    if tiny.comparer is not None:
        _take_comparer(model, tiny.comparer)
    pretrain_boxes(model, tokenizer, tiny.reading, seed)
    ends = [tokenizer.convert_tokens_to_ids(text) for text in ("<|im_end|>", "<|endoftext|>")]
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    EvidenceProcessor().save_pretrained(folder)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, phrases and numbers: whatever is not one of the latter is spelt."""
    # Bytes lie in the vocabulary itself: as added tokens their letters would be looked for in the text as it stands.
    spelt = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={text: number for number, text in enumerate(spelt)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    # Ordinary tokens: completions are decoded without special ones, and rewards look for the tags.
    words = [*PHRASES, *(str(number) for number in range(NUMBERS))]
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in words])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE
    )


def _write_numbers(model: TinyPolicy, tokenizer: PreTrainedTokenizerFast) -> None:
    """Embeddings of numbers as mixed waves, long enough that a state that lies along one can be sure of it.

    The output layer is tied to them: with the usual short embeddings the odds of one number in a thousand stay even for long.
    """
    table = model.get_input_embeddings().weight
    places = [tokenizer.convert_tokens_to_ids(str(number)) for number in range(NUMBERS)]
    written = waves(torch.arange(NUMBERS, dtype=torch.float32) / (NUMBERS - 1))
    with torch.no_grad():
        mixed = written @ torch.randn(written.shape[1], table.shape[1])
        table[places] = _NUMBER_LENGTH * mixed / mixed.norm(dim=1, keepdim=True)


def _take_comparer(model: TinyPolicy, checkpoint: Path) -> None:
    """The weights up to the map of changes of another policy; what turns them into tokens is learnt anew."""
    path = checkpoint / "model.safetensors"
    if not path.is_file():
        raise OptionError(f"model.tiny.comparer={checkpoint}: no model.safetensors in it; expected a policy's folder")
    prefix = "model.visual."
    found = {name.removeprefix(prefix): value for name, value in load_file(path).items() if name.startswith(prefix)}
    kept = {name: value for name, value in found.items() if name.partition(".")[0] in COMPARISON}
    try:
        missing = model.model.visual.load_state_dict(kept, strict=False).missing_keys
    except RuntimeError as error:
        raise OptionError(f"model.tiny.comparer={checkpoint}: of another size ({str(error)[:200]})") from None
    if any(name.partition(".")[0] in COMPARISON for name in missing):
        raise OptionError(f"model.tiny.comparer={checkpoint}: no comparer in it; expected a policy's folder")


def _settings(tiny: Tiny, tokenizer: PreTrainedTokenizerFast) -> dict[str, object]:
    vision = {
        "depth": tiny.blocks,
        "embed_dim": tiny.channels,
        "hidden_size": tiny.hidden_size,
        "num_heads": 1,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
    }
    text = text_settings(tokenizer, tiny.hidden_size, tiny.layers, tiny.heads, positions=2048)
    return {"text_config": text, "vision_config": vision, "tie_word_embeddings": True, **token_ids(tokenizer)}
