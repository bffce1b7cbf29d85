"""Crops and resizing: the published evaluation's numbers, a loop in Python, Pillow, and the ranges promised."""

from __future__ import annotations

import numpy as np
import pytest
from reference import FOLDER

from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf
from simclr_tf.data.augment.augment import Augment
from simclr_tf.data.crop import central_crop_box, crop_draws, evaluation_crop_box, random_crop_box, resize


def seeds(count: int, start: int = 0) -> tf.Tensor:
    return tf.constant(np.random.default_rng(start).integers(-(2**31), 2**31, (count, 2)), tf.int32)


def slow_box(numbers, height, width):
    """The paper's rule as a loop, for images no longer than 4:3: the first attempt that fits."""
    for attempt in range(10):
        area = np.float32(height * width) * np.float32(0.08 + np.float32(0.92) * numbers[attempt])
        ratio = np.float32(3 / 4 + np.float32(4 / 3 - 3 / 4) * numbers[10 + attempt])
        h, w = int(np.round(np.sqrt(area / ratio))), int(np.round(np.sqrt(area * ratio)))
        if 1 <= h <= height and 1 <= w <= width:
            return int(numbers[20] * (height - h + 1)), int(numbers[21] * (width - w + 1)), h, w
    raise AssertionError("none of ten attempts fits")


@pytest.mark.parametrize(("height", "width"), [(32, 32), (375, 500), (500, 375), (300, 320)])
def test_boxes_follow_the_rule(height, width):
    some = seeds(300)
    boxes = np.stack(random_crop_box(some, height, width), axis=-1)
    assert boxes.dtype == np.int32
    expected = [slow_box(numbers, height, width) for numbers in crop_draws(some).numpy()]
    # Products in another order may round to the other side of a half.
    assert np.mean(np.all(boxes == expected, axis=1)) > 0.98


KINDS = pytest.mark.parametrize("kind", ["paper", "published"])
LEAST = {"paper": 0.08, "published": 0.1}


@KINDS
@pytest.mark.parametrize("long", [0.03, 1 / 10, 1 / 5, 1 / 3, 1 / 2, 2 / 3, 1, 3 / 2, 2, 3, 5, 8, 10, 12.9, 25])
def test_no_crop_is_longer_than_allowed(kind, long):
    """From 1:33 to 25:1, up to rounding to pixels; areas where any crop can have one of at least the least."""
    height, width = round(1000 / np.sqrt(long)), round(1000 * np.sqrt(long))
    y, x, h, w = (part.numpy() for part in random_crop_box(seeds(3000), height, width, kind=kind))
    assert (y >= 0).all() and (x >= 0).all() and (y + h <= height).all() and (x + w <= width).all()
    assert ((w + 0.5) / (h - 0.5) >= 3 / 4).all() and ((w - 0.5) / (h + 0.5) <= 4 / 3).all()
    areas, most = h * w / (height * width), min(1, 4 / 3 / long, long / (3 / 4))
    central = (h == round(min(height, width / (3 / 4)))) & (w == round(min(width, height * 4 / 3)))
    if most < LEAST[kind]:
        assert central.all()
        np.testing.assert_array_equal(y, (height - h) // 2)
        np.testing.assert_array_equal(x, (width - w) // 2)
    else:
        assert areas.min() > LEAST[kind] - 0.001 and areas.max() <= most * 1.01
        # A last resort is rare but where hardly anything fits.
        assert long > 12 or central.mean() < 0.02


@KINDS
@pytest.mark.parametrize(("height", "width"), [(3, 5), (1, 1), (1, 9), (2, 300), (7, 1)])
def test_tiny_images_have_crops(kind, height, width):
    y, x, h, w = (part.numpy() for part in random_crop_box(seeds(300), height, width, kind=kind))
    assert (h >= 1).all() and (w >= 1).all() and (y >= 0).all() and (x >= 0).all()
    assert (y + h <= height).all() and (x + w <= width).all()


def test_the_last_resort_keeps_the_greatest_area():
    box = np.stack(random_crop_box(seeds(50), 100, 4000, area_range=(0.02, 0.02)), axis=-1)
    np.testing.assert_allclose(box[:, 2] * box[:, 3] / 400_000, 0.02, rtol=0.02)
    # Fewer than one pixel is asked for.
    box = np.stack(random_crop_box(seeds(50), 32, 32, area_range=(1e-5, 2e-5)), axis=-1)
    np.testing.assert_array_equal(box[:, 2:], 1)


def test_one_box_is_the_same_as_in_a_batch_and_in_a_dataset():
    some, augment = seeds(5), Augment(area_min=0.2, area_max=0.6)
    heights, widths = tf.constant([32, 300, 20, 77, 500]), tf.constant([32, 400, 90, 76, 375])
    boxes = np.stack(augment.crop_box(some, heights, widths), axis=-1)
    from_draws = np.stack(augment.crop_box(None, heights, widths, draws=crop_draws(some)), axis=-1)
    np.testing.assert_array_equal(from_draws, boxes)
    mapped = tf.data.Dataset.from_tensor_slices((some, heights, widths)).map(lambda s, h, w: augment.crop_box(s, h, w))
    np.testing.assert_array_equal([[int(number) for number in box] for box in mapped], boxes)
    single = [int(number) for number in augment.crop_box(some[1], 300, 400)]
    assert single == boxes[1].tolist()
    assert 0.19 < single[2] * single[3] / (300 * 400) < 0.61


def two_sample_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of two samples of one size n, in units of sqrt(2 / n)."""
    points = np.sort(np.concatenate([a, b]))
    a_below = np.searchsorted(np.sort(a), points, side="right") / len(a)
    b_below = np.searchsorted(np.sort(b), points, side="right") / len(b)
    return np.abs(a_below - b_below).max() * np.sqrt(len(a) / 2)


@pytest.mark.parametrize(("height", "width"), [(500, 500), (375, 500), (400, 1200), (2000, 250)])
def test_areas_ratios_and_places_are_spread_as_promised(height, width):
    count = 5000
    y, x, h, w = (part.numpy() for part in random_crop_box(seeds(count, 1), height, width))
    area, ratio = h * w / (height * width), w / h
    # The same law by drawing until it fits.
    rng = np.random.default_rng(0)
    areas, ratios = rng.uniform(0.08, 1, 40 * count), rng.uniform(3 / 4, 4 / 3, 40 * count)
    heights, widths = np.sqrt(areas * height * width / ratios), np.sqrt(areas * height * width * ratios)
    fits = (heights <= height) & (widths <= width)
    assert two_sample_distance(area, areas[fits][:count]) < 1.9
    assert two_sample_distance(ratio, ratios[fits][:count]) < 1.9
    for place, room in ((y, height - h), (x, width - w)):
        where = (place + np.random.default_rng(1).random(count)) / (room + 1)
        steps = (np.arange(count) + 0.5) / count
        assert np.abs(np.sort(where) - steps).max() * np.sqrt(count) < 1.9


@pytest.mark.parametrize(("height", "width"), [(500, 500), (375, 500), (32, 32), (1200, 400), (250, 2000)])
def test_published_crops_are_those_of_tensorflows_operation(height, width):
    """Drawn as the released code does: no objects, of which a tenth has to be seen, and 100 attempts."""
    count = 3000
    ours = np.stack(random_crop_box(seeds(count, 1), height, width, kind="published"), axis=-1)

    def draw(seed):
        start, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            [height, width, 3],
            tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
            seed,
            min_object_covered=0.1,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=100,
            use_image_if_no_bounding_boxes=True,
        )
        return tf.concat([start[:2], size[:2]], axis=0)

    theirs = next(iter(tf.data.Dataset.from_tensor_slices(seeds(count, 2)).map(draw).batch(count))).numpy()
    for column in range(4):
        assert two_sample_distance(ours[:, column], theirs[:, column]) < 1.9
    for product in (lambda box: box[:, 2] * box[:, 3], lambda box: box[:, 3] / box[:, 2]):
        assert two_sample_distance(product(ours), product(theirs)) < 1.9


@pytest.mark.parametrize(("kind", "mean"), [("paper", 0.477), ("published", 0.421)])
def test_mean_area_on_squares(kind, mean):
    _, _, h, w = (part.numpy() for part in random_crop_box(seeds(60_000), 1000, 1000, kind=kind))
    assert h.astype(float) @ w / 60_000 / 1e6 == pytest.approx(mean, abs=0.003)


@KINDS
@pytest.mark.parametrize(("height", "width"), [(1, 1), (33, 32), (224, 224), (375, 500), (4000, 3000), (9999, 9973)])
def test_all_is_taken_where_all_is_asked_for(kind, height, width):
    box = np.stack(Augment(area_min=1, crop=kind).crop_box(seeds(50), height, width), axis=-1)
    np.testing.assert_array_equal(box, [[0, 0, height, width]] * 50)


@KINDS
@pytest.mark.parametrize(
    ("ratios", "expected"),
    [((3 / 4, 4 / 3), (0, 433, 100, 133)), ((2, 3), (0, 350, 100, 300)), ((1 / 3, 1 / 2), (0, 475, 100, 50))],
)
def test_all_of_an_elongated_image_is_what_the_ratios_allow(kind, ratios, expected):
    """Ratios may leave out those of squares."""
    augment = Augment(area_min=1, ratio_min=ratios[0], ratio_max=ratios[1], crop=kind)
    np.testing.assert_array_equal(np.stack(augment.crop_box(seeds(50), 100, 1000), axis=-1), [expected] * 50)


@KINDS
@pytest.mark.parametrize("ratios", [(2, 3), (0.2, 0.3), (1, 1), (0.01, 100)])
@pytest.mark.parametrize(("height", "width"), [(300, 300), (100, 1000), (900, 100), (65_535, 65_535)])
def test_any_range_of_ratios_is_kept(kind, ratios, height, width):
    _, _, h, w = (part.numpy() for part in random_crop_box(seeds(500), height, width, ratio_range=ratios, kind=kind))
    assert ((w + 0.5) / (h - 0.5) >= ratios[0]).all() and ((w - 0.5) / (h + 0.5) <= ratios[1]).all()
    assert (h <= height).all() and (w <= width).all()


def test_areas_that_published_crops_refuse():
    with pytest.raises(UserError, match="area_max is 0.05.*takes no area under 0.1"):
        Augment(area_min=0.01, area_max=0.05, crop="published")


def test_augment_passes_its_kind_of_crops_on():
    some = seeds(20)
    for kind in ("paper", "published"):
        expected = np.stack(random_crop_box(some, 300, 400, kind=kind))
        np.testing.assert_array_equal(np.stack(Augment(crop=kind).crop_box(some, 300, 400)), expected)
    assert Augment(crop="published").describe()["crop"] == "published"


def test_a_fixed_share_is_kept():
    _, _, h, w = (part.numpy() for part in random_crop_box(seeds(50), 300, 300, area_range=(0.25, 0.25)))
    np.testing.assert_allclose(h * w / 300**2, 0.25, atol=0.005)


@pytest.mark.parametrize(
    ("height", "width", "proportion", "expected"),
    [
        (300, 400, 0.875, (19, 69, 262, 262)),  # 262.5 rounds to the even number.
        (256, 256, 0.875, (16, 16, 224, 224)),
        (33, 20, 0.875, (8, 1, 18, 18)),  # An odd rest goes to the top: (33 - 18 + 1) // 2.
        (5, 9, 1.0, (0, 2, 5, 5)),
        (1, 1, 0.3, (0, 0, 1, 1)),
    ],
)
def test_central_boxes(height, width, proportion, expected):
    assert tuple(int(part) for part in central_crop_box(height, width, proportion)) == expected


def test_small_images_are_evaluated_whole():
    assert [int(part) for part in evaluation_crop_box(32, 32, 32)] == [0, 0, 32, 32]
    assert [int(part) for part in evaluation_crop_box(32, 32, 33)] == [2, 2, 28, 28]


@pytest.mark.skipif(not (FOLDER / "ops.npz").exists(), reason="no reference vectors here")
@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_evaluation_crop_is_the_published_one(case):
    with np.load(FOLDER / "ops.npz") as vectors:
        image, expected = vectors[f"eval_crop/{case}/input"], vectors[f"eval_crop/{case}/output_96"]
    y, x, h, w = (int(part) for part in evaluation_crop_box(image.shape[0], image.shape[1], 96))
    crop = tf.constant(image[y : y + h, x : x + w])
    np.testing.assert_allclose(resize(tf.image.convert_image_dtype(crop, tf.float32), 96), expected, atol=1e-6)
    as_bytes = resize(crop, 96)
    assert as_bytes.dtype == tf.uint8
    np.testing.assert_allclose(as_bytes.numpy() / 255.0, expected, atol=0.502 / 255)


def test_enlarging_is_pillows_bicubic():
    image_module = pytest.importorskip("PIL.Image")
    channel = np.random.default_rng(0).random((9, 9), np.float32) * 0.6 + 0.2
    larger = resize(tf.constant(np.repeat(channel[..., None], 3, axis=-1)), 31).numpy()
    expected = np.asarray(image_module.fromarray(channel, "F").resize((31, 31), image_module.Resampling.BICUBIC))
    for plane in range(3):
        # TensorFlow looks its weights up in a table of 1,024 steps.
        np.testing.assert_allclose(larger[..., plane], expected, atol=2e-3)


def test_resize_clips_instead_of_wrapping_round():
    edge = np.zeros((8, 8, 3), np.uint8)
    edge[:, 4:] = 255
    larger = resize(tf.constant(edge), 32).numpy().astype(int)
    assert larger[:, :10].max() <= 13 and larger[:, 22:].min() >= 242
    batch = resize(tf.constant(np.stack([edge, edge.swapaxes(0, 1)])), 32).numpy()
    np.testing.assert_array_equal(batch[0], larger)
    np.testing.assert_array_equal(batch[1], larger.swapaxes(0, 1))
    floats = resize(tf.constant(edge / np.float32(255)), 32).numpy()
    assert floats.min() == 0 and floats.max() == 1


def test_same_size_changes_nothing():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    np.testing.assert_array_equal(resize(tf.constant(image), 32), image)
