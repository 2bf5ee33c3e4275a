"""Constrained decoding: the model can only write an answer that can be parsed; see `AnswerGrammar`.

The text before `<answer>` stays free. If the model would run out of tokens or end without an answer, `<answer>` is inserted.
"""

from typing import Any

import torch
from torch import Tensor

from differad.answers.grammar import CLOSING, OPENING, AnswerGrammar
from differad.errors import OptionError
from differad.locators.remembered import LRUCache

_THINK, _END_THINK = "<think>", "</think>"
# Number of beginnings of answers whose possible next tokens are cached.
_CACHED_BEGINNINGS = 4096


class TokenTexts:
    """The texts of a tokenizer's tokens, and the tokens that can be part of an answer."""

    def __init__(self, tokenizer: Any, size: int, characters: set[str]) -> None:
        self.tokenizer = tokenizer
        texts = tokenizer.batch_decode([[token] for token in range(min(size, len(tokenizer)))])
        self.texts: dict[int, str] = {token: text for token, text in enumerate(texts) if text}
        self.answer_tokens = [token for token, text in self.texts.items() if set(text) <= characters]
        # Tokens that may close `<answer>` and continue after it.
        self.closing_tokens = [token for token, text in self.texts.items() if ">" in text[:-1]]
        self._followers: LRUCache[tuple[tuple[int, int], str], list[int]] = LRUCache(_CACHED_BEGINNINGS)

    def text(self, ids: list[int]) -> str:
        """The text of tokens, including special ones."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def following(self, grammar: AnswerGrammar, begun: str) -> list[int]:
        """Tokens that may follow the beginning of an answer."""
        key = grammar.limits, begun
        return self._followers.recall(
            key, lambda: [token for token in self.answer_tokens if grammar.read(begun + self.texts[token]) != "dead"]
        )


class Constraint:
    """A logits processor for one batch; `grammars` has one for each row. Raises OptionError for too few tokens."""

    def __init__(
        self, token_texts: TokenTexts, grammars: list[AnswerGrammar], ends: list[int], max_new_tokens: int
    ) -> None:
        self._token_texts, self._grammars, self._ends = token_texts, grammars, ends
        self._queues: list[list[int]] = [[] for _ in grammars]
        self._start: int | None = None
        self._max_new_tokens = max_new_tokens
        # Each character may take one token; one more ends the text.
        self._reserve = [len(token_texts.encode(_END_THINK + OPENING)) + grammar.longest + 1 for grammar in grammars]
        if max(self._reserve) > max_new_tokens:
            raise OptionError(
                f"option max_new_tokens={max_new_tokens}: expected at least {max(self._reserve)} with constrain=true, the "
                "longest answer"
            )

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, V) with minus infinity for tokens that may not follow."""
        if self._start is None:
            self._start = ids.shape[1]
        scores = scores.clone()
        for row, tokens in enumerate(ids[:, self._start :].tolist()):
            allowed, banned = self._next(row, tokens, scores[row])
            if allowed is not None:
                allowed_scores = scores[row, allowed]
                # If all of them are at minus infinity already, any of them will do.
                allowed_scores = torch.where(
                    torch.isfinite(allowed_scores).any(), allowed_scores, torch.zeros_like(allowed_scores)
                )
                scores[row] = -torch.inf
                scores[row, allowed] = allowed_scores
            elif banned:
                scores[row, banned] = -torch.inf
        return scores

    def _next(self, row: int, tokens: list[int], scores: Tensor) -> tuple[list[int] | None, list[int]]:
        """The tokens of which one must follow (None: any), and the tokens that may not follow."""
        if self._queues[row]:
            return [self._queues[row].pop(0)], []
        if any(token in self._ends for token in tokens):
            return None, []
        text = self._token_texts.text(tokens)
        end_of_thought = text.find(_END_THINK)
        begin = text.find(OPENING, max(end_of_thought, 0))
        if begin >= 0:
            begun = text[begin + len(OPENING) :]
            if begun.endswith(CLOSING):
                return self._ends, []
            return self._token_texts.following(self._grammars[row], begun), []
        if len(tokens) + self._reserve[row] >= self._max_new_tokens or int(scores.argmax()) in self._ends:
            thought_is_open = _THINK in text and end_of_thought < 0
            first, *self._queues[row] = self._token_texts.encode((_END_THINK if thought_is_open else "") + OPENING)
            return [first], []
        return None, self._banned_openings(row, text[-len(OPENING) :])

    def _banned_openings(self, row: int, tail: str) -> list[int]:
        """Tokens that would open the answer and continue with an invalid beginning."""
        if not any(tail.endswith(OPENING[:length]) for length in range(1, len(OPENING))):
            return []
        banned = []
        for token in self._token_texts.closing_tokens:
            _, opened, begun = (tail + self._token_texts.texts[token]).partition(OPENING)
            if opened and self._grammars[row].read(begun) == "dead":
                banned.append(token)
        return banned
