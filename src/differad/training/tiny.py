"""The randomly initialised embedded policy: a folder in the form of a Qwen2-VL checkpoint, with its own tokenizer.

It has only one question, so its chat template omits texts and keeps the two images. Whole numbers from 0 to 1000 are tokens;
their embeddings start as Fourier features of the number, so near numbers have similar embeddings from the first step.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from differad.errors import OptionError
from differad.locators.tiny.evidence import PATCH
from differad.locators.tiny.model import COMPARISON, TinyConfig, TinyPolicy, fourier_features
from differad.locators.tiny.network import OPENING
from differad.locators.tiny.processor import MERGE, EvidenceProcessor
from differad.training.reading import pretrain_boxes
from differad.training.recipe import Tiny
from differad.training.scratch import SPECIALS, text_settings, token_ids

# The fixed parts of every answer, one token each, so that an answer takes ten tokens.
PHRASES = (OPENING, "),(", ")</answer>", "<think>", "</think>", "<answer>", "</answer>")
NUMBERS = 1001
_NUMBER_NORM = 1.5
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}<|im_start|>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}<|im_end|>"
    "{% elif message['content'] is not string %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


def build_tiny(folder: Path, tiny: Tiny, seed: int) -> Path:
    """Write the checkpoint to `folder`; the seed fixes the weights."""
    torch.manual_seed(seed)
    tokenizer = _tokenizer()
    model = TinyPolicy(TinyConfig(**_settings(tiny, tokenizer)))
    _init_number_embeddings(model, tokenizer)
    if tiny.comparer is not None:
        _load_change_encoder(model, tiny.comparer)
    pretrain_boxes(model, tokenizer, tiny.reading, seed)
    ends = [tokenizer.convert_tokens_to_ids(text) for text in ("<|im_end|>", "<|endoftext|>")]
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    EvidenceProcessor().save_pretrained(folder)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    """Tokens for phrases, numbers and single bytes; other text is encoded as bytes."""
    # Bytes belong to the vocabulary itself: as added tokens, their characters would be matched in the raw text.
    vocabulary = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={text: number for number, text in enumerate(vocabulary)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    # Ordinary tokens: completions are decoded without special tokens, and rewards search for the tags.
    words = [*PHRASES, *(str(number) for number in range(NUMBERS))]
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in words])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE
    )


def _init_number_embeddings(model: TinyPolicy, tokenizer: PreTrainedTokenizerFast) -> None:
    """Set the embeddings of numbers to random mixtures of Fourier features, with a norm that allows confident predictions.

    The output layer is tied to them: with the usual small norms, the probabilities of a thousand numbers stay uniform for long.
    """
    table = model.get_input_embeddings().weight
    ids = [tokenizer.convert_tokens_to_ids(str(number)) for number in range(NUMBERS)]
    features = fourier_features(torch.arange(NUMBERS, dtype=torch.float32) / (NUMBERS - 1))
    with torch.no_grad():
        mixed = features @ torch.randn(features.shape[1], table.shape[1])
        table[ids] = _NUMBER_NORM * mixed / mixed.norm(dim=1, keepdim=True)


def _load_change_encoder(model: TinyPolicy, checkpoint: Path) -> None:
    """Copy another policy's change encoder, up to the change map; the projection to tokens stays random."""
    path = checkpoint / "model.safetensors"
    if not path.is_file():
        raise OptionError(f"model.tiny.comparer={checkpoint}: no model.safetensors in it; expected a policy's folder")
    prefix = "model.visual."
    visual = {name.removeprefix(prefix): value for name, value in load_file(path).items() if name.startswith(prefix)}
    encoder = {name: value for name, value in visual.items() if name.partition(".")[0] in COMPARISON}
    try:
        missing = model.model.visual.load_state_dict(encoder, strict=False).missing_keys
    except RuntimeError as error:
        raise OptionError(f"model.tiny.comparer={checkpoint}: of another size ({str(error)[:200]})") from None
    if any(name.partition(".")[0] in COMPARISON for name in missing):
        raise OptionError(f"model.tiny.comparer={checkpoint}: no change encoder in it; expected a policy's folder")


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
