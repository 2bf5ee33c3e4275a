"""Boxes drawn on images."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from differad.boxes import as_boxes
from differad.drawing import PREDICTED_COLOR, TRUTH_COLOR, draw_boxes, draw_no_answer, jpeg_data_url, thumbnail

BOX = as_boxes([[100, 60, 180, 140]])


def painted(image, color):
    ys, xs = np.nonzero((image == color).all(axis=2))
    return (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else None


@pytest.mark.parametrize("value", [0, 128, 255])
def test_boxes_are_drawn_where_they_are(value):
    image = np.full((300, 400, 3), value, np.uint8)
    drawn = draw_boxes(image, truth=BOX, predicted=as_boxes([[200, 200, 390, 290]]))
    assert image.min() == image.max() == value  # the image itself is not changed
    for color, box in ((TRUTH_COLOR, (100, 60, 180, 140)), (PREDICTED_COLOR, (200, 200, 390, 290))):
        assert np.abs(np.subtract(painted(drawn, color), box)).max() <= 2  # the line's width
    assert (drawn[75:125, 115:165] == value).all()  # the inside stays visible


def test_nothing_to_draw_changes_nothing():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    assert np.array_equal(draw_boxes(image), image)
    assert np.array_equal(draw_boxes(image, as_boxes([]), as_boxes([])), image)


def test_scores_are_written_and_boxes_may_reach_the_border():
    image = np.zeros((200, 200, 3), np.uint8)
    without = draw_boxes(image, predicted=as_boxes([[0, 0, 200, 200]]))
    with_score = draw_boxes(image, predicted=as_boxes([[0, 0, 200, 200]]), scores=[0.87])
    assert (with_score != without).any()


def test_a_thumbnail_scales_image_and_boxes():
    small = thumbnail(np.zeros((600, 1200, 3), np.uint8), 300, truth=as_boxes([[400, 200, 800, 400]]))
    assert small.shape == (150, 300, 3)
    assert np.abs(np.subtract(painted(small, TRUTH_COLOR), (100, 50, 200, 100))).max() <= 2
    assert thumbnail(np.zeros((10, 20, 3), np.uint8), 300).shape == (10, 20, 3)  # never enlarged


def test_a_data_url_holds_the_image():
    kind, _, data = jpeg_data_url(np.full((8, 9, 3), 200, np.uint8)).partition(",")
    assert kind == "data:image/jpeg;base64"
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert image.shape == (8, 9, 3)
    assert np.abs(image.astype(int) - 200).max() <= 2


def test_no_answer_does_not_look_like_a_normal_part():
    image = np.full((200, 300, 3), 90, np.uint8)
    crossed = draw_no_answer(image)
    assert crossed.shape == image.shape
    assert (image == 90).all()  # a copy is drawn on
    assert tuple(crossed[100, 150]) == PREDICTED_COLOR  # where the diagonals meet
