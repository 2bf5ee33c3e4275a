"""The common parts of chat models as locators: images of a pair in, boxes of the answer out.

Knows nothing of where the model runs; `local` and `server` do.
"""

from dataclasses import dataclass
from typing import Any

from differad.answers.formats import AnswerFormat
from differad.answers.parsing import Frame, parse_answer
from differad.core import Location


@dataclass(frozen=True)
class Reply:
    """A model's raw text for one pair, and the frame of its coordinates."""

    text: str
    frame: Frame


def to_location(reply: Reply, answer_format: AnswerFormat, model: str, seconds: float) -> Location:
    """The boxes of a reply, in pixels of the original target; `valid` is False if it cannot be parsed."""
    answer = parse_answer(reply.text, answer_format, reply.frame)
    return Location(
        boxes=answer.boxes,
        reasoning=answer.reasoning,
        answer=reply.text,
        valid=answer.status != "unreadable",
        model=model,
        seconds=seconds,
    )


def user_content(text: str, first: dict[str, Any], second: dict[str, Any]) -> list[dict[str, Any]]:
    """The content of the user's message: reference, target, question, in the order of the system text."""
    return [first, second, {"type": "text", "text": text}]
