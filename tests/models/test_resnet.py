"""Architectures: sizes as published, names, refusals, batch norm."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from simclr_tf.commands.convert.published import layout
from simclr_tf.core.errors import UserError
from simclr_tf.core.precision import resolve_precision
from simclr_tf.core.tf import tf
from simclr_tf.models import cost, normalization
from simclr_tf.models.heads import ProjectionHead
from simclr_tf.models.network import Network
from simclr_tf.models.normalization import BatchNorm
from simclr_tf.models.resnet import ResNet

TABLE_1 = Path(__file__).parents[2] / "docs" / "table1.json"
# Chen et al. 2020b, Table 1: depth, width, selective kernels -> millions of parameters.
PUBLISHED_MILLIONS = {
    (int(depth), int(width or 1), bool(selective)): figures[0]
    for name, figures in json.loads(TABLE_1.read_text())["rows"].items()
    for depth, width, selective in re.findall(r"r(\d+)(?:_(\d)x)?(_sk)?", name)
}


def spell_out(depth: int, width: int, selective: bool) -> int:
    """Counts an encoder's parameters by a formula of its own, from the paper's description."""
    blocks = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}[depth]
    base = 64 * width
    conv_norm = lambda k, i, o: k * k * i * o + 4 * o  # noqa: E731
    if selective:
        half = base // 2
        total = conv_norm(3, 3, half) + conv_norm(3, half, half) + conv_norm(3, half, base)
    else:
        total = conv_norm(7, 3, base)
    channels = base
    for group, count in enumerate(blocks):
        inner = base * 2**group
        for index in range(count):
            total += conv_norm(1, channels, 4 * inner) if index == 0 else 0
            total += conv_norm(1, channels, inner) + conv_norm(1, inner, 4 * inner)
            if selective:
                reduced = max(inner // 16, 32)
                total += conv_norm(3, inner, 2 * inner) + conv_norm(1, inner, reduced) + reduced * 2 * inner
            else:
                total += conv_norm(3, inner, inner)
            channels = 4 * inner
    return total


@pytest.mark.slow
@pytest.mark.parametrize("depth, width, selective", PUBLISHED_MILLIONS, ids=str)
def test_encoder_sizes_are_the_published_ones(depth, width, selective):
    with tf.Graph().as_default():  # Built on a graph, 795 million weights cost nothing.
        encoder = ResNet(depth, width, 0.0625 if selective else 0.0)
        encoder(tf.zeros([1, 64, 64, 3]))
        parameters = cost.count_parameters(encoder)
    assert round(parameters / 1e6) == PUBLISHED_MILLIONS[depth, width, selective]
    assert parameters == spell_out(depth, width, selective)


@pytest.fixture(scope="module")
def small() -> Network:
    return Network(
        make_encoder=lambda **kw: ResNet(18, 0.125, se_ratio=0.25, stem="cifar", **kw),
        make_head=lambda **kw: ProjectionHead(num_layers=2, output_dim=16, **kw),
        num_classes=7,
        classifier_layer=1,
        image_size=32,
    )


def test_squeeze_and_excitation_is_that_of_the_published_blocks():
    kernels = [unit.shape for unit in layout(50, 1, 0.0, 0.25, "imagenet") if unit.part == "excite"]
    assert kernels[:2] == [(1, 1, 256, 16), (1, 1, 16, 256)]  # A quarter of the 64 channels within the block.
    assert kernels[-2:] == [(1, 1, 2048, 128), (1, 1, 128, 2048)]


def test_outputs_are_named_and_shaped(small):
    outputs = small.outputs(tf.zeros([3, 32, 32, 3]), training=False)
    shapes = {name: tuple(value.shape) for name, value in outputs.items()}
    assert shapes == {
        "initial_max_pool": (3, 32, 32, 8),
        "block_group1": (3, 32, 32, 8),
        "block_group2": (3, 16, 16, 16),
        "block_group3": (3, 8, 8, 32),
        "block_group4": (3, 4, 4, 64),
        "final_avg_pool": (3, 64),
        "head_layer_0": (3, 64),
        "head_layer_1": (3, 64),
        "head_layer_2": (3, 16),
        "projection": (3, 16),
    }
    assert small.logits(tf.zeros([3, 32, 32, 3]), training=False).shape == (3, 7)


def test_description_rebuilds_the_network(small):
    again = Network.from_description(small.describe())
    assert again.describe() == small.describe()
    shapes = lambda network: [v.shape for part in network.parts().values() for v in part.variables]  # noqa: E731
    assert shapes(again) == shapes(small)


def test_flops_of_resnet50_are_about_the_published_four_billion():
    network = Network(make_encoder=lambda **kw: ResNet(50, 1, **kw), image_size=224)
    # He et al. 2016 count 3.8 G multiply-adds for their stride placement; stride in the 3x3 gives 4.1 G, twice as
    # FLOPs.
    assert 8.0e9 < cost.flops_per_image(network) < 8.4e9


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ResNet(18, sk_ratio=0.0625), "bottleneck"),
        (lambda: ResNet(34, sk_ratio=0.0625), "bottleneck"),
        (lambda: ResNet(51), "choose one of 10, 18, 34, 50"),
        (lambda: ResNet(50, width=0), "ResNet.width is 0"),
        (lambda: ResNet(50, width=0.3), "ResNet.width is 0.3"),
        (lambda: ResNet(50, sk_ratio=-1), "ResNet.sk_ratio is -1"),
        (lambda: ResNet(50, stem="small"), "imagenet, cifar"),
        (lambda: ProjectionHead(8, num_layers=5), "from 0 to 4"),
        (lambda: ProjectionHead(8, output_dim=0), "output_dim is 0"),
        (lambda: resolve_precision("half"), "choose one of auto"),
    ],
)
def test_impossible_architectures_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_classifier_layer_must_exist():
    with pytest.raises(UserError, match="projection head, which has 0 layer"):
        Network(make_encoder=lambda **kw: ResNet(18, 0.125, **kw), num_classes=2, classifier_layer=1, image_size=32)


@pytest.mark.parametrize("shape", [(6, 4, 4, 5), (8, 5)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_batch_norm_against_numpy(shape, dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(2.0, 3.0, shape).astype(dtype)
    layer = BatchNorm(dtype=dtype)
    layer.build(shape)
    layer.gamma.assign(rng.uniform(0.5, 1.5, shape[-1]))
    layer.beta.assign(rng.normal(size=shape[-1]))
    axes = tuple(range(len(shape) - 1))
    mean, variance = x.mean(axes), x.var(axes)
    tolerance = 1e-5 if dtype == "float32" else 1e-12

    def expected(mean, variance):
        return (x - mean) / np.sqrt(variance + 1e-5) * layer.gamma.numpy() + layer.beta.numpy()

    np.testing.assert_allclose(layer(x, training=True), expected(mean, variance), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(layer.moving_mean, 0.1 * mean, rtol=10 * tolerance)
    np.testing.assert_allclose(layer.moving_variance, 0.9 + 0.1 * variance, rtol=10 * tolerance)
    moved = expected(layer.moving_mean.numpy(), layer.moving_variance.numpy())
    np.testing.assert_allclose(layer(x, training=False), moved, rtol=tolerance, atol=tolerance)


def test_one_pass_moments_keep_their_digits():
    """Of a mean 300 times the deviation, float32's sums of squares alone would keep no two digits of the variance."""
    x = np.random.default_rng(0).normal(300.0, 1.0, (64, 5, 5, 3)).astype("float32")
    exact = x.astype("float64")
    mean, variance = normalization._moments(tf.constant(x), tf.constant([299.0, 301.5, 298.0]))
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(variance, exact.var((0, 1, 2)), rtol=1e-5)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_variables():
    network = Network(
        make_encoder=lambda **kw: ResNet(50, 0.125, 0.0625, **kw),
        make_head=lambda **kw: ProjectionHead(num_layers=2, **kw),
        num_classes=3,
        image_size=32,
        precision="bfloat16",
    )
    outputs = network.outputs(tf.zeros([2, 32, 32, 3]), training=False)
    assert outputs["block_group3"].dtype == tf.bfloat16
    assert {v.dtype for part in network.parts().values() for v in part.variables} == {tf.float32}
    assert network.logits(tf.zeros([2, 32, 32, 3]), training=False).dtype == tf.float32
