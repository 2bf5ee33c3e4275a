"""Prompt lengths in tokens, and the context length that vLLM needs: the longest prompt plus its answer.

Without it vLLM reserves a cache for the checkpoint's maximum context, which does not fit into a share of a GPU. Knows nothing
of trainers.
"""

from typing import Any

from datasets import Dataset

from differad.errors import OptionError
from differad.training.data import prompt_messages

# The template has one token per image, which is replaced by the image's tokens.
_SLOTS = 2


def longest_prompt(dataset: Dataset, tokenizer: Any) -> int:
    """Number of tokens of the longest prompt in a data set of `build_dataset`, image tokens included. Opens no image."""
    plain = dataset.with_format(None)
    texts = {question: _text_tokens(question, tokenizer) for question in plain.unique("question")}
    rows = zip(plain["question"], plain["image_tokens"], strict=True)
    return max(texts[question] + int(images) for question, images in rows)


def vllm_context(limit: int | None, answer: int, dataset: Dataset, tokenizer: Any) -> int:
    """vLLM's context length in tokens, with `answer` tokens for the completion; `limit` is the recipe's setting.

    Raises OptionError if the recipe's limit is too short, or if it has none and the number of image tokens is not known.
    """
    if any(tokens is None for tokens in dataset.with_format(None)["image_tokens"]):
        if limit is None:
            raise OptionError(
                "grpo.vllm.max_model_length: how many tokens this model's images take is not known beforehand; give it"
            )
        return limit
    needed = longest_prompt(dataset, tokenizer) + answer
    if limit is not None and limit < needed:
        raise OptionError(
            f"grpo.vllm.max_model_length={limit}: the longest prompt and its answer take {needed} tokens; leave it out, or lower "
            "model.max_pixels or grpo.max_new_tokens"
        )
    return limit or needed


def _text_tokens(question: str, tokenizer: Any) -> int:
    text = tokenizer.apply_chat_template(prompt_messages(question), tokenize=False, add_generation_prompt=True)
    return len(tokenizer(text, add_special_tokens=False)["input_ids"]) - _SLOTS
