"""Chooses a reference for each target: the data set's template, the most similar normal sample, or a random one.

A reference is a normal sample of the same category and view, never the target itself, a copy of its file, nor an image of the
same physical part. Normal samples of the train split are preferred; a view without any uses all its normal samples. Images are
decoded for "nearest" only. Files of the target's size are read too, since they may be copies of it.
"""

import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.data.copies import FileComparer
from differad.data.nearest import BLOCK, NearestIndex, Ranking
from differad.data.sources.sample import CropBox, Problems, Sample, refuse, try_or_report
from differad.data.thumbnails import Thumbnail, read_region, read_thumbnail
from differad.errors import OptionError
from differad.images import RGB, read_image
from differad.options import check_at_least, check_option, option

METHODS = ("nearest", "random", "given")
# Side of the grey grid. Its pattern counts most: distances 0 to 2; 1 elsewhere means black against white, or twice as wide.
_GRID = 16

Embed = Callable[[RGB], NDArray[np.floating]]
"""Maps an image (H, W, 3) to its feature vector (D,); distances are Euclidean."""

_Descriptor = NDArray[np.float32]
_SampleKey = tuple[Path, CropBox | None]
_Pools = dict[tuple[str, str], list[Sample]]


@dataclass(frozen=True)
class Pairing:
    """How references are chosen and which samples become targets. A template of the data set is always preferred."""

    method: str = option(
        "nearest", "nearest good part by appearance, random, or given (the data set's own template only)"
    )
    references: int = option(1, "references for each target, one pair each")
    normal_share: float | None = option(0.5, "share of normal pairs, as far as there are good parts; None takes all")
    count: int | None = option(None, "pairs of each category at most; None takes all")
    seed: int = option(0, "seed of random choices: references, good parts, pairs of a count")

    def __post_init__(self) -> None:
        check_option("method", self.method, self.method in METHODS, f"one of {', '.join(METHODS)}")
        check_at_least("references", self.references, 1)
        check_at_least("count", self.count, 1)
        share = self.normal_share
        check_option("normal_share", share, share is None or 0 <= share < 1, "a share from 0 to below 1, or None")


@dataclass(frozen=True, eq=False)
class Match:
    """A target and its reference; `rank` counts the references of one target from 0."""

    target: Sample
    reference: Sample
    rank: int = 0


@dataclass
class Descriptors:
    """Cached feature vectors of samples; by appearance (`describe`) unless `embed` is given."""

    embed: Embed | None = None
    _vectors: dict[_SampleKey, _Descriptor | None] = field(default_factory=dict)

    def of(self, sample: Sample, problems: Problems = refuse) -> _Descriptor | None:
        """The vector (D,) of a sample; None if its image cannot be read, which is reported once."""
        key = sample.image, sample.region
        if key not in self._vectors:
            self._vectors[key] = None
            thumbnail = try_or_report(problems, _read_thumbnail, sample, self.embed is not None)
            if thumbnail is not None:
                self._vectors[key] = (
                    describe(thumbnail) if self.embed is None else self._embedded(thumbnail.pixels, sample)
                )
        return self._vectors[key]

    def stack(self, samples: Sequence[Sample], problems: Problems = refuse) -> tuple[list[Sample], NDArray[np.float32]]:
        """The readable samples and their vectors (N, D); the cache then holds views of this array."""
        usable = [sample for sample in samples if self.of(sample, problems) is not None]
        vectors = [vector for sample in usable if (vector := self.of(sample)) is not None]
        stacked = np.stack(vectors) if vectors else np.empty((0, 0), dtype=np.float32)
        self._vectors.update(zip(((sample.image, sample.region) for sample in usable), stacked, strict=True))
        return usable, stacked

    def _embedded(self, pixels: RGB, sample: Sample) -> _Descriptor:
        """The vector of `embed`. Raises OptionError for an invalid one, an error of the caller rather than of the data set."""
        vector = np.asarray(self.embed(pixels) if self.embed else [], dtype=np.float32).ravel()
        if not (len(vector) and np.isfinite(vector).all()):
            raise OptionError(f"embed: {sample.image}: gave {vector[:4]}; expected a vector of finite numbers")
        return vector


def _read_thumbnail(sample: Sample, whole: bool) -> Thumbnail:
    """The sample's image, shrunk unless `whole`. Raises ImageError."""
    if not whole:
        return read_thumbnail(sample.image, sample.region)
    pixels = read_image(sample.image) if sample.region is None else read_region(sample.image, sample.region)
    return Thumbnail(pixels, pixels.shape[1] / pixels.shape[0])


def describe(thumbnail: Thumbnail) -> _Descriptor:
    """The appearance of an image as a vector: pattern (unit length, mean removed), mean colour, log2 of the aspect ratio."""
    grey = cv2.cvtColor(thumbnail.pixels, cv2.COLOR_RGB2GRAY)
    cells = cv2.resize(grey, (_GRID, _GRID), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    pattern = cells - cells.mean()
    pattern /= max(float(np.linalg.norm(pattern)), 1.0)
    colour = thumbnail.pixels.reshape(-1, 3).mean(axis=0) / 255
    return np.concatenate([pattern, colour, [np.log2(thumbnail.aspect)]]).astype(np.float32)


def match_samples(
    samples: Sequence[Sample],
    pairing: Pairing | None = None,
    problems: Problems = refuse,
    *,
    embed: Embed | None = None,
) -> Iterator[Match]:
    """Choose targets among the samples of each category and give each its references, in the order of the samples.

    A defective target without a possible reference goes to `problems`; a normal one makes no pair. Raises ManifestError
    through `problems`, OptionError.
    """
    pairing = pairing or Pairing()
    finder = _Finder(pairing, _pools(samples), Descriptors(embed), problems)
    chosen = choose_targets(samples, pairing)
    for start in range(0, len(chosen), BLOCK):
        targets = chosen[start : start + BLOCK]
        finder.rank(targets)
        for target in targets:
            references = finder.find(target)
            if references == [] and not target.is_normal:
                problems(_no_reference(target, pairing.method))
            yield from (Match(target, reference, rank) for rank, reference in enumerate(references or []))


def choose_targets(samples: Sequence[Sample], pairing: Pairing) -> list[Sample]:
    """The samples of each category that become targets: defective ones, and normal ones up to the wanted share.

    Normal samples outside the train split are preferred, since those in it serve as references. Keeps the samples' order.
    """
    categories: dict[str, list[int]] = defaultdict(list)
    for number, sample in enumerate(samples):
        categories[sample.category].append(number)
    chosen: list[int] = []
    for name, members in categories.items():
        rng = np.random.default_rng([pairing.seed, zlib.crc32(name.encode())])
        order = [members[i] for i in rng.permutation(len(members))]
        defective = [i for i in order if not samples[i].is_normal]
        normal = sorted((i for i in order if samples[i].is_normal), key=lambda i: samples[i].split == "train")
        defective_count, normal_count = _target_counts(pairing, len(defective), len(normal))
        chosen += defective[:defective_count] + normal[:normal_count]
    return [samples[i] for i in sorted(chosen)]


def _target_counts(pairing: Pairing, defective: int, normal: int) -> tuple[int, int]:
    """How many of the `defective` and `normal` samples become targets."""
    share = pairing.normal_share
    limit = None if pairing.count is None else max(1, pairing.count // pairing.references)
    if limit is not None:
        wanted_share = normal / max(1, normal + defective) if share is None else share
        defective = min(defective, limit - round(limit * wanted_share))
    if share is not None:
        # A data set of normal samples only still gives pairs; then only the count limits them.
        max_normal = round(defective * share / (1 - share)) if defective else (normal if share else 0)
        normal = min(normal, max_normal)
    return defective, normal if limit is None else min(normal, limit - defective)


def _pools(samples: Sequence[Sample]) -> _Pools:
    """Possible references by category and view."""
    pools: _Pools = defaultdict(list)
    for sample in samples:
        if sample.is_normal:
            pools[sample.category, sample.view].append(sample)
    return {key: [s for s in pool if s.split == "train"] or pool for key, pool in pools.items()}


class _Finder:
    """Finds the references of targets; the index of a pool is computed once."""

    def __init__(self, pairing: Pairing, pools: _Pools, descriptors: Descriptors, problems: Problems) -> None:
        self._pairing = pairing
        self._pools = pools
        self._descriptors = descriptors
        self._problems = problems
        self._comparer = FileComparer()
        self._indexed: dict[tuple[str, str], tuple[list[Sample], NearestIndex | None]] = {}
        self._ranked: dict[_SampleKey, tuple[list[Sample], Ranking | None]] = {}

    def rank(self, targets: Sequence[Sample]) -> None:
        """Rank the pools by distance to each of `targets`, which are passed to `find` next."""
        self._ranked = {}
        by_pool: dict[tuple[str, str], list[Sample]] = defaultdict(list)
        for target in targets:
            if target.template is None and self._pairing.method == "nearest" and self._pool(target):
                by_pool[target.category, target.view].append(target)
        for key, members in by_pool.items():
            described = [(target, self._descriptors.of(target, self._problems)) for target in members]
            readable = [(target, vector) for target, vector in described if vector is not None]
            if readable:
                usable, index = self._index(key)
                rankings = index.ranked([vector for _, vector in readable]) if index else [None] * len(readable)
                for (target, _), ranking in zip(readable, rankings, strict=True):
                    self._ranked[target.image, target.region] = usable, ranking

    def find(self, target: Sample) -> list[Sample] | None:
        """The references of `target`, best first; fewer than wanted if there are no more, possibly none.

        None if the target itself cannot be read, which was reported.
        """
        if target.template is not None:
            if self._is_copy(target.template, target):
                return []
            return [Sample(target.template, target.category, True, instance_id=target.instance_id, view=target.view)]
        pool = self._pool(target)
        if self._pairing.method == "given" or not pool:
            return []
        if self._pairing.method == "random":
            return self._random_references(target, pool)
        ranked = self._ranked.get((target.image, target.region))
        return None if ranked is None else self._nearest(target, *ranked)

    def _pool(self, target: Sample) -> list[Sample]:
        return self._pools.get((target.category, target.view), [])

    def _random_references(self, target: Sample, pool: list[Sample]) -> list[Sample]:
        # Seeded by the target's name, so that its references do not depend on other targets.
        name = f"{target.category}/{target.image.name}/{target.region}"
        rng = np.random.default_rng([self._pairing.seed, zlib.crc32(name.encode("utf-8", "surrogateescape"))])
        references: list[Sample] = []
        # A few random picks mostly suffice; a permutation of a large pool for each target would take quadratic time.
        for number in rng.integers(len(pool), size=4 * self._pairing.references):
            self._add_reference(references, target, pool[number])
        for number in rng.permutation(len(pool)) if len(references) < self._pairing.references else ():
            self._add_reference(references, target, pool[number])
        return references

    def _add_reference(self, references: list[Sample], target: Sample, candidate: Sample) -> None:
        is_new = not any(candidate is other for other in references)
        if len(references) < self._pairing.references and is_new and self._is_valid_reference(candidate, target):
            references.append(candidate)

    def _is_valid_reference(self, reference: Sample, target: Sample) -> bool:
        """Whether a normal sample shows another part than the target."""
        if (reference.image, reference.region) == (target.image, target.region):
            return False
        if target.instance_id and reference.instance_id == target.instance_id:
            return False
        # Tiles of one strip come from one file but are no copies of each other.
        return reference.image == target.image or not self._is_copy(reference.image, target)

    def _is_copy(self, image: Path, target: Sample) -> bool:
        """Whether a file is a copy of the target's, or may be because it cannot be read, which is reported."""
        return try_or_report(self._problems, self._comparer.same, image, target.image) is not False

    def _nearest(self, target: Sample, usable: list[Sample], ranking: Ranking | None) -> list[Sample]:
        references: list[Sample] = []
        for number in ranking or ():
            self._add_reference(references, target, usable[number])
            if len(references) == self._pairing.references:
                break
            if ranking is not None and self._is_whole_copy(usable[number], target):
                ranking.drop_copies()  # they are no valid references either
        return references

    def _is_whole_copy(self, candidate: Sample, target: Sample) -> bool:
        if candidate.region is not None or target.region is not None:
            return False
        return candidate.image == target.image or self._is_copy(candidate.image, target)

    def _index(self, key: tuple[str, str]) -> tuple[list[Sample], NearestIndex | None]:
        """The readable samples of a pool, and an index of them; None if there are none."""
        if key not in self._indexed:
            usable, vectors = self._descriptors.stack(self._pools[key], self._problems)
            self._indexed[key] = usable, self._make_index(usable, vectors)
        return self._indexed[key]

    def _make_index(self, usable: list[Sample], vectors: NDArray[np.float32]) -> NearestIndex | None:
        files = [None if sample.region is not None else sample.image for sample in usable]
        return NearestIndex(vectors, files, self._comparer) if usable else None


def _no_reference(target: Sample, method: str) -> str:
    if target.template is not None:
        return f"{target.template}: the same file as {target.image}, which is defective; put the template of a good part there"
    if method == "given":
        return f"{target.image}: the data set gives no template for it; choose --pairing nearest or random"
    view = f" and view {target.view!r}" if target.view else ""
    return (
        f"{target.image}: no good part of category {target.category!r}{view} to compare it with, other than itself, "
        "copies of it and its own part; add one or leave it out (--skip-bad)"
    )
