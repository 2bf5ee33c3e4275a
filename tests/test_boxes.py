"""Box geometry against arithmetic done by hand and against counting pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from differad import boxes
from differad.errors import InputError


def pixel_iou(a, b, side=32):
    """IoU of two whole-number boxes by painting them: shares no line with the implementation."""
    first, second = np.zeros((side, side), bool), np.zeros((side, side), bool)
    first[a[1] : a[3], a[0] : a[2]] = True
    second[b[1] : b[3], b[0] : b[2]] = True
    union = (first | second).sum()
    return (first & second).sum() / union if union else 0.0


whole_boxes = st.tuples(*[st.integers(0, 32)] * 4)


def test_iou_of_a_quarter_overlap():
    a, b = boxes.as_boxes([0, 0, 10, 10]), boxes.as_boxes([5, 5, 15, 15])
    assert boxes.iou(a, b)[0] == pytest.approx(25 / 175)  # 5 x 5 shared of 100 + 100 - 25


@settings(max_examples=300, deadline=None)
@given(a=whole_boxes, b=whole_boxes)
def test_iou_equals_counting_pixels(a, b):
    a, b = (boxes.order_corners(boxes.as_boxes(box)) for box in (a, b))
    painted = pixel_iou(a[0].astype(int), b[0].astype(int))
    assert boxes.iou(a, b)[0] == pytest.approx(painted)


def test_iou_broadcasts_to_the_matrix_of_all_pairs():
    a = boxes.as_boxes([[0, 0, 2, 2], [0, 0, 4, 4]])
    b = boxes.as_boxes([[0, 0, 2, 2], [2, 2, 4, 4], [9, 9, 10, 10]])
    expected = [[1, 0, 0], [4 / 16, 4 / 16, 0]]
    np.testing.assert_allclose(boxes.iou(a[:, None], b), expected)


def test_reversed_and_touching_boxes_have_no_area():
    values = boxes.as_boxes([[5, 5, 1, 1], [3, 0, 3, 9], [0, 0, 2, 3]])
    assert boxes.area(values).tolist() == [0, 0, 6]
    assert boxes.is_degenerate(values).tolist() == [True, True, False]
    assert boxes.iou(values[:1], values[:1]).tolist() == [0]


def test_centers_and_diagonals():
    values = boxes.as_boxes([[1, 2, 4, 6]])
    assert boxes.centers(values).tolist() == [[2.5, 4.0]]
    assert boxes.diagonals(values).tolist() == [5.0]  # a 3-4-5 triangle


def test_clip_scale_order_enclosing():
    values = boxes.as_boxes([[-5, 2, 30, 8], [12, 9, 3, 1]])
    assert boxes.clip(values, 20, 6).tolist() == [[0, 2, 20, 6], [12, 6, 3, 1]]
    assert boxes.scale(values, 2, 0.5).tolist() == [[-10, 1, 60, 4], [24, 4.5, 6, 0.5]]
    assert boxes.order_corners(values).tolist() == [[-5, 2, 30, 8], [3, 1, 12, 9]]
    assert boxes.enclosing(boxes.order_corners(values)).tolist() == [[-5, 1, 30, 9]]


@pytest.mark.parametrize("nothing", [None, [], (), np.empty((0, 4)), [[]]])
def test_no_box_is_always_the_same_empty_array(nothing):
    assert boxes.as_boxes(nothing).shape == (0, 4)
    assert boxes.enclosing(boxes.as_boxes(nothing)).shape == (0, 4)


def test_as_boxes_copies():
    values = np.zeros((1, 4))
    boxes.as_boxes(values)[0, 0] = 7
    assert values[0, 0] == 0


@pytest.mark.parametrize(
    "wrong", [[1, 2, 3], [[1, 2, 3, 4, 5]], [[[1, 2, 3, 4]]], [0, 0, np.nan, 1], [0, 0, np.inf, 1]]
)
def test_as_boxes_names_what_is_wrong(wrong):
    with pytest.raises(InputError, match="expected"):
        boxes.as_boxes(wrong)


def test_to_list_keeps_whole_numbers_whole():
    assert boxes.to_list(boxes.as_boxes([1, 2.5, 3.14159, 4])) == [[1, 2.5, 3.14, 4]]


def test_grown_boxes_stay_within_the_image():
    found = boxes.grow(np.array([[10.0, 20, 30, 40], [0, 0, 200, 100]]), 0.05, 200, 100)
    assert found.tolist() == [[0, 10, 40, 50], [0, 0, 200, 100]]
    assert boxes.grow(boxes.no_boxes(), 0.05, 200, 100).shape == (0, 4)
