"""A threshold from normal pairs alone that bounds the share of false alarms, whatever the distribution of confidences."""

import math
from collections.abc import Iterable, Iterator

from differad.core import Pair
from differad.errors import DifferadError, InputError
from differad.locators.base import Locator
from differad.options import check_option


def conformal_threshold(locator: Locator, normals: Iterable[Pair], false_alarms: float) -> float:
    """The confidence that at most a share `false_alarms` of normal pairs like `normals` will reach.

    Split conformal prediction: of n confidences the ceil((n + 1)(1 - share))-th smallest is the bound. It holds for a new pair
    from the same distribution, whatever that is. Pairs without a confidence (refused ones) are left out. Raises InputError for
    a pair that is labelled abnormal and if fewer than 1 / share - 1 pairs remain, and the error of a pair that cannot be read.
    """
    check_option("false_alarms", false_alarms, 0 < false_alarms < 1, "a share between 0 and 1")
    confidences = []
    refusals: list[str] = []
    for outcome in locator.locate_many(_only_normal(normals)):
        if isinstance(outcome, DifferadError):
            raise outcome
        if outcome.confidence is not None:
            confidences.append(outcome.confidence)
        elif outcome.why_no_answer is not None:
            refusals.append(outcome.why_no_answer)
    rank = math.ceil((len(confidences) + 1) * (1 - false_alarms))
    if rank > len(confidences):
        left_out = f" ({len(refusals)} more have no answer, the first: {refusals[0]})" if refusals else ""
        raise InputError(
            f"{len(confidences)} normal pairs with a confidence{left_out}: holding a false-alarm share of {false_alarms:g} "
            f"needs at least {math.ceil(1 / false_alarms) - 1}; give more or allow a larger share"
        )
    return min(1.0, math.nextafter(sorted(confidences)[rank - 1], 1.0))


def _only_normal(pairs: Iterable[Pair]) -> Iterator[Pair]:
    for pair in pairs:
        if pair.anomalous:
            raise InputError(
                f"{pair.label}: labelled abnormal, so it cannot set a threshold for false alarms; give normal pairs only"
            )
        yield pair
