"""Micro-batches: outputs and gradients are those of plain autodiff over the parts; the loss sees the whole batch."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tiny_run
from tiny_run import BATCH, TinyRun

from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf
from simclr_tf.losses.nt_xent import nt_xent
from simclr_tf.stages import micro_batches
from simclr_tf.stages.memory import Memory

ROWS, COUNT = 12, 4


@pytest.fixture
def layer():
    """A function of a micro-batch whose rows depend on one another, as under batch norm; and its variables."""
    rng = np.random.default_rng(0)
    weights = [tf.Variable(rng.normal(size=shape)) for shape in ((5, 6), (6, 3))]
    unused = tf.Variable(rng.normal(size=2))

    def function(part):
        hidden = tf.tanh(part["view"]["x"] @ weights[0])
        hidden -= tf.reduce_mean(hidden, axis=0)
        return {"z": hidden @ weights[1], "hidden": hidden}

    returns = {"z": tf.TensorSpec([3], tf.float64), "hidden": tf.TensorSpec([6], tf.float64)}
    return function, returns, [*weights, unused]


def loss_of(outputs) -> tf.Tensor:
    """Mixes all rows with one another, as a contrastive loss does."""
    halves = tf.split(outputs["z"], 2)
    return tf.reduce_mean(nt_xent(*halves, temperature=0.5).loss) + tf.reduce_sum(outputs["hidden"] ** 3)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_outputs_and_gradient_are_exact(layer, jit_compile):
    function, returns, variables = layer
    x = tf.constant(np.random.default_rng(1).normal(size=(ROWS, 5)))

    @tf.function(jit_compile=jit_compile)
    def cached():
        with tf.GradientTape() as tape:
            outputs = micro_batches.outputs_with_gradient(function, {"view": {"x": x}}, COUNT, returns, variables)
            loss = loss_of(outputs)
        return outputs, tape.gradient(loss, variables)

    with tf.GradientTape() as tape:
        parts = [function({"view": {"x": x[i::COUNT]}}) for i in range(COUNT)]
        order = np.argsort(np.concatenate([np.arange(ROWS)[i::COUNT] for i in range(COUNT)]))
        wanted = {name: tf.gather(tf.concat([part[name] for part in parts], axis=0), order) for name in returns}
        loss = loss_of(wanted)
    outputs, gradients = cached()
    for name in returns:
        np.testing.assert_allclose(outputs[name], wanted[name], rtol=1e-12, atol=1e-14)
    for actual, expected in zip(gradients, tape.gradient(loss, variables[:2])):
        np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-13)
    np.testing.assert_array_equal(gradients[2], [0, 0])


def test_only_a_micro_batch_is_computed_at_a_time(layer):
    function, returns, variables = layer
    seen = []

    def watched(part):
        seen.append(part["view"]["x"].shape[0])
        return function(part)

    @tf.function
    def run():
        with tf.GradientTape() as tape:
            x = tf.zeros([ROWS, 5], tf.float64)
            outputs = micro_batches.outputs_with_gradient(watched, {"view": {"x": x}}, COUNT, returns, variables)
            loss = loss_of(outputs)
        return tape.gradient(loss, variables)

    run.get_concrete_function()
    assert seen == [ROWS // COUNT] * 2  # A loop's body for each pass.


with_memory = functools.partial(TinyRun, make_memory=functools.partial(Memory, queue_size=5 * BATCH, decay=0.9))


@pytest.mark.slow
def test_one_micro_batch_is_the_batch():
    plain, run = with_memory(), with_memory(micro_batch_size=BATCH)
    tiny_run.assert_same_records(plain.run(2), run.run(2), 1e-9)
    for expected, actual in zip(plain.values(), run.values()):
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_replicas_agree():
    one, two = with_memory(micro_batch_size=4), with_memory(2, micro_batch_size=4)
    tiny_run.assert_same_records(one.run(2), two.run(2), 1e-9)
    for expected, actual in zip(one.values(), two.values()):
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"micro_batch_size": 0}, "micro_batch_size is 0"),
        ({"micro_batch_size": 2.0}, "micro_batch_size is 2.0"),
        ({"micro_batch_norm": "local"}, "micro_batch_norm is 'local'"),
    ],
)
def test_senseless_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        TinyRun(**settings)


def test_a_micro_batch_must_divide_the_batch():
    stage = TinyRun(micro_batch_size=6).stage
    stage.check_batch(12, 2)
    for batch, replicas in ((8, 1), (12, 4)):
        with pytest.raises(UserError, match=f"is 6, for a global batch of {batch} on {replicas} replica"):
            stage.check_batch(batch, replicas)
