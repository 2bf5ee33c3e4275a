"""Splits of pairs without leaks: by category (cross-scenario) or by instance, and a check of existing splits.

A leak is the same image, a near-duplicate of it or the same physical part on both sides. References count too: a model that
was trained with a reference has seen that part. So pairs that share a reference must stay together, unless
`references=False`, which considers targets only.
Parts are identified by the key `product` of a pair, which `differad build` writes if the data set identifies parts.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from differad.core import Pair
from differad.data.hashing import MAX_HASH_RADIUS, Fingerprint, fingerprint_file, groups, near_duplicates
from differad.errors import ManifestError, OptionError
from differad.progress import track

TRAIN, TEST = "train", "test"
# Category and label: normal, abnormal (place known or not) or unlabelled.
Stratum = tuple[str, bool | None]
_INSTANCE_KEYS = ("product", "reference_product")


@dataclass(frozen=True)
class Leak:
    """An image or part that is on both sides: `kind` is "image", "near-duplicate" or "product" (the same part).

    `train` and `test` are the two images, or the part's id twice; the ids name one pair on each side.
    """

    kind: str
    train: str
    test: str
    train_id: str
    test_id: str

    def to_dict(self) -> dict[str, str]:
        """The leak as in the JSON output."""
        return asdict(self)

    def __str__(self) -> str:
        things = self.train if self.train == self.test else f"{self.train} and {self.test}"
        return f"{self.kind}: {things} (pairs {self.train_id!r} and {self.test_id!r})"


def split_by_category(pairs: Iterable[Pair], held_out: Collection[str]) -> dict[str, list[Pair]]:
    """Pairs of the categories `held_out` as "test", all others as "train". Raises OptionError for an unknown name.

    Does not check for images that two categories share; `find_leaks` does.
    """
    sides: dict[str, list[Pair]] = {TRAIN: [], TEST: []}
    for pair in pairs:
        sides[TEST if pair.category in held_out else TRAIN].append(pair)
    categories = {pair.category for side in sides.values() for pair in side}
    unknown = sorted(set(held_out) - categories)
    if unknown:
        raise OptionError(f"category {unknown[0]!r}: no pair has it; expected some of {', '.join(sorted(categories))}")
    for name, side in sides.items():
        if not side:
            raise OptionError(f"held out {', '.join(sorted(held_out)) or 'nothing'}: leaves no pair to {name}")
    return sides


def split_by_instance(
    pairs: Sequence[Pair],
    shares: Mapping[str, float],
    seed: int = 0,
    *,
    radius: int = MAX_HASH_RADIUS,
    references: bool = True,
    progress: bool = False,
) -> dict[str, list[Pair]]:
    """Split pairs into `shares` (name to share, summing to 1) so that no image, near-duplicate or part is on two sides.

    Groups of linked pairs are assigned whole, large ones first, to the side with the largest shortage in their strata
    (category and label); shares are met as far as groups allow. Pairs keep their order. Raises OptionError,
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
        group_strata = Counter(strata[index] for index in members[group])
        best = max(shares, key=lambda name: _shortage(group_strata, placed[name], total, shares[name]))
        placed[best].update(group_strata)
        side_of |= dict.fromkeys(members[group], best)
    sides = {name: [pair for index, pair in enumerate(pairs) if side_of[index] == name] for name in shares}
    for name, side in sides.items():
        if not side:
            raise ManifestError(_empty_side(name, len(pairs), max(map(len, members.values()), default=0), references))
    return sides


def instance_groups(
    pairs: Sequence[Pair], *, radius: int = MAX_HASH_RADIUS, references: bool = True, progress: bool = False
) -> list[int]:
    """For each pair the number of the group that must stay together. Raises ManifestError, ImageError."""
    by_image = _pairs_by_image(pairs, references)
    names = list(by_image)
    links = list(_links_within(by_image.values())) + list(_links_within(_pairs_by_instance(pairs, references).values()))
    fingerprints = _fingerprints(names, progress)
    links += [(by_image[names[i]][0], by_image[names[j]][0]) for i, j in near_duplicates(fingerprints, radius)]
    return groups(len(pairs), links)


def find_leaks(
    train: Sequence[Pair],
    test: Sequence[Pair],
    *,
    radius: int = MAX_HASH_RADIUS,
    references: bool = True,
    progress: bool = False,
) -> list[Leak]:
    """Everything that is on both sides: the same files first, then parts, then near-duplicates. Raises ImageError.

    A file that is on both sides is not reported again as a near-duplicate of itself.
    """
    train_images, test_images = _pairs_by_image(train, references), _pairs_by_image(test, references)

    def ids(a: int, b: int) -> tuple[str, str]:
        return train[a].id, test[b].id

    leaks = [
        Leak("image", name, name, *ids(train_images[name][0], test_images[name][0]))
        for name in train_images
        if name in test_images
    ]
    train_instances, test_instances = _pairs_by_instance(train, references), _pairs_by_instance(test, references)
    leaks += [
        Leak("product", name, name, *ids(train_instances[name][0], test_instances[name][0]))
        for name in train_instances
        if name in test_instances
    ]
    names = [*train_images, *(name for name in test_images if name not in train_images)]
    fingerprints = _fingerprints(names, progress)
    for i, j in near_duplicates(fingerprints, radius):
        for a, b in ((names[i], names[j]), (names[j], names[i])):
            if a in train_images and b in test_images and a not in test_images and b not in train_images:
                leaks.append(Leak("near-duplicate", a, b, *ids(train_images[a][0], test_images[b][0])))
    return leaks


def _check_shares(shares: Mapping[str, float]) -> None:
    if len(shares) < 2 or any(not share > 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        given = ", ".join(f"{name}={share:g}" for name, share in shares.items()) or "none"
        raise OptionError(f"shares {given}: expected two or more above 0 that sum to 1, as in train=0.8 test=0.2")


def _shortage(
    group_strata: Counter[Stratum],
    placed: Counter[Stratum],
    total: Mapping[Stratum, int],
    share: float,
) -> float:
    """How much a side lacks of a group's strata, relative to its targets, averaged over the group's pairs."""
    lacking = sum(count * (1 - placed[key] / (share * total[key])) for key, count in group_strata.items())
    return lacking / sum(group_strata.values())


def _empty_side(name: str, pairs: int, largest: int, references: bool) -> str:
    remedy = (
        "pairs that share a reference stay together, so build with more references or consider targets only "
        "(--shared-references)"
        if references
        else "add pairs, or give fewer sides"
    )
    return f"split: no pair is left for {name!r}, as {largest} of {pairs} pairs belong together; {remedy}"


def _pairs_by_image(pairs: Sequence[Pair], references: bool) -> dict[str, list[int]]:
    """Indices of the pairs that use each image, by its absolute path. Raises ManifestError."""
    by_path: dict[str, list[int]] = defaultdict(list)
    cwd = Path.cwd()
    for index, pair in enumerate(pairs):
        for role in ("target", "reference") if references else ("target",):
            value = getattr(pair, role)
            if not isinstance(value, str | Path):
                raise ManifestError(f"pair {pair.id!r}: {role} is an image in memory; save it and give its path")
            by_path[os.path.normpath(cwd / value)].append(index)
    return by_path


def _pairs_by_instance(pairs: Sequence[Pair], references: bool) -> dict[str, list[int]]:
    by_instance: dict[str, list[int]] = defaultdict(list)
    for index, pair in enumerate(pairs):
        for key in _INSTANCE_KEYS if references else _INSTANCE_KEYS[:1]:
            if pair.extra.get(key):
                by_instance[str(pair.extra[key])].append(index)
    return by_instance


def _links_within(groups_of_indices: Iterable[list[int]]) -> Iterator[tuple[int, int]]:
    return ((members[0], other) for members in groups_of_indices for other in members[1:])


def _fingerprints(names: Sequence[str], progress: bool) -> list[Fingerprint]:
    return [fingerprint_file(Path(name)) for name in track(names, "comparing images", len(names), shown=progress)]
