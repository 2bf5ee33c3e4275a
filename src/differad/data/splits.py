"""Splits of pairs without leaks: by category (cross-scenario) or by instance, and a check of splits made elsewhere.

A leak is the same image, a near-duplicate of it or the same physical part on both sides. References count as images
too: a model that has seen a reference in training knows that part. Where one good part serves many pairs they must
then stay together; `references=False` looks at targets only.
Knows a part from the key `product` of a pair, which `differad build` writes where the data set tells it.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from differad.core import Pair
from differad.data.hashing import MAX_RADIUS, Fingerprint, fingerprint_file, groups, near_duplicates
from differad.errors import ManifestError, OptionError
from differad.progress import track

TRAIN, TEST = "train", "test"
# A category's normal, its abnormal (place known or not) or its unlabelled pairs.
Stratum = tuple[str, bool | None]
_PRODUCT_KEYS = ("product", "reference_product")


@dataclass(frozen=True)
class Leak:
    """Something that stands on both sides: `kind` is "image", "near-duplicate" or "product".

    `train` and `test` are the images, or the product twice; the ids are of one pair on each side that shows it.
    """

    kind: str
    train: str
    test: str
    train_id: str
    test_id: str

    def to_dict(self) -> dict[str, str]:
        """The leak as JSON has it."""
        return asdict(self)

    def __str__(self) -> str:
        things = self.train if self.train == self.test else f"{self.train} and {self.test}"
        return f"{self.kind}: {things} (pairs {self.train_id!r} and {self.test_id!r})"


def split_by_category(pairs: Iterable[Pair], held_out: Collection[str]) -> dict[str, list[Pair]]:
    """Pairs of the categories `held_out` as "test", all others as "train". Raises OptionError for an unknown name.

    Says nothing of images that two categories share; `find_leaks` does.
    """
    sides: dict[str, list[Pair]] = {TRAIN: [], TEST: []}
    for pair in pairs:
        sides[TEST if pair.category in held_out else TRAIN].append(pair)
    known = {pair.category for side in sides.values() for pair in side}
    unknown = sorted(set(held_out) - known)
    if unknown:
        raise OptionError(f"category {unknown[0]!r}: no pair has it; expected some of {', '.join(sorted(known))}")
    for name, side in sides.items():
        if not side:
            raise OptionError(f"held out {', '.join(sorted(held_out)) or 'nothing'}: leaves no pair to {name}")
    return sides


def split_by_instance(
    pairs: Sequence[Pair],
    shares: Mapping[str, float],
    seed: int = 0,
    *,
    radius: int = MAX_RADIUS,
    references: bool = True,
    progress: bool = False,
) -> dict[str, list[Pair]]:
    """Split pairs into `shares` (name to share, summing to 1) so that no image, near-duplicate or part is torn apart.

    What belongs together goes as one, large groups first, to the side that lacks most of that category's normal,
    abnormal or unlabelled pairs; shares are met as far as groups allow. Pairs keep their order. Raises OptionError,
    ImageError, and ManifestError where one group holds so much that a side stays empty.
    """
    _check_shares(shares)
    group_of = instance_groups(pairs, radius=radius, references=references, progress=progress)
    members: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(group_of):
        members[group].append(index)
    strata = [(pair.category, pair.anomalous) for pair in pairs]
    total, placed = Counter(strata), {name: Counter[Stratum]() for name in shares}
    order = np.random.default_rng(seed).permutation(sorted(members)).tolist() if members else []
    side_of: dict[int, str] = {}
    for group in sorted(order, key=lambda group: -len(members[group])):
        own = Counter(strata[index] for index in members[group])
        best = max(shares, key=lambda name: _need(own, placed[name], total, shares[name]))
        placed[best].update(own)
        side_of |= dict.fromkeys(members[group], best)
    sides = {name: [pair for index, pair in enumerate(pairs) if side_of[index] == name] for name in shares}
    for name, side in sides.items():
        if not side:
            raise ManifestError(_empty_side(name, len(pairs), max(map(len, members.values()), default=0), references))
    return sides


def instance_groups(
    pairs: Sequence[Pair], *, radius: int = MAX_RADIUS, references: bool = True, progress: bool = False
) -> list[int]:
    """For each pair the number of the group that must stay together. Raises ManifestError, ImageError."""
    images = _images(pairs, references)
    names = list(images)
    links = list(_same(images.values())) + list(_same(_products(pairs, references).values()))
    prints = _fingerprints(names, progress)
    links += [(images[names[i]][0], images[names[j]][0]) for i, j in near_duplicates(prints, radius)]
    return groups(len(pairs), links)


def find_leaks(
    train: Sequence[Pair],
    test: Sequence[Pair],
    *,
    radius: int = MAX_RADIUS,
    references: bool = True,
    progress: bool = False,
) -> list[Leak]:
    """What stands on both sides: the same files first, then products, then near-duplicates. Raises ImageError.

    A file that is on both sides is not told again as its own near-duplicate.
    """
    left, right = _images(train, references), _images(test, references)

    def ids(a: int, b: int) -> tuple[str, str]:
        return train[a].id, test[b].id

    leaks = [Leak("image", name, name, *ids(left[name][0], right[name][0])) for name in left if name in right]
    own, other = _products(train, references), _products(test, references)
    leaks += [Leak("product", name, name, *ids(own[name][0], other[name][0])) for name in own if name in other]
    names = [*left, *(name for name in right if name not in left)]
    prints = _fingerprints(names, progress)
    for i, j in near_duplicates(prints, radius):
        for a, b in ((names[i], names[j]), (names[j], names[i])):
            if a in left and b in right and a not in right and b not in left:
                leaks.append(Leak("near-duplicate", a, b, *ids(left[a][0], right[b][0])))
    return leaks


def _check_shares(shares: Mapping[str, float]) -> None:
    if len(shares) < 2 or any(not share > 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        given = ", ".join(f"{name}={share:g}" for name, share in shares.items()) or "none"
        raise OptionError(f"shares {given}: expected two or more above 0 that sum to 1, as in train=0.8 test=0.2")


def _need(
    own: Counter[Stratum],
    placed: Counter[Stratum],
    total: Mapping[Stratum, int],
    share: float,
) -> float:
    """How much a side lacks of what a group holds, as a share of what the side is to get."""
    lacking = sum(count * (1 - placed[key] / (share * total[key])) for key, count in own.items())
    return lacking / sum(own.values())


def _empty_side(name: str, pairs: int, largest: int, references: bool) -> str:
    remedy = (
        "pairs that share a reference stay together, so build with more references or look at targets only "
        "(--shared-references)"
        if references
        else "add pairs, or give fewer sides"
    )
    return f"split: no pair is left for {name!r}, as {largest} of {pairs} pairs belong together; {remedy}"


def _images(pairs: Sequence[Pair], references: bool) -> dict[str, list[int]]:
    """Absolute path of each image to the indices of the pairs that show it. Raises ManifestError."""
    found: dict[str, list[int]] = defaultdict(list)
    here = Path.cwd()
    for index, pair in enumerate(pairs):
        for role in ("target", "reference") if references else ("target",):
            value = getattr(pair, role)
            if not isinstance(value, str | Path):
                raise ManifestError(f"pair {pair.id!r}: {role} is an image in memory; save it and give its path")
            found[os.path.normpath(here / value)].append(index)
    return found


def _products(pairs: Sequence[Pair], references: bool) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for index, pair in enumerate(pairs):
        for key in _PRODUCT_KEYS if references else _PRODUCT_KEYS[:1]:
            if pair.extra.get(key):
                found[str(pair.extra[key])].append(index)
    return found


def _same(groups_of_indices: Iterable[list[int]]) -> Iterator[tuple[int, int]]:
    return ((members[0], other) for members in groups_of_indices for other in members[1:])


def _fingerprints(names: Sequence[str], progress: bool) -> list[Fingerprint]:
    return [fingerprint_file(Path(name)) for name in track(names, "comparing images", len(names), shown=progress)]
