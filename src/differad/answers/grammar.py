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
        self._zero = answer_format.zero_box + CLOSING
        syntax, self._digits = answer_format.syntax, 0
        self._fractions = syntax.fractions
        # Literal texts, and numbers by their place.
        self._pieces: list[str | int] = [syntax.opening]
        for literal, name, spec, _ in Formatter().parse(syntax.box):
            self._pieces.append(literal)
            if name in _NUMBERS:
                self._pieces.append(_NUMBERS.index(name))
                # A fraction is four digits with a point behind the first.
                self._digits = 4 if self._fractions else int((spec or "").rstrip("d") or 0)
            elif name:
                self._pieces.append("anomaly")
        self._pieces.append(syntax.closing + CLOSING)

    @property
    def _figures(self) -> str:
        return "0123456789." if self._fractions else "0123456789"

    @property
    def letters(self) -> set[str]:
        """All that an answer is written with."""
        return set(self._figures + self._zero).union(*(piece for piece in self._pieces if isinstance(piece, str)))

    @property
    def longest(self) -> int:
        """Letters of the longest answer."""
        digits = max(self._digits + self._fractions, *(len(str(limit)) for limit in self.limits))
        return max(len(self._zero), sum(len(piece) if isinstance(piece, str) else digits for piece in self._pieces))

    def read(self, text: str) -> State:
        """Whether a text can still become an answer ("open"), is one ("done"), or neither ("dead")."""
        if self._zero.startswith(text):
            return "done" if text == self._zero else "open"
        return self._read_box(text)

    def _read_box(self, text: str) -> State:
        """The same of a box with area."""
        place = 0
        box: dict[int, int] = {}
        for piece in self._pieces:
            rest = text[place:]
            if isinstance(piece, str):
                if not rest.startswith(piece):
                    return "open" if piece.startswith(rest) else "dead"
                place += len(piece)
                continue
            count = len(rest) - len(rest.lstrip(self._figures))
            allowed = self._allowed(piece, box)
            digits = self._without_point(rest[:count])
            if digits is None:
                return "dead"
            if count == len(rest):
                return "open" if self._may_grow(digits, allowed) else "dead"
            if not self._is_number(digits, allowed):
                return "dead"
            box[piece] = int(digits)
            place += count
        return "done" if place == len(text) else "dead"

    def _without_point(self, written: str) -> str | None:
        """The digits of a number, or of its beginning; None where a fraction has its point elsewhere."""
        if not self._fractions:
            return written
        digits = written.replace(".", "")
        whole = f"{digits[:1]}.{digits[1:]}" if digits else ""
        return digits if whole.startswith(written) else None

    def _allowed(self, number: int, box: dict[int, int]) -> Range:
        """The least and the largest that a number may be after those before it, by their places in x1, y1, x2, y2."""
        limit = self.limits[number % 2]
        return (0, limit - 1) if number < 2 else (box[number - 2] + 1, limit)

    def _is_number(self, digits: str, allowed: Range) -> bool:
        if not digits.isascii() or len(digits) != (self._digits or len(digits.lstrip("0")) or 1):
            return False
        return allowed[0] <= int(digits) <= allowed[1]

    def _may_grow(self, digits: str, allowed: Range) -> bool:
        """Whether digits are a number, or the beginning of one."""
        if self._digits:
            further = [self._digits - len(digits)]
        elif digits.startswith("0"):
            return digits == "0" and self._is_number("0", allowed)
        else:
            further = list(range(len(str(max(self.limits))) - len(digits) + 1))
        value = int(digits or 0)
        spans = [(value * 10**more, (value + 1) * 10**more - 1) for more in further if more >= 0]
        return any(allowed[0] <= last and first <= allowed[1] for first, last in spans)
