"""Bounds of differences between floating point results: they follow from arithmetic, never from results of one machine.

**One sum.** A sum of n products, added in any order, with or without fused multiply-add, is off by at most n u sum|a b| with
u = eps / 2 (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1); independent roundings give sqrt(n) u sum|a b|
(Higham and Mary 2019). Terms of random sign have sum|a b| = sqrt(n) times the size of their sum, so that the error is n u times
that size. `rounding` allows n eps, which is twice as much. Results of a 16-bit product are summed in float32 and rounded once,
so for them n is 1.

**Two ways through a network.** How much a network amplifies its roundings is not known beforehand, and two right ways differ in
their roundings alone. So both are held against a run in float64 (transformers keeps its norms and rotary angles in float32
there too, but no sum of products). The error of way A may be a factor times that of way B plus one sum's rounding. In float32 the
factor is 4: a kernel that adds n terms one by one errs by sqrt(n) u, one that adds them in 16 lanes, a register of 512 bits, by
sqrt(n / 16) u. In 16 bits it is 2: lanes add in float32 and do not count; independent errors
add up as squares, so that 2 is for a way that rounds four times as often as the other.

Errors are compared row by row, a row being the last axis, as root mean squares: those of 40 random numbers and more are steady to
a tenth, where a largest error is not, and a fault in one row is not diluted by the others.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Gradients = Mapping[str, Any]
FACTOR = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0}
# Unit in the last place of 1; NumPy has no bfloat16, which keeps 8 bits of the mantissa.
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def rounding(terms: int, scale: float, dtype: str = "float32") -> float:
    """Error bound of a sum of `terms` products, for sums of size `scale`."""
    return terms * EPS[dtype] * scale


def distance_rounding(channels: int, distances: ArrayLike = 0.0) -> NDArray[np.float64]:
    """Error bound of distances d of unit vectors (channels,), from float32 similarities s as d = sqrt(2 - 2 s).

    The square is off by r = 2 `rounding` and |d - d'| = |d^2 - d'^2| / (d + d'): r / d, and sqrt(r) next to zero.
    """
    squared = 2 * rounding(channels, 1.0)
    return np.asarray(squared / np.maximum(np.asarray(distances, dtype=np.float64), squared**0.5))


def assert_rounded(found: Any, exact: Any, *, terms: int, scale: float | None = None) -> None:
    """`found` equals `exact` up to the rounding of one float32 sum; `scale`: by default the largest exact value."""
    found, exact = _doubled(found), _doubled(exact)
    assert found.shape == exact.shape
    allowed = rounding(terms, _largest(exact) if scale is None else scale)
    np.testing.assert_allclose(found, exact, rtol=0, atol=allowed)


def assert_as_near(
    found: Any, other: Any, exact: Any, *, terms: int, dtype: str = "float32", scale: float | None = None
) -> float:
    """Each row of `found` is as near to `exact` as that of `other`, both computed in `dtype`, in the sense defined above.

    `terms`: of the longest sum; `scale`: the root mean square of the row unless given. Returns the largest error allowed.
    """
    found, other, exact = (np.atleast_2d(_doubled(each)) for each in (found, other, exact))
    assert found.shape == other.shape == exact.shape
    assert np.isfinite(exact).all()
    sizes = _row_sizes(exact) if scale is None else np.full(exact.shape[:-1], scale)
    errors, others = _row_sizes(found - exact), _row_sizes(other - exact)
    allowed = FACTOR[dtype] * others + rounding(terms, 1.0, dtype) * sizes
    worst = np.unravel_index(np.argmax(errors - allowed), errors.shape)
    assert (errors <= allowed).all(), (
        f"row {tuple(map(int, worst))}: {errors[worst]:.3g} from float64, "
        f"{allowed[worst]:.3g} allowed, the other way {others[worst]:.3g}"
    )
    return float(allowed.max())


def assert_gradients_as_near(found: Gradients, other: Gradients, exact: Gradients, *, terms: int) -> None:
    """Every gradient of a model as its own row, in float32.

    One sum's rounding is taken of the root mean square of all gradients: some, as that of a bias of keys, which moves all scores
    of a softmax alike, are sums of such numbers that cancel.
    """
    assert found.keys() == other.keys() == exact.keys()
    assert found
    scale = float(_row_sizes(flat_gradients(exact)))
    for name, true in exact.items():
        try:
            rows = (_doubled(each).reshape(1, -1) for each in (found[name], other[name], true))
            assert_as_near(*rows, terms=terms, scale=scale)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


def flat_gradients(gradients: Gradients) -> NDArray[np.float64]:
    """All gradients of a model in a row."""
    return np.concatenate([_doubled(gradient).ravel() for gradient in gradients.values()])


def _row_sizes(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(np.mean(rows**2, axis=-1)))


def _largest(values: NDArray[np.float64]) -> float:
    return float(np.abs(values).max(initial=0.0))


def _doubled(values: ArrayLike | Any) -> NDArray[np.float64]:
    """An array or a tensor, of whatever precision, in float64."""
    if hasattr(values, "detach"):
        values = values.detach().double().numpy()
    return np.asarray(values, dtype=np.float64)
