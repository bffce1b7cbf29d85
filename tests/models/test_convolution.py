"""Convolutions and their gradients, whatever way they are computed."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_run
from exported_run import make_network
from graphs import convolutions

from simclr_tf.commands.export import module
from simclr_tf.core.tf import keras, tf
from simclr_tf.models import convolution
from simclr_tf.models.convolution import convolve, cpu_kernel_gradients
from simclr_tf.models.resnet import ResNet

# Size, channels in and out, kernel, stride, examples.
SHAPES = [(8, 32, 48, 3, 1, 3), (8, 32, 32, 3, 2, 2), (7, 32, 32, 3, 2, 2), (6, 32, 32, 5, 1, 2), (9, 32, 32, 7, 2, 2)]


def padded(size: int, kernel: int, stride: int) -> tuple[int, int]:
    before = (kernel - 1) // 2
    return before, kernel - 1 - before


def slow(inputs: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """The definition, one window at a time."""
    k = kernel.shape[0]
    around = padded(inputs.shape[1], k, stride)
    x = np.pad(inputs, [(0, 0), around, around, (0, 0)])
    size = -(-inputs.shape[1] // stride)
    outputs = np.zeros((len(x), size, size, kernel.shape[-1]))
    for row in range(size):
        for column in range(size):
            window = x[:, row * stride : row * stride + k, column * stride : column * stride + k]
            outputs[:, row, column] = np.tensordot(window, kernel, 3)
    return outputs


def gradients(inputs, kernel, upstream, stride: int, exchange: bool):
    """Returns outputs and both gradients, in a graph."""

    @tf.function
    def run():
        with cpu_kernel_gradients(exchange), tf.GradientTape() as tape:
            tape.watch([inputs, kernel])
            outputs = convolve(inputs, kernel, strides=stride)
        return outputs, *tape.gradient(outputs, [inputs, kernel], output_gradients=upstream)

    return run()


def operands(shape, dtype):
    size, channels, filters, k, stride, examples = shape
    rng = np.random.default_rng(0)
    x = rng.normal(size=(examples, size, size, channels))
    kernel = rng.normal(size=(k, k, channels, filters))
    upstream = rng.normal(size=(examples, -(-size // stride), -(-size // stride), filters))
    return [tf.cast(tf.constant(value), dtype) for value in (x, kernel, upstream)]


@pytest.fixture
def always(monkeypatch):
    """Every convolution that may exchange does, in any type."""
    monkeypatch.setattr(convolution, "exchange_pays", lambda *_: True)


def distance(one: tf.Tensor, other: tf.Tensor) -> float:
    one, other = (tf.cast(value, tf.float64) for value in (one, other))
    return float(tf.norm(one - other) / tf.norm(other))


@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_those_of_the_definition(shape):
    x, kernel, _ = operands(shape, tf.float64)
    np.testing.assert_allclose(
        convolve(x, kernel, strides=shape[4]), slow(x.numpy(), kernel.numpy(), shape[4]), rtol=1e-9
    )


@pytest.mark.parametrize("dtype, tolerance", [(tf.float64, 1e-12), (tf.float32, 1e-5), (tf.bfloat16, 6e-3)])
@pytest.mark.parametrize("shape", SHAPES)
def test_exchanged_gradients_are_the_plain_ones(always, shape, dtype, tolerance):
    x, kernel, upstream = operands(shape, dtype)
    exact = gradients(*(tf.cast(value, tf.float64) for value in (x, kernel, upstream)), shape[4], False)
    plain = gradients(x, kernel, upstream, shape[4], False)
    for expected, usual, actual in zip(exact, plain, gradients(x, kernel, upstream, shape[4], True)):
        assert actual.dtype == dtype and actual.shape == expected.shape
        # Where TensorFlow goes without oneDNN it sums bfloat16 less exactly, the plain way as well.
        assert distance(actual, expected) < max(tolerance, 1.5 * distance(usual, expected))


def test_many_examples_are_summed_part_by_part(always, monkeypatch):
    monkeypatch.setattr(convolution, "_PART", 32 * 16)
    x, kernel, upstream = operands((4, 3, 2, 3, 1, 70), tf.float64)  # Parts of 32, 32 and 6.
    _, _, expected = gradients(x, kernel, upstream, 1, False)
    assert distance(gradients(x, kernel, upstream, 1, True)[2], expected) < 1e-12


@pytest.mark.parametrize(
    "kernel, positions, dtype, pays",
    [
        ([3, 3, 512, 512], 16, tf.bfloat16, True),
        ([3, 3, 256, 512], 64, tf.bfloat16, True),
        ([3, 3, 128, 128], 256, tf.bfloat16, True),
        ([3, 3, 64, 64], 1024, tf.bfloat16, False),
        ([3, 3, 64, 128], 256, tf.bfloat16, False),
        ([1, 1, 512, 512], 16, tf.bfloat16, False),
        ([3, 3, 512, 512], 16, tf.float32, False),
        ([3, 3, 3, 64], 16, tf.bfloat16, False),
        ([3, 3, 512, 512], None, tf.bfloat16, False),
    ],
)
def test_choice(kernel, positions, dtype, pays):
    assert convolution.exchange_pays(tf.TensorShape(kernel), positions, dtype) is pays


def conv_types(exchange: bool) -> list[str]:
    """The operations of a small network's gradient."""
    encoder = ResNet(**tiny_run.TINY | {"width": 0.5}, dtype=keras.mixed_precision.Policy("mixed_bfloat16"))

    @tf.function
    def run(images):
        with cpu_kernel_gradients(exchange), tf.GradientTape() as tape:
            loss = tf.reduce_sum(encoder(images, training=True)["final_avg_pool"])
        return tape.gradient(loss, encoder.trainable_variables)

    graph = run.get_concrete_function(tf.TensorSpec([2, 16, 16, 3])).graph
    return [operation.type for operation in graph.get_operations()]


def test_nothing_is_exchanged_unless_asked_for():
    """Compilers for other devices see plain gradients."""
    plain, exchanged = conv_types(False), conv_types(True)
    assert plain.count("Conv2DBackpropFilter") == plain.count("Conv2D")
    assert exchanged.count("Conv2DBackpropFilter") < plain.count("Conv2DBackpropFilter")
    assert exchanged.count("Conv2DBackpropInput") == plain.count("Conv2DBackpropInput")


# Size, channels in and out, kernel, stride, examples.
POINTS = [(8, 4, 6, 1, 2, 3), (7, 12, 5, 1, 2, 2), (9, 3, 4, 1, 3, 5), (1, 8, 8, 1, 2, 1)]


@pytest.mark.parametrize("shape", POINTS)
def test_strided_points_are_the_plain_convolution(shape):
    x, kernel, upstream = operands(shape, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch([x, kernel])
        outputs = tf.nn.conv2d(x, kernel, shape[4], "VALID")
    expected = outputs, *tape.gradient(outputs, [x, kernel], output_gradients=upstream)
    for own in (False, True):
        for one, other in zip(expected, gradients(x, kernel, upstream, shape[4], own)):
            np.testing.assert_allclose(other, one, rtol=1e-12, atol=1e-12)


def gradient_graph(call, variables) -> tf.Graph:
    @tf.function(autograph=False)
    def run(images):
        with cpu_kernel_gradients(), tf.GradientTape() as tape:
            loss = tf.reduce_sum(call(images))
        return tape.gradient(loss, variables)

    return run.get_concrete_function(tf.TensorSpec([None, 32, 32, 3])).graph


def check(found: list[tuple[str, tuple[int, ...], int]]) -> None:
    for kind in ("Conv2D", "Conv2DBackpropFilter", "Conv2DBackpropInput"):
        strides = {(size, stride) for operation, size, stride in found if operation == kind}
        assert ((1, 1), 1) in strides and ((3, 3), 2) in strides  # The search finds them.
    assert not [entry for entry in found if entry[1] == (1, 1) and entry[2] > 1]


@pytest.mark.parametrize(
    "encoder",
    [
        {},
        {"depth": 29, "stem": "imagenet"},
        {"depth": 29, "sk_ratio": 0.0625, "stem": "imagenet"},
        {"se_ratio": 0.25, "remat": True},
    ],
    ids=["basic", "bottleneck", "selective", "squeezed"],
)
def test_training_has_no_strided_points(encoder):
    """oneDNN's gradient of their kernels writes outside its memory where batch and threads do not agree."""
    network = ResNet(**{**tiny_run.TINY, **encoder})
    network.build([None, 32, 32, 3])
    call = lambda images: network(images, training=True)["final_avg_pool"]  # noqa: E731
    check(convolutions(gradient_graph(call, network.trainable_variables)))


def test_exports_have_no_strided_points(tmp_path):
    """Whoever fine-tunes one takes gradients of what was exported."""
    made = module.make_module(make_network(), module.FEATURES, "final_avg_pool", {})
    tf.saved_model.save(made, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    call = lambda images: loaded(images, training=True)  # noqa: E731
    check(convolutions(gradient_graph(call, loaded.trainable_variables)))


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"replicas": 2}, {"encoder": {"remat": True}}], ids=["replicas", "remat"])
def test_a_training_step_is_the_same(always, monkeypatch, settings):
    """Exchanged gradients under strategies, and inside recomputed blocks."""
    exchanged = tiny_run.TinyRun(**settings)
    records = exchanged.run(2)
    monkeypatch.setattr(convolution, "exchange_pays", lambda *_: False)
    plain = tiny_run.TinyRun(**settings)
    tiny_run.assert_same_records(plain.run(2), records, 1e-9)
    for expected, actual in zip(plain.values(), exchanged.values()):
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)
