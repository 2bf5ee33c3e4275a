"""What every chat model shares as a locator: the pair's pictures going in, the answer's boxes coming out.

Knows nothing of where the model runs; `local` and `server` do.
"""

from dataclasses import dataclass
from typing import Any

from differad.answers.formats import AnswerFormat
from differad.answers.parsing import Frame, parse_answer
from differad.core import Location


@dataclass(frozen=True)
class Reply:
    """A model's raw text for one pair, and the frame that its numbers count in."""

    text: str
    frame: Frame


def to_location(reply: Reply, answer_format: AnswerFormat, model: str, seconds: float) -> Location:
    """The boxes, in pixels of the original target, that a reply names; `valid` is False where it cannot be read."""
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
    """The content of the user's message: reference, target, question, in the order that the system text names."""
    return [first, second, {"type": "text", "text": text}]
