"""The random generator against its published test vectors, a NumPy computation and what a uniform law asks."""

from __future__ import annotations

import numpy as np
import pytest

from simclr_tf.core.randomness import example_seed, fold_in, stream, threefry, uniform
from simclr_tf.core.tf import tf

ONES = 0xFFFFFFFF

# Key, counter, result: Random123's kat_vectors for threefry2x32 with 20 rounds.
KNOWN_ANSWERS = [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((ONES, ONES), (ONES, ONES), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]


def threefry_in_integers(key: tuple[int, int], counter: tuple[int, int]) -> tuple[int, int]:
    """The generator once more, in Python's integers, from the paper's description."""
    keys = [key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDA]
    a, b = (counter[0] + keys[0]) & ONES, (counter[1] + keys[1]) & ONES
    for number in range(20):
        distance = [13, 15, 26, 6, 17, 29, 16, 24][number % 8]
        a = (a + b) & ONES
        b = ((b << distance | b >> (32 - distance)) & ONES) ^ a
        if number % 4 == 3:
            group = number // 4 + 1
            a, b = (a + keys[group % 3]) & ONES, (b + keys[(group + 1) % 3] + group) & ONES
    return a, b


def words(seed: tf.Tensor) -> np.ndarray:
    return seed.numpy().view(np.uint32)


def some_seeds(count: int) -> tf.Tensor:
    return tf.constant(np.random.default_rng(count).integers(-(2**31), 2**31, (count, 2)), tf.int32)


@pytest.mark.parametrize(("key", "counter", "answer"), KNOWN_ANSWERS)
def test_known_answers(key, counter, answer):
    constants = [tf.constant(word, tf.uint32) for word in (*key, *counter)]
    result = threefry((constants[0], constants[1]), (constants[2], constants[3]))
    assert tuple(int(word) for word in result) == answer
    assert threefry_in_integers(key, counter) == answer


@pytest.mark.parametrize(
    "data", [0, 1, -1, 7, 2**31 - 1, -(2**31), 2**32, 2**40 + 3, -(2**40) - 3, 2**63 - 1, -(2**63)]
)
def test_fold_in_takes_all_64_bits(data):
    seed = tf.constant([-5, 123456789], tf.int32)
    key = (-5 & ONES, 123456789)
    expected = threefry_in_integers(key, (data & ONES, data >> 32 & ONES))
    assert tuple(words(fold_in(seed, tf.constant(data, tf.int64)))) == expected


def test_fold_in_broadcasts():
    seeds = some_seeds(4)
    together = fold_in(seeds[:, None], tf.constant([3, 9, 27]))
    assert together.shape == (4, 3, 2)
    assert together.dtype == tf.int32
    for row in range(4):
        for column, data in enumerate((3, 9, 27)):
            np.testing.assert_array_equal(together[row, column], fold_in(seeds[row], data))


def test_uniform_is_the_top_24_bits_of_the_generator():
    seed = tf.constant([17, -4], tf.int32)
    expected = []
    for counter in range(4):
        expected += [word >> 8 for word in threefry_in_integers((17, -4 & ONES), (counter, 0))]
    for count in (1, 2, 7, 8):
        np.testing.assert_array_equal(uniform(seed, count).numpy() * 2**24, expected[:count])
    np.testing.assert_allclose(uniform(seed, 7, -3.0, 2.0), -3 + 5 * np.array(expected[:7]) / 2**24, rtol=1e-6)


def test_uniform_fills_the_interval_evenly():
    numbers = uniform(some_seeds(5000), 9).numpy()
    assert numbers.dtype == np.float32
    assert 0 <= numbers.min() and numbers.max() < 1
    for column in numbers.T:
        counts = np.histogram(column, bins=20, range=(0, 1))[0]
        # Chi-square with 19 degrees of freedom: above 50 once in 10,000.
        assert ((counts - 250) ** 2 / 250).sum() < 50
    correlation = np.corrcoef(numbers.T) - np.eye(9)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(5000)


def test_neighboring_examples_steps_and_streams_are_unrelated():
    base = uniform(example_seed(1, stream("a"), 10, tf.range(4000)), 1)[:, 0].numpy()
    others = {
        "next example": example_seed(1, stream("a"), 10, tf.range(1, 4001)),
        "next step": example_seed(1, stream("a"), 11, tf.range(4000)),
        "next run": example_seed(2, stream("a"), 10, tf.range(4000)),
        "other stream": example_seed(1, stream("b"), 10, tf.range(4000)),
        "derived": fold_in(example_seed(1, stream("a"), 10, tf.range(4000)), 1),
    }
    for name, seeds in others.items():
        correlation = np.corrcoef(base, uniform(seeds, 1)[:, 0].numpy())[0, 1]
        assert abs(correlation) < 4 / np.sqrt(4000), name
    # Shifting step against example must not give the same seeds again.
    assert not np.array_equal(words(example_seed(1, 0, 2, 3)), words(example_seed(1, 0, 3, 2)))


def test_seeds_do_not_collide():
    examples = tf.range(30000)[None]
    seeds = words(example_seed(0, stream("view"), tf.constant([[0], [1]]), examples)).astype(np.uint64)
    assert len(np.unique(seeds[..., 0] << np.uint64(32) | seeds[..., 1])) == 60000


def test_run_seeds_of_all_sizes_differ():
    run_seeds = [0, 1, -1, 2**31, 2**32, 2**32 + 1, -(2**32), 2**62, -(2**63)]
    seeds = {tuple(words(example_seed(tf.constant(seed, tf.int64), 0, 0, 0))) for seed in run_seeds}
    assert len(seeds) == len(run_seeds)
    # A Python integer, an int32 and an int64 of one value are the same seed.
    for same in (-7, tf.constant(-7, tf.int32), tf.constant(-7, tf.int64)):
        np.testing.assert_array_equal(words(example_seed(same, 1, 2, 3)), words(example_seed(-7, 1, 2, 3)))


def test_example_seed_broadcasts_steps_and_examples():
    grid = example_seed(5, 6, tf.constant([[1], [2]], tf.int64), tf.constant([2**33, 4], tf.int64))
    assert grid.shape == (2, 2, 2)
    for row, step in enumerate((1, 2)):
        for column, example in enumerate((2**33, 4)):
            np.testing.assert_array_equal(grid[row, column], example_seed(5, 6, step, tf.constant(example, tf.int64)))


def test_stream_numbers_are_fixed():
    # Changing these changes every run that was ever recorded.
    assert stream("crop") == 1841446299
    assert stream("flip") == 452912213
    assert len({stream(name) for name in ("crop", "flip", "jitter", "gray", "blur", "cutout", "rotation")}) == 7


def test_same_bits_eagerly_compiled_and_in_a_dataset():
    def draw(example):
        return uniform(example_seed(-3, stream("x"), 2**35, example), 5)

    examples = tf.range(6, dtype=tf.int64)
    eager = draw(examples).numpy()
    np.testing.assert_array_equal(tf.function(draw)(examples), eager)
    np.testing.assert_array_equal(tf.function(draw, jit_compile=True)(examples), eager)
    np.testing.assert_array_equal(list(tf.data.Dataset.from_tensor_slices(examples).map(draw)), eager)
    np.testing.assert_array_equal(next(iter(tf.data.Dataset.from_tensors(examples).map(draw))), eager)
    np.testing.assert_array_equal([draw(int(example)) for example in examples], eager)
