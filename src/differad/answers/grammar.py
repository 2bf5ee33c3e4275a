"""What an answer may say, letter by letter: one box of the family's syntax with area inside the target, or the zero box.

Says of any beginning of an answer whether it can still become one. Knows nothing of tokens or models; `locators.constrain` does.
"""

from string import Formatter
from typing import Literal

from differad.answers.formats import AnswerFormat
from differad.answers.parsing import Frame

State = Literal["dead", "open", "done"]
OPENING, CLOSING = "<answer>", "</answer>"
_NUMBERS = ("x1", "y1", "x2", "y2")
Range = tuple[int, int]


class AnswerGrammar:
    """The text between `<answer>` and, included, `</answer>` for one target.

    Numbers are written without leading zeros, or with as many digits as the syntax fixes; `limits` are the largest x and y.
    """

    def __init__(self, answer_format: AnswerFormat, frame: Frame) -> None:
        if answer_format.space == "thousandths":
            self.limits = (answer_format.largest, answer_format.largest)
        else:
            per_x, per_y = frame.pixels_per_unit(answer_format.space)
            self.limits = (round(frame.width / per_x), round(frame.height / per_y))
        syntax, self._digits = answer_format.syntax, 0
        # Literal texts, and numbers by their place.
        self._pieces: list[str | int] = [syntax.opening]
        for literal, name, spec, _ in Formatter().parse(syntax.box):
            self._pieces.append(literal)
            if name in _NUMBERS:
                self._pieces.append(_NUMBERS.index(name))
                self._digits = int((spec or "").rstrip("d") or 0)
            elif name:
                self._pieces.append("anomaly")
        self._pieces.append(syntax.closing + CLOSING)

    @property
    def letters(self) -> set[str]:
        """All that an answer is written with."""
        return set("0123456789").union(*(piece for piece in self._pieces if isinstance(piece, str)))

    @property
    def longest(self) -> int:
        """Letters of the longest answer."""
        digits = max(self._digits, *(len(str(limit)) for limit in self.limits))
        return sum(len(piece) if isinstance(piece, str) else digits for piece in self._pieces)

    def read(self, text: str) -> State:
        """Whether a text can still become an answer ("open"), is one ("done"), or neither ("dead")."""
        place = 0
        box: list[int] = []
        for piece in self._pieces:
            rest = text[place:]
            if isinstance(piece, str):
                if not rest.startswith(piece):
                    return "open" if piece.startswith(rest) else "dead"
                place += len(piece)
                continue
            count = len(rest) - len(rest.lstrip("0123456789"))
            allowed = self._allowed(piece, box)
            if count == len(rest):
                return "open" if self._may_grow(rest, allowed) else "dead"
            if not self._is_number(rest[:count], allowed):
                return "dead"
            box.append(int(rest[:count]))
            place += count
        return "done" if place == len(text) else "dead"

    def _allowed(self, number: int, box: list[int]) -> list[Range]:
        """Ranges, ends included, of a number after those before it."""
        limit = self.limits[number % 2]
        if number < 2:
            return [(0, limit - 1)]
        if box[:2] != [0, 0]:
            return [(box[number - 2] + 1, limit)]
        if number == 2:
            return [(0, limit)]
        return [(0, 0)] if box[2] == 0 else [(1, limit)]

    def _is_number(self, digits: str, allowed: list[Range]) -> bool:
        if not digits.isascii() or len(digits) != (self._digits or len(digits.lstrip("0")) or 1):
            return False
        return any(low <= int(digits) <= high for low, high in allowed)

    def _may_grow(self, digits: str, allowed: list[Range]) -> bool:
        """Whether digits are a number, or the beginning of one."""
        if self._digits:
            further = [self._digits - len(digits)]
        elif digits.startswith("0"):
            return digits == "0" and self._is_number("0", allowed)
        else:
            further = list(range(len(str(max(self.limits))) - len(digits) + 1))
        value = int(digits or 0)
        spans = [(value * 10**more, (value + 1) * 10**more - 1) for more in further if more >= 0]
        return any(low <= last and first <= high for first, last in spans for low, high in allowed)
