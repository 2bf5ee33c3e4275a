"""What every locator that asks a multimodal model shares: the messages, and reading the reply into a `Location`."""

from collections.abc import Sequence
from typing import Any

from differad.answers.formats import AnswerFormat
from differad.answers.parsing import Frame, parse_answer
from differad.answers.prompts import SYSTEM, prompt_text
from differad.core import Location


def chat_messages(answer_format: AnswerFormat, images: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """System text, then the two images and the question; `images` are content parts, reference first."""
    question = {"type": "text", "text": prompt_text(answer_format)}
    return [
        {"role": "system", "content": [{"type": "text", "text": SYSTEM}]},
        {"role": "user", "content": [*images, question]},
    ]


def to_location(text: str, answer_format: AnswerFormat, frame: Frame, model: str, seconds: float) -> Location:
    """A model's reply as a `Location`; one that cannot be read is not valid and has no boxes."""
    parsed = parse_answer(text, answer_format, frame)
    return Location(
        boxes=parsed.boxes,
        reasoning=parsed.reasoning,
        answer=text,
        valid=parsed.status != "unreadable",
        model=model,
        seconds=seconds,
    )
