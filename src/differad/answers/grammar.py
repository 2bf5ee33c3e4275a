"""The grammar of an answer, character by character: one box in the family's syntax with area inside the target, or the zero box.

It tells whether any beginning of a text can still become a valid answer. Knows nothing of tokens or models;
`locators.constrain` does.
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
    """The text after `<answer>` up to and including `</answer>`, for one target.

    Numbers have no leading zeros, or the fixed number of digits of the syntax; `limits` are the largest x and y.
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
        # Literal texts, and numbers by their index in x1, y1, x2, y2.
        self._pieces: list[str | int] = [syntax.opening]
        for literal, name, spec, _ in Formatter().parse(syntax.box):
            self._pieces.append(literal)
            if name in _NUMBERS:
                self._pieces.append(_NUMBERS.index(name))
                # A fraction has four digits with a point after the first.
                self._digits = 4 if self._fractions else int((spec or "").rstrip("d") or 0)
            elif name:
                self._pieces.append("anomaly")
        self._pieces.append(syntax.closing + CLOSING)

    @property
    def _figures(self) -> str:
        return "0123456789." if self._fractions else "0123456789"

    @property
    def letters(self) -> set[str]:
        """All characters of possible answers."""
        return set(self._figures + self._zero).union(*(piece for piece in self._pieces if isinstance(piece, str)))

    @property
    def longest(self) -> int:
        """Length of the longest answer in characters."""
        digits = max(self._digits + self._fractions, *(len(str(limit)) for limit in self.limits))
        return max(len(self._zero), sum(len(piece) if isinstance(piece, str) else digits for piece in self._pieces))

    def read(self, text: str) -> State:
        """Whether a text can still become an answer ("open"), is one ("done"), or neither ("dead")."""
        if self._zero.startswith(text):
            return "done" if text == self._zero else "open"
        return self._read_box(text)

    def _read_box(self, text: str) -> State:
        """As `read`, for a box with area."""
        position = 0
        box: dict[int, int] = {}
        for piece in self._pieces:
            rest = text[position:]
            if isinstance(piece, str):
                if not rest.startswith(piece):
                    return "open" if piece.startswith(rest) else "dead"
                position += len(piece)
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
            position += count
        return "done" if position == len(text) else "dead"

    def _without_point(self, number: str) -> str | None:
        """The digits of a number or of its beginning; None if a fraction's point is misplaced."""
        if not self._fractions:
            return number
        digits = number.replace(".", "")
        fraction = f"{digits[:1]}.{digits[1:]}" if digits else ""
        return digits if fraction.startswith(number) else None

    def _allowed(self, number: int, box: dict[int, int]) -> Range:
        """The minimum and maximum of a number (its index in x1, y1, x2, y2), given the earlier numbers of the box."""
        limit = self.limits[number % 2]
        return (0, limit - 1) if number < 2 else (box[number - 2] + 1, limit)

    def _is_number(self, digits: str, allowed: Range) -> bool:
        if not digits.isascii() or len(digits) != (self._digits or len(digits.lstrip("0")) or 1):
            return False
        return allowed[0] <= int(digits) <= allowed[1]

    def _may_grow(self, digits: str, allowed: Range) -> bool:
        """Whether digits are an allowed number or the beginning of one."""
        if self._digits:
            further = [self._digits - len(digits)]
        elif digits.startswith("0"):
            return digits == "0" and self._is_number("0", allowed)
        else:
            further = list(range(len(str(max(self.limits))) - len(digits) + 1))
        value = int(digits or 0)
        spans = [(value * 10**more, (value + 1) * 10**more - 1) for more in further if more >= 0]
        return any(allowed[0] <= last and first <= allowed[1] for first, last in spans)
