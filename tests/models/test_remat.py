"""Recomputation changes no value, no gradient and no moving average, and computes blocks twice."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_run
from tiny_run import TINY, TinyRun

from simclr_tf.core.errors import UserError
from simclr_tf.core.precision import POLICIES
from simclr_tf.core.tf import keras, tf
from simclr_tf.models.resnet import ResNet


def built(remat: bool, precision: str = "float64", **settings) -> ResNet:
    keras.utils.set_random_seed(0)
    encoder = ResNet(**{**TINY, **settings}, remat=remat, dtype=keras.mixed_precision.Policy(POLICIES[precision]))
    encoder(tf.zeros([1, 16, 16, 3]), training=False)
    rng = np.random.default_rng(0)
    for variable in encoder.trainable_variables:  # Else the branches' zero gammas would hide their gradients.
        variable.assign(variable + 0.1 * rng.normal(size=variable.shape))
    return encoder


def step(encoder: ResNet, *, jit_compile: bool = False):
    """Returns the traced step: outputs and gradients."""

    @tf.function(jit_compile=jit_compile, input_signature=[tf.TensorSpec([4, 16, 16, 3], tf.float32)])
    def run(images):
        with tf.GradientTape() as tape:
            tape.watch(images)
            features = encoder(images, training=True)["final_avg_pool"]
            loss = tf.reduce_sum(tf.cast(features, tf.float32) ** 2)
        return features, *tape.gradient(loss, [images, *encoder.trainable_variables])

    return run


def images() -> tf.Tensor:
    return tf.random.stateless_uniform([4, 16, 16, 3], [1, 2])


CASES = {
    "basic": {},
    "selective kernels": {"depth": 29, "sk_ratio": 0.0625},
    "squeeze and excite": {"depth": 29, "se_ratio": 0.25},
}


@pytest.mark.parametrize(("case", "precision"), [*((case, "float64") for case in CASES), ("basic", "bfloat16")])
def test_same_values_gradients_and_averages(case, precision):
    results = []
    for remat in (False, True):
        encoder = built(remat, precision, **CASES[case])
        run = step(encoder)
        outputs = [run(images()) for _ in range(2)][-1]
        results.append([tensor.numpy().astype(np.float64) for tensor in (*outputs, *encoder.non_trainable_variables)])
    for plain, again in zip(*results):
        np.testing.assert_allclose(again, plain, rtol=1e-12, atol=1e-12 * max(1, np.max(np.abs(plain))))
    assert np.any(results[0][1])


def test_averages_move_once():
    encoder = built(True)
    step(encoder)(images())
    first = encoder.stem[0].norm
    once = encoder.block_group1[0].branch[0].norm
    # After one step from 0 a moving mean is a tenth of the batch's: compare with a plain pass.
    features = tf.nn.relu(first(encoder.stem[0].conv(tf.cast(images(), tf.float64)), training=True))
    mean = np.mean(encoder.block_group1[0].branch[0].conv(features), axis=(0, 1, 2))
    np.testing.assert_allclose(once.moving_mean, 0.1 * mean, rtol=1e-6)


def test_blocks_are_computed_twice():
    def convolutions(remat):
        graph = step(built(remat)).get_concrete_function().graph
        return sum(operation.type == "Conv2D" for operation in graph.get_operations())

    plain = convolutions(False)
    assert convolutions(True) == 2 * plain - 1  # All but the stem's.


@pytest.mark.slow
def test_compiled_step_agrees_and_computes_twice():
    plain, again = (step(built(remat, "float32"), jit_compile=True) for remat in (False, True))
    for a, b in zip(plain(images()), again(images())):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4 * np.max(np.abs(a)))

    def convolutions(run):
        program = run.experimental_get_compiler_ir(images())(stage="optimized_hlo")
        return sum(" convolution(" in line for line in program.splitlines())

    # XLA merges what is computed twice if it can; here it must not (of a tiny net's 11 it may simplify a few).
    assert convolutions(again) >= convolutions(plain) + 8


def test_inference_is_left_alone():
    encoder = built(True)
    graph = tf.function(lambda x: encoder(x, training=False)["final_avg_pool"]).get_concrete_function(images()).graph
    assert all(operation.type != "IdentityN" for operation in graph.get_operations())


@pytest.mark.slow
def test_training_steps_agree_with_one_and_two_replicas():
    plain = TinyRun()
    expected = plain.run(2)
    for replicas in (1, 2):
        run = TinyRun(replicas, encoder={"remat": True})
        tiny_run.assert_same_records(expected, run.run(2), 1e-9)
        for a, b in zip(plain.values(), run.values()):
            np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-9)


def test_it_is_no_part_of_the_architecture():
    assert ResNet(**TINY, remat=True).describe() == ResNet(**TINY).describe()
    with pytest.raises(UserError, match="ResNet.remat is 'yes'"):
        ResNet(**TINY, remat="yes")
