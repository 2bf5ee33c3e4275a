"""`predictions.jsonl`: one prediction a line, appended as it is made, so that a killed run loses at most the pair in hand."""

import json
import re
from collections.abc import Container, Iterator
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from differad.core import Location, why_no_answer
from differad.data.keys import SlipFinder
from differad.data.manifest import numbered_lines, parse_line
from differad.errors import DifferadError, ManifestError, shortened
from differad.files import AppendFile, atomic_write, make_folder

_Number = Annotated[float, Field(allow_inf_nan=False)]
# A line with none of these that names the images is one of a manifest: its boxes are the truth, not an answer.
_ANSWER_ONLY = frozenset(
    {"scores", "confidence", "threshold", "comparable", "answer", "reasoning", "valid", "error", "seconds"}
)
# What a line of a prediction, or of an image log, begins with: id, and what follows it.
_ID_BEGINS = b'{"id": "'
PREDICTION_GOES_ON, IMAGES_GO_ON = b'", "anomalous": ', b'", "images": ['
_IN_QUOTES = re.compile(rb'(?:[^"\\]|\\.)*\\?')


class Prediction(BaseModel):
    """One line: what was predicted for a pair, or the reason why nothing was. Boxes are pixels of the target.

    `[]` says normal. A line without boxes, or with `"valid": false`, an error, or `"anomalous": null`, is no answer: `anomalous`
    is None then, whatever the boxes are.
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
        further = self.model_extra or {}
        names_images = "target" in further and not further.keys().isdisjoint({"reference", "references"})
        if names_images and self.model_fields_set.isdisjoint(_ANSWER_ONLY):
            raise ValueError(
                f"pair {shortened(self.id)} of a manifest, with its images and no answer; expected a file of predictions, as "
                "locate --pairs or evaluate write it"
            )
        return self

    @model_validator(mode="after")
    def _decide(self) -> Self:
        """Take `anomalous` from the boxes; where the line gives it, it must repeat what they say."""
        said, given = "anomalous" in self.model_fields_set, None if self.boxes is None else bool(self.boxes)
        if not self.valid or self.error is not None or (said and self.anomalous is None):
            given = None
        elif said and self.anomalous != given:
            raise ValueError(
                f"anomalous {self.anomalous} beside {len(self.boxes or [])} boxes; expected boxes for an abnormal target, [] for "
                'a normal one, "anomalous": null for no answer'
            )
        self.anomalous = given
        return self

    @property
    def is_valid(self) -> bool:
        """Whether an answer was given that could be read."""
        return self.anomalous is not None

    @property
    def why_no_answer(self) -> str | None:
        """The reason, in a line, where there is no answer; None where there is one."""
        if self.is_valid:
            return None
        return self.error or why_no_answer(self.reasoning, self.answer)


def to_line(pair_id: str, outcome: Location | DifferadError) -> str:
    """The line of a pair's outcome; an error is kept with its reason."""
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
        """Bring all predictions to the disk. Raises WriteError."""
        self._file.sync()

    def __enter__(self) -> "PredictionWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)


def read_predictions(path: Path) -> Iterator[Prediction]:
    """Stream a file of predictions. Raises ManifestError naming the line and the field."""
    slips = SlipFinder(Prediction)
    for number, line in numbered_lines(path):
        prediction = parse_line(Prediction, line, f"{path}:{number}")
        slips.check(prediction, f"{path}:{number}")
        yield prediction


def finished_ids(path: Path, *, begun: bool = False) -> set[str]:
    """The ids that a file of predictions has answers for; nothing is written. Raises ManifestError on a line that is none.

    A last line that a kill cut off is passed over where the lines before it are predictions, or where the file is known to be
    one (`begun`).
    """
    return {prediction.id for prediction, _ in _finished(path, begun)}


def keep_finished(path: Path, *, begun: bool = False, without: Container[str] = ()) -> set[str]:
    """Make a file of predictions ready to be continued; return the ids that are done.

    What a kill left of a last line is dropped, and so are failures and the ids `without`: a second run tries those again. The
    file is replaced in one step. Raises ManifestError on a line that is none of ours, WriteError.
    """
    if not path.exists():
        return set()
    done: set[str] = set()
    with atomic_write(path) as fresh, fresh.open("w", encoding="utf-8") as file:
        for prediction, line in _finished(path, begun):
            if prediction.id not in done and prediction.id not in without:
                done.add(prediction.id)
                file.write(line)
    return done


def _finished(path: Path, begun: bool) -> Iterator[tuple[Prediction, str]]:
    """The predictions that are no failures, each with its whole line."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            try:
                prediction = _parse(raw, f"{path}:{number}")
            except ManifestError:
                if not is_cut_off(raw, number) or not (begun or number > 1):
                    raise
                return
            if prediction.error is None:
                yield prediction, raw.decode("utf-8-sig").rstrip("\r\n") + "\n"


def is_cut_off(raw: bytes, number: int, goes_on: bytes = PREDICTION_GOES_ON) -> bool:
    """Whether a last line is what a kill or a power cut left of one of ours: its beginning, or zeros in place of its end.

    Where no line before tells whose file it is (`number` is 1), it must have `goes_on` behind its id, as ours has.
    """
    if raw.endswith(b"\n") and b"\0" not in raw:
        return False
    begun, zeros, rest = raw.partition(b"\0")
    if rest.strip(b"\0\n") or not _may_be_ours(begun, goes_on if number == 1 else b""):
        return False
    try:
        json.loads(begun)
    except (ValueError, RecursionError):
        return True
    return bool(zeros)


def _may_be_ours(begun: bytes, goes_on: bytes) -> bool:
    head, behind = begun[: len(_ID_BEGINS)], begun[len(_ID_BEGINS) :]
    quoted = _IN_QUOTES.match(behind)
    rest = behind[quoted.end() :] if quoted else b""
    return _ID_BEGINS.startswith(head) and rest[: len(goes_on)] == goes_on[: len(rest)]


class PredictionIndex:
    """Predictions by id, read from disk when asked for; holds one offset per id. Of several lines the last one counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offsets: dict[str, int] = {}
        offset = 0
        slips = SlipFinder(Prediction)
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
        """The last prediction of each id, in the order in which the ids first come."""
        with self._path.open("rb") as file:
            for offset in self._offsets.values():
                file.seek(offset)
                yield _parse(file.readline(), str(self._path))

    def get(self, pair_id: str) -> Prediction | None:
        """The prediction of a pair, None where there is none."""
        if pair_id not in self._offsets:
            return None
        with self._path.open("rb") as file:
            file.seek(self._offsets[pair_id])
            return _parse(file.readline(), str(self._path))


def _parse(raw: bytes, place: str) -> Prediction:
    try:
        line = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{place}: not UTF-8 text ({error.reason}); save it as UTF-8") from None
    return parse_line(Prediction, line, place)
