"""The index compared with distances computed one by one."""

import numpy as np
import pytest

from differad.data.copies import FileComparer
from differad.data.nearest import NearestIndex


def brute_force(vectors, query):
    """Numbers by distance, ties by number, by computing all distances."""
    return np.argsort(np.linalg.norm(vectors - query, axis=1), kind="stable").tolist()


def vectors_of(kind, count, size=24):
    rng = np.random.default_rng(count)
    vectors = rng.normal(size=(count, size)).astype(np.float32)
    if kind == "near":  # differences of the last bits, which the product of matrices rounds away
        vectors = (vectors[:1] + vectors * 1e-6).astype(np.float32)
    if kind == "far":
        vectors = (vectors + 1e4).astype(np.float32)
    if kind == "few":  # most are equal to others
        vectors = vectors[rng.integers(0, min(7, count), count)]
    if kind == "whole":  # many different ones at equal distances
        vectors = rng.integers(-1, 2, (count, size)).astype(np.float32)
    return vectors


def index_of(vectors, files=None):
    return NearestIndex(vectors, files or [None] * len(vectors), FileComparer())


@pytest.mark.parametrize("kind", ["random", "near", "far", "few", "whole"])
@pytest.mark.parametrize("count", [1, 2, 31, 33, 700])
def test_all_are_ranked_as_by_brute_force(kind, count):
    vectors = vectors_of(kind, count)
    queries = [*vectors[:20], *vectors_of("random", 5)]
    for query, ranked in zip(queries, index_of(vectors).ranked(queries), strict=True):
        assert list(ranked) == brute_force(vectors, query)


def test_no_query_gives_no_rank():
    assert index_of(vectors_of("random", 3)).ranked([]) == []


def test_equal_vectors_are_measured_once(monkeypatch):
    """20,000 blank images have one vector, so the first is found without measuring the others."""
    measured = []
    norm = np.linalg.norm
    monkeypatch.setattr(np.linalg, "norm", lambda rows, **how: measured.append(len(rows)) or norm(rows, **how))
    vectors = np.zeros((20_000, 4), dtype=np.float32)
    (ranked,) = index_of(vectors).ranked([vectors[0]])
    assert [next(ranked), next(ranked)] == [0, 1]
    assert sum(measured) == 1


def test_copies_are_dropped_at_once(tmp_path):
    """Of equal vectors: copies of two files, every second one, and others that differ."""
    files = [tmp_path / f"{number}" for number in range(12)]
    for number, file in enumerate(files):
        file.write_text("ab"[number % 2] if number < 8 else f"{number}")
    index = index_of(np.ones((12, 3), dtype=np.float32), files)
    assert list(index.ranked([np.zeros(3, dtype=np.float32)])[0]) == list(range(12))
    (ranking,) = index.ranked([np.zeros(3, dtype=np.float32)])
    came = []
    for number in ranking:
        came.append(number)
        if number in (0, 9):  # the others of 9 are no copies
            ranking.drop_copies()
    assert came == [0, 1, 3, 5, 7, 8, 9, 10, 11]
