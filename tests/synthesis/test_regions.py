"""Regions stay near their centre, and Perlin noise is smooth and vanishes on its lattice."""

import numpy as np
import pytest

from differad.synthesis.regions import REGIONS, perlin_noise


@pytest.mark.parametrize("name", REGIONS)
def test_a_region_covers_something_around_its_centre(name):
    for seed in range(20):
        coverage = REGIONS[name](np.random.default_rng(seed), 100, np.array([40.0, 60.0]), 15.0)
        assert coverage.shape == (100, 100)
        assert 0 <= coverage.min() <= coverage.max() <= 1
        ys, xs = np.nonzero(coverage > 0.5)
        assert len(xs) > 0
        assert np.hypot(xs - 40, ys - 60).max() < 2.2 * 15  # ragged rims and strokes exceed the radius a little


@pytest.mark.parametrize("name", REGIONS)
def test_a_region_at_the_border_is_cut_off(name):
    coverage = REGIONS[name](np.random.default_rng(1), 50, np.array([0.0, 49.0]), 20.0)
    assert coverage.shape == (50, 50)


def test_perlin_noise_is_zero_on_the_lattice_and_smooth():
    field = perlin_noise(np.random.default_rng(0), 64, cells=4)
    assert np.abs(field[::16, ::16]).max() < 1e-6  # 64 / 4: gradients are multiplied by a distance of 0
    assert np.abs(np.diff(field, axis=0)).max() < 0.2
    assert field.std() > 0.1
