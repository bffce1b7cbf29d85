"""Sums over maps in bfloat16 against float64, on CPUs without XLA, and that no layer adds up by another way."""

from __future__ import annotations

import ast

import numpy as np
import pytest
from sources import MODULES

from simclr_tf.core.tf import keras, tf
from simclr_tf.models.blocks import SelectiveKernel, SqueezeExcite, bottleneck
from simclr_tf.models.convolution import convolve, cpu_kernel_gradients
from simclr_tf.models.means import flat, scale_channels, spatial_mean
from simclr_tf.models.normalization import BatchNorm

# A bfloat16 number has 8 bits.
ROUNDING = 2**-8
MIXED = keras.mixed_precision.Policy("mixed_bfloat16")


def maps(kind: str, size: int, channels: int = 8) -> tf.Tensor:
    rng = np.random.default_rng(0)
    shape = (2, size, size, channels)
    values = np.maximum(rng.normal(size=shape), 0) if kind == "relu" else rng.uniform(1, 2, shape)
    return tf.cast(values, tf.bfloat16)


def error(actual, expected) -> float:
    """Largest difference, relative to the largest value."""
    actual, expected = (tf.cast(value, tf.float64).numpy() for value in (actual, expected))
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("kind", ["relu", "uniform"])
@pytest.mark.parametrize("size", [56, 112, 160])
def test_means_of_maps_keep_their_digits(kind, size):
    x = maps(kind, size)
    expected = tf.reduce_mean(tf.cast(x, tf.float64), axis=[1, 2])
    for actual in (spatial_mean(x), flat(x), tf.function(spatial_mean)(x), spatial_mean(x, keepdims=True)[:, 0, 0]):
        assert actual.dtype == x.dtype
        assert error(actual, expected) < ROUNDING


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_wide_types_compute_as_they_did(dtype):
    x = tf.cast(maps("relu", 56), dtype)
    np.testing.assert_array_equal(spatial_mean(x), tf.reduce_mean(x, axis=[1, 2]))
    np.testing.assert_array_equal(scale_channels(x, x[:, :1, :1]), x * x[:, :1, :1])
    vectors = x[:, 0, 0]
    assert flat(vectors) is vectors


def gradients(function, inputs, dtype):
    inputs = [tf.cast(value, dtype) for value in inputs]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = function(*inputs)
        # Of one sign, as sums of which digits are lost are.
        total = tf.reduce_sum(tf.cast(outputs, tf.float64))
    return [outputs, *tape.gradient(total, inputs)]


@pytest.mark.parametrize("size", [112, 160])
def test_factors_of_channels_get_the_whole_gradient(size):
    x = maps("uniform", size)
    inputs = [x, x[:, :1, :1]]
    for actual, expected in zip(
        gradients(scale_channels, inputs, tf.bfloat16), gradients(scale_channels, inputs, tf.float64)
    ):
        assert error(actual, expected) < ROUNDING


@pytest.mark.parametrize("size, kernel, strides", [(112, 1, 1), (112, 3, 1), (56, 3, 2), (112, 7, 2)])
def test_kernels_of_convolutions_get_the_whole_gradient(size, kernel, strides):
    """As the loop takes it on CPUs."""

    def convolution(x, weights):
        with cpu_kernel_gradients():
            return convolve(x, weights, strides=strides)

    rng = np.random.default_rng(1)
    inputs = [maps("uniform", size, 4), tf.cast(rng.uniform(1, 2, (kernel, kernel, 4, 4)), tf.bfloat16)]
    for actual, expected in zip(
        gradients(convolution, inputs, tf.bfloat16), gradients(convolution, inputs, tf.float64)
    ):
        assert error(actual, expected) < 4 * ROUNDING


@pytest.mark.parametrize("channels", [1, 3, 32])
def test_batch_norm_of_several_replicas_gets_the_whole_gradient(channels):
    x = maps("uniform", 160, channels)
    found = {}
    for dtype in (MIXED, "float64"):
        layer = BatchNorm(dtype=dtype)
        layer.build(x.shape)
        with tf.GradientTape() as tape:
            # As with several replicas, which have no fused kernel.
            y = layer._explicit(tf.cast(x, layer.compute_dtype), tf.convert_to_tensor(layer.beta), True)
            total = tf.reduce_sum(tf.cast(y, tf.float64) * tf.cast(x, tf.float64))
        found[layer.compute_dtype] = [*tape.gradient(total, [layer.gamma, layer.beta]), layer.moving_mean]
    for actual, expected in zip(found["bfloat16"], found["float64"]):
        assert error(actual, expected) < 4 * ROUNDING


def block(kind: str, policy) -> keras.layers.Layer:
    keras.utils.set_random_seed(0)
    if kind == "sk":
        return SelectiveKernel(8, strides=1, sk_ratio=1 / 16, dtype=policy)
    return SqueezeExcite(8, reduced=4, dtype=policy)


@pytest.mark.parametrize("kind", ["sk", "se"])
def test_attention_over_channels_agrees_with_float64(kind):
    x = maps("uniform", 112)
    narrow, wide = block(kind, MIXED), block(kind, "float64")
    narrow(x), wide(tf.cast(x, tf.float64))
    for variable, other in zip(wide.variables, narrow.variables):
        variable.assign(tf.cast(other, tf.float64))
    assert error(narrow(x), wide(tf.cast(x, tf.float64))) < 8 * ROUNDING


def test_no_block_adds_up_maps_in_bfloat16():
    """Forward and backward, with selective kernels, squeeze-and-excitation and a projection."""
    layer = bottleneck(4, strides=1, project=True, sk_ratio=1 / 16, se_ratio=0.25, dtype=MIXED)

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(tf.cast(layer(x, training=True), tf.float32))
        return tape.gradient(total, [x, *layer.trainable_variables])

    operations = step.get_concrete_function(tf.TensorSpec([4, 16, 16, 4], tf.bfloat16)).graph.get_operations()
    sums = [op for op in operations if op.type in ("Mean", "Sum", "BiasAddGrad") and op.inputs[0].shape.rank == 4]
    assert {op.inputs[0].dtype for op in sums if op.inputs[0].shape[1] > 1} == {tf.float32}


def test_only_one_file_takes_means_of_maps():
    """Colors, which are float32 planes, apart."""
    names = ("reduce_mean", "reduce_sum", "reduce_variance", "moments")
    found = {
        name
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in names
        for value in [*node.args[1:], *(keyword.value for keyword in node.keywords if keyword.arg in ("axis", "axes"))]
        if isinstance(value, (ast.List, ast.Tuple)) and len(value.elts) > 1
    }
    assert found == {"simclr_tf.models.means", "simclr_tf.data.augment.color"}
