"""`predictions.jsonl`: one prediction a line, appended at once, so that a killed run loses at most the current pair."""

import json
import re
from collections.abc import Container, Iterator
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from differad.core import Location, why_no_answer
from differad.data.keys import KeyTypoWarner
from differad.data.manifest import numbered_lines, parse_line
from differad.errors import DifferadError, ManifestError, shortened
from differad.files import AppendFile, atomic_write, make_folder

_Number = Annotated[float, Field(allow_inf_nan=False)]
# A line that names images and has none of these keys is from a manifest: its boxes are true boxes, not an answer.
_ANSWER_ONLY = frozenset(
    {"scores", "confidence", "threshold", "comparable", "answer", "reasoning", "valid", "error", "seconds"}
)
# How a line of predictions and one of an image log begin: the id, and the key after it.
_ID_PREFIX = b'{"id": "'
PREDICTION_AFTER_ID, IMAGES_AFTER_ID = b'", "anomalous": ', b'", "images": ['
_IN_QUOTES = re.compile(rb'(?:[^"\\]|\\.)*\\?')


class Prediction(BaseModel):
    """One line: the prediction of a pair, or the reason why there is none. Boxes are pixels of the target.

    `[]` means normal. A line without boxes, or with `"valid": false`, an error, or `"anomalous": null`, is no answer: its
    `anomalous` is None, whatever the boxes are.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    id: Annotated[str, Field(min_length=1)]
    boxes: list[tuple[_Number, _Number, _Number, _Number]] | None = None
    scores: list[_Number] | None = None
    confidence: _Number | None = None
    threshold: _Number | None = None
    comparable: bool = True
    answer: str = ""
    reasoning: str = ""
    valid: bool = True
    error: str | None = None
    model: str = ""
    seconds: _Number | None = None
    anomalous: bool | None = None

    @model_validator(mode="after")
    def _is_no_pair(self) -> Self:
        extra = self.model_extra or {}
        names_images = "target" in extra and not extra.keys().isdisjoint({"reference", "references"})
        if names_images and self.model_fields_set.isdisjoint(_ANSWER_ONLY):
            raise ValueError(
                f"pair {shortened(self.id)} of a manifest, with its images and no answer; expected a file of predictions, as "
                "locate --pairs or evaluate write it"
            )
        return self

    @model_validator(mode="after")
    def _decide(self) -> Self:
        """Set `anomalous` from the boxes; if the line has the key, its value must agree with them."""
        has_key, anomalous = "anomalous" in self.model_fields_set, None if self.boxes is None else bool(self.boxes)
        if not self.valid or self.error is not None or (has_key and self.anomalous is None):
            anomalous = None
        elif has_key and self.anomalous != anomalous:
            raise ValueError(
                f"anomalous {self.anomalous} beside {len(self.boxes or [])} boxes; expected boxes for an abnormal target, [] for "
                'a normal one, "anomalous": null for no answer'
            )
        self.anomalous = anomalous
        return self

    @property
    def is_valid(self) -> bool:
        """Whether there is an answer that could be read."""
        return self.anomalous is not None

    @property
    def why_no_answer(self) -> str | None:
        """The reason in one line if there is no answer, else None."""
        if self.is_valid:
            return None
        return self.error or why_no_answer(self.reasoning, self.answer)


def to_line(pair_id: str, outcome: Location | DifferadError) -> str:
    """The line of a pair's outcome; an error is stored with its reason."""
    record: dict[str, Any] = {"id": pair_id}
    if isinstance(outcome, DifferadError):
        record |= {"anomalous": None, "boxes": [], "valid": False, "error": str(outcome)}
    else:
        record |= outcome.to_dict()
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


class PredictionWriter:
    """Appends lines to a file and hands each to the operating system at once, whole or not at all. Raises WriteError."""

    def __init__(self, path: Path) -> None:
        make_folder(path.parent)
        self._file = AppendFile(path)

    def write(self, pair_id: str, outcome: Location | DifferadError) -> None:
        """Append one prediction. Raises WriteError."""
        self._file.append(to_line(pair_id, outcome))

    def sync(self) -> None:
        """Flush all predictions to the disk. Raises WriteError."""
        self._file.sync()

    def __enter__(self) -> "PredictionWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)


def read_predictions(path: Path) -> Iterator[Prediction]:
    """Stream a file of predictions. Raises ManifestError naming the line and the field."""
    slips = KeyTypoWarner(Prediction)
    for number, line in numbered_lines(path):
        prediction = parse_line(Prediction, line, f"{path}:{number}")
        slips.check(prediction, f"{path}:{number}")
        yield prediction


def finished_ids(path: Path, *, recognised: bool = False) -> set[str]:
    """The ids with answers in a file of predictions; nothing is written. Raises ManifestError on a line that is no prediction.

    A last line that a kill cut off is skipped if the lines before it are predictions, or if the file is known to hold
    predictions (`recognised`).
    """
    return {prediction.id for prediction, _ in _finished(path, recognised)}


def keep_finished(path: Path, *, recognised: bool = False, without: Container[str] = ()) -> set[str]:
    """Prepare a file of predictions to be continued; return the finished ids.

    Removes a last line that a kill cut off, failures and the ids `without`: a second run tries those again. The file is
    replaced atomically. Raises ManifestError on a line that is no prediction, WriteError.
    """
    if not path.exists():
        return set()
    done: set[str] = set()
    with atomic_write(path) as fresh, fresh.open("w", encoding="utf-8") as file:
        for prediction, line in _finished(path, recognised):
            if prediction.id not in done and prediction.id not in without:
                done.add(prediction.id)
                file.write(line)
    return done


def _finished(path: Path, recognised: bool) -> Iterator[tuple[Prediction, str]]:
    """The predictions that did not fail, each with its whole line."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            try:
                prediction = _parse(raw, f"{path}:{number}")
            except ManifestError:
                if not is_cut_off(raw, number) or not (recognised or number > 1):
                    raise
                return
            if prediction.error is None:
                yield prediction, raw.decode("utf-8-sig").rstrip("\r\n") + "\n"


def is_cut_off(raw: bytes, number: int, after_id: bytes = PREDICTION_AFTER_ID) -> bool:
    """Whether a last line is a prediction cut off by a kill or a power cut: its beginning, or zeros in place of its end.

    Without a line before it (`number` is 1), it must have `after_id` after its id, as lines written by this package have.
    """
    if raw.endswith(b"\n") and b"\0" not in raw:
        return False
    beginning, zeros, rest = raw.partition(b"\0")
    if rest.strip(b"\0\n") or not _may_be_ours(beginning, after_id if number == 1 else b""):
        return False
    try:
        json.loads(beginning)
    except (ValueError, RecursionError):
        return True
    return bool(zeros)


def _may_be_ours(beginning: bytes, after_id: bytes) -> bool:
    head, tail = beginning[: len(_ID_PREFIX)], beginning[len(_ID_PREFIX) :]
    quoted = _IN_QUOTES.match(tail)
    rest = tail[quoted.end() :] if quoted else b""
    return _ID_PREFIX.startswith(head) and rest[: len(after_id)] == after_id[: len(rest)]


class PredictionIndex:
    """Predictions by id, read from disk on request; holds one offset per id. Of several lines of an id the last one counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offsets: dict[str, int] = {}
        offset = 0
        slips = KeyTypoWarner(Prediction)
        try:
            with path.open("rb") as file:
                for number, raw in enumerate(file, start=1):
                    if raw.strip():
                        prediction = _parse(raw, f"{path}:{number}")
                        slips.check(prediction, f"{path}:{number}")
                        self._offsets[prediction.id] = offset
                    offset += len(raw)
        except FileNotFoundError:
            raise ManifestError(f"{path}: no such file; expected one prediction a line") from None
        except OSError as error:
            raise ManifestError(f"{path}: cannot be read ({error.strerror}); expected a file of JSON lines") from None

    def __len__(self) -> int:
        return len(self._offsets)

    def __iter__(self) -> Iterator[Prediction]:
        """The last prediction of each id, in the order in which the ids first occur."""
        with self._path.open("rb") as file:
            for offset in self._offsets.values():
                file.seek(offset)
                yield _parse(file.readline(), str(self._path))

    def get(self, pair_id: str) -> Prediction | None:
        """The prediction of a pair, None if there is none."""
        if pair_id not in self._offsets:
            return None
        with self._path.open("rb") as file:
            file.seek(self._offsets[pair_id])
            return _parse(file.readline(), str(self._path))


def _parse(raw: bytes, location: str) -> Prediction:
    try:
        line = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{location}: not UTF-8 text ({error.reason}); save it as UTF-8") from None
    return parse_line(Prediction, line, location)
