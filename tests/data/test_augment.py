"""Augmentations against the published numbers, NumPy, colorsys and Pillow, and against what their ranges promise."""

from __future__ import annotations

import colorsys
import importlib.util
import itertools
import sys

import numpy as np
import pytest
from reference import FOLDER

from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf
from simclr_tf.data.augment import color
from simclr_tf.data.augment.addons import cutout_size, random_cutout, random_rotation
from simclr_tf.data.augment.augment import Augment, random_flip
from simclr_tf.data.augment.blur import gaussian_blur, random_blur
from simclr_tf.data.augment.color import color_jitter, random_gray
from simclr_tf.data.augment.random_step import channels_first, channels_last, draw_all

needs_reference = pytest.mark.skipif(not (FOLDER / "ops.npz").exists(), reason="no reference vectors here")
needs_addons = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_addons") is None, reason="tensorflow-addons is not installed"
)
ADDONS_ON = {"cutout_probability": 0.5, "rotation_probability": 0.5}


def seeds(count: int, start: int = 0) -> tf.Tensor:
    return tf.constant(np.random.default_rng(start).integers(-(2**31), 2**31, (count, 2)), tf.int32)


def random_images(count: int, height: int = 8, width: int = 8) -> np.ndarray:
    """Images with black, white, gray and saturated pixels among random ones, [count, H, W, 3] float32."""
    images = np.random.default_rng(count).random((count, height, width, 3), np.float32)
    special = [(0, 0, 0), (1, 1, 1), (0.5, 0.5, 0.5), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0.3, 0.3, 0.7)]
    images[:, 0, : min(8, width)] = np.array(special[:width], np.float32)
    return images


def on_last(function, images, *args, **kwargs) -> np.ndarray:
    """Calls a channels-first function on channels-last images."""
    return channels_last(function(channels_first(tf.constant(images)), *args, **kwargs)).numpy()


def kolmogorov_distance(sample: np.ndarray, low: float, high: float) -> float:
    """Greatest difference between the sample's distribution and the uniform one, in units of 1 / sqrt(n)."""
    sample = (np.sort(np.asarray(sample, np.float64)) - low) / (high - low)
    assert sample[0] > -1e-4 and sample[-1] < 1 + 1e-4, (sample[0], sample[-1])
    steps = np.arange(len(sample) + 1) / len(sample)
    return max(np.abs(sample - steps[1:]).max(), np.abs(sample - steps[:-1]).max()) * np.sqrt(len(sample))


# Beyond this a uniform sample goes once in 700; 2.0: once in 1,500; the seeds are fixed.
UNIFORM = 1.9


# --- Color -----------------------------------------------------------------------------------------------------------


def slow_brightness(image, factor):
    return np.clip(image * factor, 0, 1)


def slow_contrast(image, factor):
    mean = image.mean(axis=(0, 1))
    return np.clip((image - mean) * factor + mean, 0, 1)


def by_pixel(image, change):
    pixels = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in image.reshape(-1, 3)]
    return np.clip(np.array(pixels).reshape(image.shape), 0, 1)


def slow_saturation(image, factor):
    return by_pixel(image, lambda h, s, v: (h, min(s * factor, 1), v))


def slow_hue(image, delta):
    return by_pixel(image, lambda h, s, v: ((h + delta) % 1, s, v))


OFF = ("gray_probability", "blur_probability")
SLOW = (slow_brightness, slow_contrast, slow_saturation, slow_hue)


def slow_jitter(image, parameters, order):
    image = image.astype(np.float64)
    for which in order:
        image = SLOW[which](image, float(parameters[which]))
    return image


def test_jitter_in_each_of_the_24_orders():
    orders = list(itertools.permutations(range(4)))
    rng = np.random.default_rng(3)
    parameters = np.concatenate([rng.uniform(0.2, 1.8, (24, 3)), rng.uniform(-0.5, 0.5, (24, 1))], axis=1)
    places = np.argsort(orders, axis=1) + rng.uniform(0, 0.5, (24, 4))
    images = random_images(24)
    b, c, s, h = (tf.constant(column, tf.float32) for column in parameters.T)
    jittered = on_last(
        color.jitter, images, brightness=b, contrast=c, saturation=s, hue=h, places=tf.constant(places, tf.float32)
    )
    expected = np.stack([slow_jitter(*arguments) for arguments in zip(images, parameters, orders)])
    np.testing.assert_allclose(jittered, expected, atol=3e-6)
    # The orders matter, or this test would not see a wrong one.
    assert (
        np.abs(expected - np.stack([slow_jitter(i, p, (0, 1, 2, 3)) for i, p in zip(images, parameters)])).max() > 0.1
    )


@pytest.mark.parametrize("which", range(4))
def test_each_adjustment_is_tensorflows(which):
    images = random_images(6)
    values = [(0.0, 0.3, 0.9, 1.0, 1.4, 1.8)] * 3 + [(-0.9, -0.2, -0.01, 0.0, 0.1, 0.5)]
    reference = (
        lambda image, factor: image * factor,
        tf.image.adjust_contrast,
        tf.image.adjust_saturation,
        tf.image.adjust_hue,
    )[which]
    parameters = [tf.ones(6)] * 3 + [tf.zeros(6)]
    parameters[which] = tf.constant(values[which])
    b, c, s, h = parameters
    places = tf.random.stateless_uniform((6, 4), [0, 1])
    adjusted = on_last(color.jitter, images, brightness=b, contrast=c, saturation=s, hue=h, places=places)
    expected = [tf.clip_by_value(reference(image, value), 0, 1) for image, value in zip(images, values[which])]
    np.testing.assert_allclose(adjusted, expected, atol=2e-6)


def test_random_jitter_is_the_slow_one_with_the_numbers_drawn():
    images, some = random_images(30), seeds(30)
    draws = draw_all(some, [color_jitter])[0].numpy()
    jittered = color_jitter(images, some, strength=0.5, probability=0.8).numpy()
    untouched = 0
    for image, result, numbers in zip(images, jittered, draws):
        if numbers[0] >= 0.8:
            untouched += 1
            np.testing.assert_array_equal(result, image)
            continue
        parameters = [*(0.6 + 0.8 * numbers[1:4]), 0.1 * (2 * numbers[4] - 1)]
        np.testing.assert_allclose(result, slow_jitter(image, parameters, np.argsort(numbers[5:9])), atol=3e-6)
    assert 0 < untouched < 30


@pytest.mark.parametrize("strength", [1.0, 0.5, 2.0])
def test_brightness_can_be_added(monkeypatch, strength):
    """SimCLR's first version: a summand within 0.8 s, clipped; all else as with factors."""
    monkeypatch.setitem(globals(), "SLOW", (lambda image, delta: np.clip(image + delta, 0, 1), *SLOW[1:]))
    images, some = random_images(30), seeds(30)
    draws = draw_all(some, [color_jitter])[0].numpy()
    augment = Augment(
        brightness="additive", color_strength=strength, jitter_probability=1, **dict.fromkeys(OFF, 0), flip=False
    )
    low, high = max(1 - 0.8 * strength, 0), 1 + 0.8 * strength
    for image, result, numbers in zip(images, augment(images, some).numpy(), draws):
        deltas = 0.8 * strength * (2 * numbers[1] - 1), 0.2 * strength * (2 * numbers[4] - 1)
        parameters = [deltas[0], *(low + (high - low) * numbers[2:4]), deltas[1]]
        np.testing.assert_allclose(result, slow_jitter(image, parameters, np.argsort(numbers[5:9])), atol=3e-6)
    assert augment.describe()["brightness"] == "additive"


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_jitter_ranges(strength):
    # On an image of one color contrast does nothing, and the others can be read off in HSV whatever their order.
    count, start = 4000, (0.3, 0.2, 0.2)
    images = np.broadcast_to(np.array(start, np.float32), (count, 2, 2, 3))
    jittered = color_jitter(images, seeds(count, 1), strength=strength).numpy()[:, 0, 0]
    applied = ~np.all(jittered == np.array(start, np.float32), axis=-1)
    assert abs(applied.mean() - 0.8) < 4 * np.sqrt(0.8 * 0.2 / count)
    h, s, v = np.array([colorsys.rgb_to_hsv(*pixel) for pixel in jittered[applied].astype(float)]).T
    low, high = 1 - 0.8 * strength, 1 + 0.8 * strength
    turns, saturations, brightnesses = (h + 0.5) % 1 - 0.5, s * 3, v / 0.3
    assert kolmogorov_distance(brightnesses, low, high) < UNIFORM
    assert kolmogorov_distance(saturations, low, high) < UNIFORM
    assert kolmogorov_distance(turns, -0.2 * strength, 0.2 * strength) < UNIFORM
    # Two grays: brightness scales their mean, brightness and contrast their difference.
    images = np.broadcast_to(np.array([0.2, 0.3], np.float32)[:, None], (count, 1, 2, 3)).copy()
    images[..., 0, :], images[..., 1, :] = 0.2, 0.3
    jittered = color_jitter(images, seeds(count, 2), strength=strength, probability=1.0).numpy()[:, 0, :, 0]
    brightness = jittered.mean(axis=-1) / 0.25
    contrast = (jittered[:, 1] - jittered[:, 0]) / 0.1 / brightness
    assert kolmogorov_distance(brightness, low, high) < UNIFORM
    assert kolmogorov_distance(contrast, low, high) < UNIFORM
    assert np.abs(np.corrcoef(brightness, contrast)[0, 1]) < 4 / np.sqrt(count)


def test_all_orders_are_equally_likely():
    draws = draw_all(seeds(4800), [color_jitter])[0].numpy()
    _, counts = np.unique(np.argsort(draws[:, 5:9], axis=1) @ [64, 16, 4, 1], return_counts=True)
    assert len(counts) == 24
    # Chi-square with 23 degrees of freedom: above 56 once in 7,000.
    assert ((counts - 200) ** 2 / 200).sum() < 56


def test_strong_jitter_never_turns_factors_negative():
    images = random_images(300)
    jittered = color_jitter(images, seeds(300), strength=2.5, probability=1.0).numpy()
    assert np.isfinite(jittered).all() and jittered.min() >= 0 and jittered.max() <= 1


def test_gray_is_pillows():
    image_module = pytest.importorskip("PIL.Image")
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
    gray = on_last(color.to_gray, images.astype(np.float32) / 255)
    assert gray.shape == images.shape
    for image, result in zip(images, gray):
        expected = np.asarray(image_module.fromarray(image).convert("L"))
        for channel in range(3):
            np.testing.assert_allclose(result[..., channel] * 255, expected, atol=0.6)


# --- Flip, gray, blur and what they have in common -------------------------------------------------------------------


def test_flip_mirrors_half_of_the_images():
    images = random_images(2000, 2, 3)
    flipped = random_flip(images, seeds(2000)).numpy()
    mirrored = np.array([np.array_equal(a, b[:, ::-1]) for a, b in zip(flipped, images)])
    kept = np.array([np.array_equal(a, b) for a, b in zip(flipped, images)])
    assert np.all(mirrored ^ kept)
    assert abs(mirrored.mean() - 0.5) < 4 * np.sqrt(0.25 / 2000)


def test_gray_takes_color_from_a_fifth():
    images = random_images(2000, 2, 2)
    results = random_gray(images, seeds(2000, 5)).numpy()
    gray = np.all(results == results[..., :1], axis=(1, 2, 3))
    np.testing.assert_array_equal(results[~gray], images[~gray])
    assert abs(gray.mean() - 0.2) < 4 * np.sqrt(0.16 / 2000)


def slow_blur(image, sigma, radius):
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-(offsets**2) / (2.0 * sigma**2))
    kernel /= kernel.sum()
    for axis in (0, 1):
        image = np.apply_along_axis(lambda line: np.convolve(line, kernel)[radius : radius + len(line)], axis, image)
    return image


def test_blur_with_a_width_for_each_image():
    images, sigmas = random_images(5, 40, 23), np.array([0.1, 0.3, 0.8, 1.4, 2.0], np.float32)
    blurred = on_last(gaussian_blur, images, tf.constant(sigmas))
    expected = [slow_blur(image.astype(np.float64), float(sigma), 2) for image, sigma in zip(images, sigmas)]
    np.testing.assert_allclose(blurred, expected, atol=1e-6)


@needs_reference
def test_blur_is_the_published_one():
    with np.load(FOLDER / "ops.npz") as vectors:
        images, found = vectors["blur/input"], 0
        for key in vectors.files:
            if not key.startswith("blur/kernel"):
                continue
            kernel, sigma = key[len("blur/kernel") :].split("_sigma")
            sigmas = tf.fill([len(images)], np.float32(sigma))
            blurred = on_last(gaussian_blur, images, sigmas, kernel_size=int(kernel))
            np.testing.assert_allclose(blurred, vectors[key], atol=1e-6, err_msg=key)
            single = on_last(gaussian_blur, images[0], sigmas[0], kernel_size=int(kernel))
            np.testing.assert_allclose(single, vectors[key][0], atol=1e-6, err_msg=key)
            found += 1
    assert found >= 12


def test_blur_widths_and_probability():
    # The blurred middle of a lone white pixel gives the width away: 1 / (sum of the kernel) ** 2.
    count = 2000
    images = np.zeros((count, 21, 21, 3), np.float32)
    images[:, 10, 10] = 1
    results = random_blur(images, seeds(count, 7)).numpy()
    blurred = results[:, 10, 11, 0] > 0
    # Below about sigma = 0.1 the neighbors would underflow; 0.1 gives exp(-50).
    assert abs(blurred.mean() - 0.5) < 4 * np.sqrt(0.25 / count)
    np.testing.assert_array_equal(results[~blurred], images[~blurred])
    ratio = (results[blurred, 10, 11, 0] / results[blurred, 10, 10, 0]).astype(np.float64)
    sigmas = np.sqrt(-0.5 / np.log(ratio))
    assert kolmogorov_distance(sigmas, 0.1, 2.0) < UNIFORM


def test_small_images_are_too_small_to_blur():
    images = random_images(3, 19, 19)
    np.testing.assert_array_equal(random_blur(images, seeds(3), probability=1.0), images)


def test_no_two_steps_share_their_numbers():
    steps = [random_flip, color_jitter, random_gray, random_blur, random_cutout, random_rotation]
    assert len({step.name for step in steps} | {"crop"}) == 7
    columns = np.concatenate([draws.numpy() for draws in draw_all(seeds(4000), steps)], axis=1)
    assert columns.shape == (4000, 18)
    correlation = np.corrcoef(columns.T) - np.eye(18)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(4000)
    np.testing.assert_array_equal(draw_all(seeds(4000), [random_gray])[0], columns[:, 10:11])


# --- Augment ---------------------------------------------------------------------------------------------------------


def test_augment_is_its_steps_in_turn():
    images, some = random_images(12, 32, 32), seeds(12)
    expected = random_flip(images, some)
    expected = color_jitter(expected, some, strength=0.7, probability=0.6)
    expected = random_gray(expected, some, probability=0.3)
    expected = random_blur(expected, some, probability=0.9)
    augment = Augment(color_strength=0.7, jitter_probability=0.6, gray_probability=0.3, blur_probability=0.9)
    np.testing.assert_allclose(augment(images, some), expected, atol=1e-6)


def test_same_numbers_eagerly_compiled_in_a_dataset_alone_and_in_a_batch():
    images, some = (random_images(6, 24, 20) * 255).astype(np.uint8), seeds(6, 9)
    augment = Augment()
    result = augment(images, some).numpy()
    assert result.dtype == np.float32 and result.shape == images.shape
    assert np.abs(result - images / np.float32(255)).max() > 0.05

    def call(image, seed):
        return augment(image, seed)

    batches = tf.data.Dataset.from_tensors((images, some))
    others = {
        "graph": tf.function(call)(images, some),
        "XLA": tf.function(call, jit_compile=True)(images, some),
        "floats": augment(images.astype(np.float32) / 255, some),
        "one": np.stack([augment(image, seed) for image, seed in zip(images, some)]),
        "tf.data, one by one": np.stack(list(batches.unbatch().map(call))),
        "tf.data, batched": next(iter(batches.map(call))),
        "one under XLA": tf.function(call, jit_compile=True)(images[2], some[2]),
    }
    for name, other in others.items():
        expected = result[2] if name == "one under XLA" else result
        np.testing.assert_allclose(other, expected, atol=1e-5, err_msg=name)


def test_same_seed_same_bits_other_seed_other_image():
    images, some = random_images(8, 20, 20), seeds(8, 11)
    augment = tf.function(Augment(jitter_probability=1.0, gray_probability=0.0))
    first = augment(images, some).numpy()
    np.testing.assert_array_equal(first, augment(images, some))
    # An image's result depends on its own seed, not on its place or its neighbors.
    np.testing.assert_allclose(augment(images[::-1], some[::-1])[::-1], first, atol=1e-6)
    same_image = augment(np.repeat(images[:1], 8, axis=0), some).numpy()
    for a, b in itertools.combinations(same_image, 2):
        assert np.abs(a - b).max() > 1e-3


def test_results_stay_in_range():
    images = np.random.default_rng(0).integers(0, 2, (400, 20, 20, 3)).astype(np.uint8) * 255
    result = Augment()(images, seeds(400)).numpy()
    assert np.isfinite(result).all() and result.min() == 0 and result.max() == 1


def operations(augment: Augment) -> set[str]:
    function = tf.function(augment).get_concrete_function(
        tf.TensorSpec([4, 32, 32, 3], tf.uint8), tf.TensorSpec([4, 2], tf.int32)
    )
    return {operation.type for operation in function.graph.get_operations()}


def test_what_is_off_is_not_in_the_graph():
    assert {"ReverseV2", "Floor", "AddN"} <= operations(Augment())
    assert {"MatMul", "BatchMatMulV2", "BatchMatMul"} & operations(Augment())
    assert not {"MatMul", "BatchMatMulV2", "BatchMatMul"} & operations(Augment(blur_probability=0))
    assert "ReverseV2" not in operations(Augment(flip=False))
    assert "AddN" not in operations(Augment(gray_probability=0))
    assert "Floor" not in operations(Augment(jitter_probability=0))
    assert "Floor" not in operations(Augment(color_strength=0))
    off = Augment(flip=False, jitter_probability=0, gray_probability=0, blur_probability=0)
    assert not {"BitwiseXor", "Select", "SelectV2"} & operations(off)
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype(np.uint8)
    np.testing.assert_allclose(off(images, seeds(2)), images / 255, atol=1e-7)


def test_every_probability_can_be_certain():
    images = random_images(50, 20, 20)
    result = Augment(gray_probability=1, blur_probability=1)(images, seeds(50)).numpy()
    np.testing.assert_array_equal(result[..., 0], result[..., 2])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"area_min": 0.0}, ["area_min", "0.0"]),
        ({"area_max": 1.5}, ["area_max", "1.5"]),
        ({"area_min": 0.9, "area_max": 0.5}, ["area_min", "0.9", "area_max", "0.5"]),
        ({"ratio_min": 2.0}, ["ratio_min", "2.0", "ratio_max"]),
        ({"ratio_min": -1}, ["ratio_min", "-1"]),
        ({"ratio_max": float("inf")}, ["ratio_max", "inf"]),
        ({"flip": 0.5}, ["flip", "0.5"]),
        ({"color_strength": -0.1}, ["color_strength", "-0.1"]),
        ({"color_strength": 3}, ["color_strength", "3"]),
        ({"jitter_probability": 1.01}, ["jitter_probability", "1.01"]),
        ({"gray_probability": -0.2}, ["gray_probability", "-0.2"]),
        ({"blur_probability": "often"}, ["blur_probability", "often"]),
        ({"blur_probability": float("nan")}, ["blur_probability", "nan"]),
        ({"cutout_probability": 2}, ["cutout_probability", "2"]),
        ({"cutout_fraction": 1.0}, ["cutout_fraction", "1.0"]),
        ({"rotation_probability": None}, ["rotation_probability", "None"]),
        ({"rotation_degrees": ()}, ["rotation_degrees", "()"]),
        ({"rotation_degrees": "90"}, ["rotation_degrees", "90"]),
        ({"crop": "Paper"}, ["crop", "Paper", "paper, published"]),
        ({"crop": None}, ["crop", "None", "paper, published"]),
        ({"brightness": "add"}, ["brightness", "add", "multiplicative, additive"]),
    ],
)
def test_wrong_settings_are_named(settings, words):
    with pytest.raises(UserError) as error:
        Augment(**settings)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_wrong_shapes_are_refused():
    augment = Augment()
    with pytest.raises(ValueError, match="images"):
        augment(np.zeros((2, 8, 8, 1), np.uint8), seeds(2))
    with pytest.raises(ValueError, match="seed"):
        augment(np.zeros((2, 8, 8, 3), np.uint8), seeds(2)[0])
    with pytest.raises(ValueError, match="uint8 or floating"):
        augment(np.zeros((2, 8, 8, 3), np.int32), seeds(2))


def test_description_makes_the_same_again():
    augment = Augment(area_min=0.2, flip=False, color_strength=0.5, blur_probability=0, rotation_degrees=[45, 90])
    description = augment.describe()
    assert description["area_min"] == 0.2 and description["rotation_degrees"] == [45.0, 90.0]
    assert Augment(**description).describe() == description
    assert set(description) == set(Augment.__init__.__code__.co_varnames[1 : Augment.__init__.__code__.co_argcount])


# --- From tensorflow-addons ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ADDONS_ON))
def test_without_addons_asking_says_what_is_needed(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "tensorflow_addons", None)
    with pytest.raises(UserError, match=rf"{name}.*tensorflow-addons"):
        Augment(**{name: 0.5})
    assert Augment().steps_without_xla == ()


@needs_addons
def test_addons_steps_are_named_for_xla():
    assert Augment(**ADDONS_ON).steps_without_xla == ("cutout_probability", "rotation_probability")
    assert Augment(cutout_probability=0.1).steps_without_xla == ("cutout_probability",)


@needs_addons
def test_cutout():
    images = random_images(400, 12, 20) + 0.01
    result = random_cutout(images, seeds(400), fraction=0.4, probability=0.75).numpy()
    size = (cutout_size(12, 0.4), cutout_size(20, 0.4))
    assert size == (4, 8)
    cut = np.any(result != images, axis=(1, 2, 3))
    assert abs(cut.mean() - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 400)
    corners = set()
    for before, after in zip(images[cut], result[cut]):
        rows, columns = np.nonzero(np.all(after == 0, axis=-1))
        y, x = rows.min(), columns.min()
        expected = before.copy()
        expected[y : y + size[0], x : x + size[1]] = 0
        np.testing.assert_array_equal(after, expected)
        corners.add((y, x))
    assert {y for y, _ in corners} == set(range(9)) and {x for _, x in corners} == set(range(13))


@needs_addons
def test_rotation():
    images, some = random_images(200, 8, 8), seeds(200)
    result = random_rotation(images, some, probability=0.8).numpy()
    turns = np.array(
        [
            [np.allclose(np.rot90(before, k), after, atol=1e-5) for k in range(4)]
            for before, after in zip(images, result)
        ]
    )
    assert np.all(turns.sum(axis=1) == 1)
    assert np.abs(turns.mean(axis=0) - [0.2, 0.8 / 3, 0.8 / 3, 0.8 / 3]).max() < 4 * np.sqrt(0.2 / 200)
    white = np.ones((1, 9, 9, 3), np.float32)
    slanted = random_rotation(white, seeds(1), degrees=[45.0]).numpy()[0]
    assert slanted[0, 0, 0] == 0 and slanted[4, 4, 0] == 1 and 0 <= slanted.min() and slanted.max() <= 1


@needs_addons
def test_addons_steps_alone_in_a_batch_and_in_a_dataset():
    images, some = random_images(5, 20, 20), seeds(5, 3)
    augment = Augment(blur_probability=0, **ADDONS_ON)
    result = augment(images, some).numpy()
    mapped = tf.data.Dataset.from_tensor_slices((images, some)).map(augment)
    np.testing.assert_allclose(np.stack(list(mapped)), result, atol=1e-5)
    assert mapped.element_spec.shape == (20, 20, 3)
