"""Decoding that leaves a model nothing but an answer that can be read: see `AnswerGrammar`.

What is thought before `<answer>` stays free. An answer that is not begun in time, or that the model would end without, is
begun for it.
"""

from typing import Any

import torch
from torch import Tensor

from differad.answers.grammar import CLOSING, OPENING, AnswerGrammar
from differad.errors import OptionError
from differad.locators.remembered import Remembered

_THINK, _THOUGHT = "<think>", "</think>"
# Beginnings of answers whose followers are remembered.
_KNOWN = 4096


class Spelling:
    """How a tokenizer spells: the texts of its tokens, and those that answers can be written with."""

    def __init__(self, tokenizer: Any, size: int, letters: set[str]) -> None:
        self.tokenizer = tokenizer
        texts = tokenizer.batch_decode([[token] for token in range(min(size, len(tokenizer)))])
        self.texts: dict[int, str] = {token: text for token, text in enumerate(texts) if text}
        self.written = [token for token, text in self.texts.items() if set(text) <= letters]
        # Tokens that could close `<answer>` and go on behind it.
        self.straddling = [token for token, text in self.texts.items() if ">" in text[:-1]]
        self._known: Remembered[tuple[tuple[int, int], str], list[int]] = Remembered(_KNOWN)

    def text(self, ids: list[int]) -> str:
        """The text of tokens, special ones too."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def spell(self, text: str) -> list[int]:
        """The tokens of a text."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def following(self, grammar: AnswerGrammar, begun: str) -> list[int]:
        """Tokens that may follow the beginning of an answer."""
        key = grammar.limits, begun
        return self._known.recall(
            key, lambda: [token for token in self.written if grammar.read(begun + self.texts[token]) != "dead"]
        )


class Constraint:
    """A logits processor for one batch; `grammars` has one for each row. Raises OptionError for too few tokens."""

    def __init__(self, spelling: Spelling, grammars: list[AnswerGrammar], ends: list[int], max_new_tokens: int) -> None:
        self._spelling, self._grammars, self._ends = spelling, grammars, ends
        self._queues: list[list[int]] = [[] for _ in grammars]
        self._start: int | None = None
        self._most = max_new_tokens
        # A letter may take a token of its own; one more ends the text.
        self._reserve = [len(spelling.spell(_THOUGHT + OPENING)) + grammar.longest + 1 for grammar in grammars]
        if max(self._reserve) > max_new_tokens:
            raise OptionError(
                f"option max_new_tokens={max_new_tokens}: expected at least {max(self._reserve)} with constrain=true, the "
                "longest answer"
            )

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, V) with what may not follow at minus infinity."""
        if self._start is None:
            self._start = ids.shape[1]
        scores = scores.clone()
        for row, tokens in enumerate(ids[:, self._start :].tolist()):
            allowed, banned = self._next(row, tokens, scores[row])
            if allowed is not None:
                kept = scores[row, allowed]
                # A row may come with all of these at minus infinity; any of them is then as good.
                kept = torch.where(torch.isfinite(kept).any(), kept, torch.zeros_like(kept))
                scores[row] = -torch.inf
                scores[row, allowed] = kept
            elif banned:
                scores[row, banned] = -torch.inf
        return scores

    def _next(self, row: int, tokens: list[int], scores: Tensor) -> tuple[list[int] | None, list[int]]:
        """Tokens of which one must follow (None: any), and tokens that may not."""
        if self._queues[row]:
            return [self._queues[row].pop(0)], []
        if any(token in self._ends for token in tokens):
            return None, []
        text = self._spelling.text(tokens)
        thought = text.find(_THOUGHT)
        begin = text.find(OPENING, max(thought, 0))
        if begin >= 0:
            begun = text[begin + len(OPENING) :]
            if begun.endswith(CLOSING):
                return self._ends, []
            return self._spelling.following(self._grammars[row], begun), []
        if len(tokens) + self._reserve[row] >= self._most or int(scores.argmax()) in self._ends:
            open_thought = _THINK in text and thought < 0
            first, *self._queues[row] = self._spelling.spell((_THOUGHT if open_thought else "") + OPENING)
            return [first], []
        return None, self._astray(row, text[-len(OPENING) :])

    def _astray(self, row: int, tail: str) -> list[int]:
        """Tokens that would open the answer and go on with what none may begin with."""
        if not any(tail.endswith(OPENING[:length]) for length in range(1, len(OPENING))):
            return []
        wrong = []
        for token in self._spelling.straddling:
            _, opened, begun = (tail + self._spelling.texts[token]).partition(OPENING)
            if opened and self._grammars[row].read(begun) == "dead":
                wrong.append(token)
        return wrong
