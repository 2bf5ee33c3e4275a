"""How long prompts are, in tokens, and the context that vLLM needs for them: the longest prompt and its answer.

Without it vLLM reserves its cache for the checkpoint's longest context, which a share of a GPU does not hold. Knows nothing of
trainers.
"""

from typing import Any

from datasets import Dataset

from differad.errors import OptionError
from differad.training.data import prompt_messages

# Every image stands in the template as one token, in whose place come as many as it has.
_SLOTS = 2


def longest_prompt(dataset: Dataset, tokenizer: Any) -> int:
    """Tokens of the longest prompt of a data set of `build_dataset`, its images' included. No image is opened."""
    plain = dataset.with_format(None)
    texts = {question: _text_tokens(question, tokenizer) for question in plain.unique("question")}
    rows = zip(plain["question"], plain["image_tokens"], strict=True)
    return max(texts[question] + int(images) for question, images in rows)


def vllm_context(given: int | None, answer: int, dataset: Dataset, tokenizer: Any) -> int:
    """Tokens of the context that vLLM is to hold, `answer` of them for what it writes; `given` is the recipe's own.

    Raises OptionError where the recipe's is too short, or where it has none and the tokens of images are not known.
    """
    if any(tokens is None for tokens in dataset.with_format(None)["image_tokens"]):
        if given is None:
            raise OptionError(
                "grpo.vllm.max_model_length: how many tokens this model's images take is not known beforehand; give it"
            )
        return given
    needed = longest_prompt(dataset, tokenizer) + answer
    if given is not None and given < needed:
        raise OptionError(
            f"grpo.vllm.max_model_length={given}: the longest prompt and its answer take {needed} tokens; leave it out, or lower "
            "model.max_pixels or grpo.max_new_tokens"
        )
    return given or needed


def _text_tokens(question: str, tokenizer: Any) -> int:
    text = tokenizer.apply_chat_template(prompt_messages(question), tokenize=False, add_generation_prompt=True)
    return len(tokenizer(text, add_special_tokens=False)["input_ids"]) - _SLOTS
