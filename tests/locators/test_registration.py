"""Known motions are recovered; another part is refused. The truth is the pose that the images were generated with."""

import cv2
import numpy as np
import pytest

from differad.locators.registration import register, warp
from differad.synthesis.camera import Nuisance
from differad.synthesis.pairs import make_pair

STEADY = {"gain": 0.0, "offset": 0.0, "gradient": 0.0, "elastic_warp": 0.0, "swell": 0.0}
MOTIONS = {
    "still": Nuisance(shift=0, angle=0, scale=0, **STEADY),
    "shift": Nuisance(shift=12, angle=0, scale=0, **STEADY),
    "turn": Nuisance(shift=4, angle=2, scale=0, **STEADY),
    "scale": Nuisance(shift=4, angle=0, scale=0.03, **STEADY),
    "all": Nuisance(shift=6, angle=1.5, scale=0.015, **STEADY),
    "light": Nuisance(shift=6, angle=1, scale=0, gain=0.4, offset=30, gradient=0.4, elastic_warp=0, swell=0),
}


def grey(image):
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def corner_error(matrix, pose, size):
    corners = np.array([[[0, 0], [size, 0], [size, size], [0, size], [size / 2, size / 2]]], np.float64)
    return np.abs(cv2.perspectiveTransform(corners, matrix) - cv2.perspectiveTransform(corners, pose)).max()


@pytest.mark.parametrize("category", ["board", "grain", "printed"])
@pytest.mark.parametrize("motion", MOTIONS)
def test_known_motion_is_recovered_within_a_pixel(motion, category):
    pair = make_pair(np.random.default_rng(7), category, nuisance=MOTIONS[motion])
    registration = register(grey(pair.reference), grey(pair.target))
    assert registration.accepted
    assert corner_error(registration.matrix, pair.pose, 640) < 1.0


def test_large_rotation_is_found_by_sift():
    pair = make_pair(np.random.default_rng(3), "board", nuisance=Nuisance(shift=0, angle=0, scale=0, **STEADY))
    rotation = np.vstack([cv2.getRotationMatrix2D((320, 320), 25, 0.9), [0, 0, 1]])
    target = cv2.warpPerspective(pair.target, rotation, (640, 640), borderMode=cv2.BORDER_REFLECT)
    registration = register(grey(pair.reference), grey(target))
    assert registration.accepted
    assert corner_error(registration.matrix, rotation @ pair.pose, 640) < 1.5


def test_perspective_is_a_homography():
    pair = make_pair(np.random.default_rng(4), "board", nuisance=Nuisance(shift=0, angle=0, scale=0, **STEADY))
    perspective = np.array([[1, 0, 0], [0, 1, 0], [6e-5, -4e-5, 1.0]])
    target = cv2.warpPerspective(pair.target, perspective, (640, 640), borderMode=cv2.BORDER_REFLECT)
    registration = register(grey(pair.reference), grey(target))
    assert registration.model == "homography"
    assert corner_error(registration.matrix, perspective @ pair.pose, 640) < 2.0


@pytest.mark.parametrize("size", [(320, 320), (960, 960), (500, 640)], ids=str)
def test_another_size_is_resized(size):
    pair = make_pair(np.random.default_rng(5), "board", nuisance=MOTIONS["still"])
    target = cv2.resize(pair.target, size[::-1], interpolation=cv2.INTER_AREA)
    registration = register(grey(pair.reference), grey(target))
    # The centre of pixel x is at x + 0.5.
    y, x = size[0] / 640, size[1] / 640
    expected = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])
    assert registration.accepted
    assert corner_error(registration.matrix, expected, 640) < 1.0


@pytest.mark.parametrize("category", ["board", "grain", "printed"])
def test_another_part_is_refused(category):
    first, second = (make_pair(np.random.default_rng(seed), category) for seed in (20, 21))
    registration = register(grey(first.reference), grey(second.target))
    assert not registration.accepted
    assert registration.quality < 0.4


@pytest.mark.parametrize(
    ("reference", "target", "accepted"),
    [((1, 1), (1, 1), True), ((3, 5), (3, 5), True), ((3, 5), (5, 3), False), ((64, 64), (64, 64), True)],
)
def test_nothing_to_register_by(reference, target, accepted):
    registration = register(np.full(reference, 90, np.uint8), np.full(target, 90, np.uint8))
    assert registration.accepted is accepted
    assert registration.model == "size"


def test_plain_noisy_surface_is_accepted_and_a_busy_target_is_not():
    rng = np.random.default_rng(0)
    plain = [np.clip(rng.normal(120, 5, (200, 200)), 0, 255).astype(np.uint8) for _ in range(2)]
    busy = grey(make_pair(rng, "grain", size=200).target)
    assert register(*plain).accepted
    assert not register(plain[0], busy).accepted


def test_warp_masks_what_is_not_covered():
    image = np.arange(100, dtype=np.uint8).reshape(10, 10)
    moved, covered = warp(image, np.array([[1.0, 0, 3], [0, 1, 0], [0, 0, 1]]), (10, 10))
    assert (moved[:, 3:] == image[:, :7]).all()
    assert covered[:, 3:].all()
    assert not covered[:, :3].any()


def test_the_answer_does_not_depend_on_the_memory_address():
    """A library may round by the alignment of what it writes; blocks of odd sizes in between shift every allocation."""
    random = np.random.default_rng(11)
    reference = cv2.resize(random.integers(0, 256, (40, 40), np.uint8), (640, 640), interpolation=cv2.INTER_CUBIC)
    target = np.roll(reference, (3, 5), (0, 1))
    registrations, held = [], []
    for size in random.integers(1, 100_000, 25):
        registrations.append(register(reference.copy(), target.copy()))
        held.append(np.empty(size, np.uint8))
    assert len({(each.matrix.tobytes(), each.quality) for each in registrations}) == 1


def test_a_smaller_reference_is_registered_where_sides_need_no_padding():
    # OpenCV windows in place what it correlates where sides are products of 2, 3 and 5, as 384 / 2 is. With the target's edges
    # alone faded towards the border this pair had a correlation of 0.59 and was refused; 0.65 otherwise, in OpenCV 4.9 as in 5.0.
    pair = make_pair(np.random.default_rng(23), "grain", anomalous=False, size=384)
    half = cv2.resize(pair.reference, (192, 192), interpolation=cv2.INTER_AREA)
    assert register(grey(half), grey(pair.target)).accepted


def test_the_pose_does_not_depend_on_opencv_s_random_numbers():
    pair = make_pair(np.random.default_rng(3), "board")
    rotation = np.vstack([cv2.getRotationMatrix2D((320, 320), 25, 0.9), [0, 0, 1]])
    target = cv2.warpPerspective(pair.target, rotation, (640, 640), borderMode=cv2.BORDER_REFLECT)
    poses = []
    for seed in (1, 2):
        cv2.setRNGSeed(seed)
        poses.append(register(grey(pair.reference), grey(target)).matrix)
    assert np.array_equal(*poses)
