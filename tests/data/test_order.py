"""The order of examples: permutations, computed anywhere at once."""

from __future__ import annotations

import numpy as np
import pytest

from simclr_tf.core.randomness import example_seed, stream
from simclr_tf.core.tf import tf
from simclr_tf.data.order import permutation, replacement


def order(count, positions, seed=0, name="train"):
    return permutation(seed, name, tf.constant(positions, tf.int64), count).numpy()


@pytest.mark.parametrize("count", [1, 2, 3, 10, 255, 256, 257, 1000, 4097])
def test_every_epoch_has_each_example_once(count):
    epochs = order(count, np.arange(3 * count)).reshape(3, count)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(count))
    if count > 9:
        assert (epochs[0] != epochs[1]).any() and (epochs[1] != epochs[2]).any()


def test_positions_do_not_depend_on_what_is_asked_with_them():
    whole = order(1000, np.arange(3000))
    for start, stop in ((0, 1), (999, 1001), (2500, 2503)):
        np.testing.assert_array_equal(order(1000, np.arange(start, stop)), whole[start:stop])
    shuffled = np.random.default_rng(0).permutation(3000)
    np.testing.assert_array_equal(order(1000, shuffled), whole[shuffled])
    mapped = tf.data.Dataset.from_tensors(np.arange(3000)).map(lambda p: permutation(0, "train", p, 1000))
    np.testing.assert_array_equal(next(iter(mapped)), whole)


def test_seeds_and_streams_give_orders_of_their_own():
    first = order(1000, np.arange(1000))
    for other in (
        order(1000, np.arange(1000), seed=1),
        order(1000, np.arange(1000), seed=2**40),
        order(1000, np.arange(1000), name="b"),
    ):
        # Two random permutations of n agree in one place on average.
        assert np.sum(first == other) < 10


def test_far_positions_of_large_sets():
    count = 14_000_000
    far = order(count, count * 800 + np.arange(2000))
    assert far.min() >= 0 and far.max() < count and len(np.unique(far)) == 2000
    assert abs(far.mean() / count - 0.5) < 0.03


@pytest.mark.parametrize("count", [12, 300, 3000])
def test_orders_look_random(count):
    epochs = 120_000 // count
    examples = order(count, np.arange(epochs * count)).reshape(epochs, count)
    # Where an example comes is uniform: of each place and example, over epochs.
    if count == 12:
        table = np.zeros((count, count))
        np.add.at(table, (np.arange(count), examples), 1)
        chi = np.sum((table - epochs / count) ** 2 / (epochs / count))
        assert chi < (count - 1) ** 2 + 6 * np.sqrt(2 * (count - 1) ** 2)
    # Neighbours in the order are no neighbours in the source, and places do not go with numbers.
    steps = np.diff(examples, axis=1) % count
    # No step is 0; the others are about as many.
    counts = np.bincount((steps.ravel() - 1) * 11 // (count - 1), minlength=11)
    assert counts.max() / counts.min() < 1.15
    correlation = [np.corrcoef(np.arange(count), epoch)[0, 1] for epoch in examples]
    assert abs(np.mean(correlation)) < 4 / np.sqrt(count * epochs)
    assert 0.7 < np.std(correlation) * np.sqrt(count) < 1.35


def test_replacements_are_spread_and_fixed():
    seeds = example_seed(0, stream("crop"), 7, tf.range(4000, dtype=tf.int64))
    first, second = (replacement(seeds, tf.constant(attempt, tf.int64), 10).numpy() for attempt in (1, 2))
    assert set(first) == set(range(10)) and np.bincount(first).min() > 300
    assert int(replacement(seeds[5], tf.constant(1, tf.int64), 10)) == first[5]
    assert 0.05 < np.mean(first == second) < 0.15
    large = replacement(seeds, tf.constant(1, tf.int64), 2**31 - 1).numpy()
    assert large.min() > 0 and abs(large.mean() / 2**31 - 0.5) < 0.03
