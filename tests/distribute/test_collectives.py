"""One replica equals several: loss, metrics, updated weights and moving averages."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_run import TinyRun

from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf
from simclr_tf.distribute import collectives
from simclr_tf.distribute.cluster import make_strategy

STEPS = 3


def strategy_of(replicas: int) -> tf.distribute.Strategy:
    return make_strategy("one_device") if replicas == 1 else make_strategy("mirrored", virtual_devices=replicas)


def train(replicas: int, **settings):
    """Takes a few pretraining steps; returns the records and all variables."""
    run = TinyRun(replicas, **settings)
    return run.run(STEPS), run.values()


@pytest.fixture(scope="module")
def one():
    return train(1)


def test_replicas_agree(one):
    """Four of them do in `test_memory.py`."""
    records, variables = train(2)
    assert len(records) == STEPS
    for expected, actual in zip(one[0], records):
        assert expected.keys() == actual.keys()
        for name in expected:
            assert abs(expected[name] - actual[name]) < 1e-9 * max(1, abs(expected[name])), name
    for expected, actual in zip(one[1], variables):
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


def test_compiled_step_agrees(one):
    records, _ = train(1, jit_compile=True)
    # The network is float64, its images are float32: XLA rounds their colours otherwise, and an update at this learning
    # rate makes a few hundred times as much of it. Compared are the first step and what its update led to.
    for tolerance, expected, actual in zip((1e-6, 1e-4), one[0], records):
        assert abs(expected["loss"] - actual["loss"]) < tolerance * expected["loss"]


def test_concat_orders_by_replica_and_carries_gradients():
    strategy = strategy_of(2)

    @tf.function
    def run():
        def replica():
            mine = tf.cast(collectives.replica_id() + 1, tf.float64) * tf.ones([2, 1], tf.float64)
            with tf.GradientTape() as tape:
                tape.watch(mine)
                everything = collectives.concat(mine)
                loss = tf.reduce_sum(everything * tf.constant([[1.0], [2.0], [3.0], [4.0]], tf.float64))
            return everything, tape.gradient(loss, mine)

        return strategy.run(replica)

    everything, gradients = run()
    for value in strategy.experimental_local_results(everything):
        np.testing.assert_array_equal(value, [[1], [1], [2], [2]])
    # Both replicas' losses count every row.
    first, second = strategy.experimental_local_results(gradients)
    np.testing.assert_array_equal(first, [[2], [4]])
    np.testing.assert_array_equal(second, [[6], [8]])


@pytest.mark.parametrize("dtype", [tf.uint8, tf.int64, tf.int32, tf.float32])
def test_concat_sends_what_every_device_can_add(dtype, monkeypatch):
    """GPUs add no int32 between workers, TPUs no int64, none of them bytes."""
    sent = []
    monkeypatch.setattr(collectives, "_all_sum", lambda value: sent.append(value.dtype) or value)
    monkeypatch.setattr(collectives, "num_replicas", lambda: 2)
    for on_tpu, whole in ((False, tf.int64), (True, tf.int32)):
        monkeypatch.setattr(collectives, "_on_tpu", lambda on_tpu=on_tpu: on_tpu)
        value = collectives.concat(tf.constant([[200], [7]], dtype))
        assert value.dtype == dtype and value.numpy().ravel().tolist() == [200, 7, 0, 0]
        assert sent.pop() == (whole if dtype.is_integer else dtype)


def test_concat_keeps_what_is_not_finite_to_its_row():
    strategy = strategy_of(2)

    @tf.function
    def run():
        def replica():
            first = tf.equal(collectives.replica_id(), 0)
            return collectives.concat(
                tf.where(first, tf.constant([[float("inf")], [1.0]]), tf.constant([[2.0], [3.0]]))
            )

        return strategy.experimental_local_results(strategy.run(replica))[1]

    assert run().numpy().ravel().tolist() == [float("inf"), 1, 2, 3]


def test_xla_with_several_replicas_is_refused():
    with pytest.raises(UserError, match="2 replicas"):
        train(2, jit_compile=True)
