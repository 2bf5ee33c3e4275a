"""Checksums of image contents that a device computes itself."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from differad.training.pictures import content_sums  # noqa: E402


@pytest.fixture
def patches():
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(3))


def plain_sums(values):
    """The same sums in Python's own integers."""
    bits = values.numpy().view(np.int32).tolist()
    random, sums = torch.Generator().manual_seed(0), []
    for _ in range(2):
        rows, columns = (
            torch.randint(-(1 << 63), (1 << 63) - 1, (n,), generator=random).tolist() for n in values.shape
        )
        whole = sum(
            bit * row * column
            for line, row in zip(bits, rows, strict=True)
            for bit, column in zip(line, columns, strict=True)
        )
        sums.append((whole + (1 << 63)) % (1 << 64) - (1 << 63))  # as a signed number of 64 bits
    return sums


def test_sums_are_those_of_python_modulo_two_to_the_64(patches):
    assert content_sums(patches) == plain_sums(patches)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_equal_contents_have_equal_sums_in_every_precision(patches, dtype):
    values = patches.to(dtype)
    assert content_sums(values) == content_sums(values.t().contiguous().t())  # however they are stored


def changed(values):
    for place in np.ndindex(*values.shape):
        other = values.clone()
        other[place] = torch.nextafter(other[place], torch.tensor(torch.inf))
        yield other
    yield values.flip(0)
    yield values.flip(1)
    yield -values


def test_the_smallest_change_and_every_other_order_have_other_sums(patches):
    known = content_sums(patches)
    others = [content_sums(other) for other in changed(patches)]
    assert len(others) == patches.numel() + 3
    assert known not in others
    assert all(both[part] != known[part] for both in others for part in range(2))
