"""ResNet and SK-ResNet encoders."""

from __future__ import annotations

from collections.abc import Iterator

from simclr_tf.core import checks
from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import keras, tf
from simclr_tf.models.blocks import ConvNorm, ResidualBlock, basic_block, bottleneck
from simclr_tf.models.means import spatial_mean
from simclr_tf.models.remat import recomputed

# depth: (block, ratio of its output channels to its filters, number of blocks in each of the four groups)
DEPTHS = {
    10: (basic_block, 1, (1, 1, 1, 1)),
    18: (basic_block, 1, (2, 2, 2, 2)),
    34: (basic_block, 1, (3, 4, 6, 3)),
    50: (bottleneck, 4, (3, 4, 6, 3)),
    101: (bottleneck, 4, (3, 4, 23, 3)),
    152: (bottleneck, 4, (3, 8, 36, 3)),
    200: (bottleneck, 4, (3, 24, 36, 3)),
}
_STEMS = ("imagenet", "cifar")


class ResNet(keras.Model):
    """Post-activation ResNet; with `sk_ratio` above 0, it has selective kernels and ResNet-D's stem and shortcuts.

    Outputs have the published code's names: `initial_max_pool` (after the stem), `block_group1` .. `block_group4`,
    `final_avg_pool`. He et al. 2016; Li et al. 2019; Chen et al. 2020b.
    """

    def __init__(
        self,
        depth: int = 50,
        width: float = 1,
        sk_ratio: float = 0.0,
        se_ratio: float = 0.0,
        stem: str = "imagenet",
        remat: bool = False,
        **kwargs,
    ):
        """Creates the layers.

        Args:
          depth: 10, 18, 34, 50, 101, 152 or 200; 10 has one block in each group, for tests and very small machines.
          width: factor of every channel count; 1-4 in the paper, fractions such as 0.25 for small experiments.
          sk_ratio: bottleneck ratio of selective kernels, 1/16 in the paper; 0 turns them off. Needs depth 50 or more.
          se_ratio: bottleneck ratio of squeeze-and-excitation, relative to the channels of a block's 3x3 convolution; 0
            turns it off.
          stem: "imagenet" (stride 4) or "cifar" (one 3x3 at stride 1, no pooling, for images of about 32 pixels).
          remat: whether the backward pass computes each residual block's activations again instead of keeping them:
            less memory for about a third more work. It changes no result and is not part of the architecture.
          **kwargs: `name` and `dtype` (a Keras policy).

        Raises:
          UserError: for a value out of range, or selective kernels without bottleneck blocks.
        """
        super().__init__(**kwargs)
        checks.choice("ResNet.depth", depth, DEPTHS)
        checks.choice("ResNet.stem", stem, _STEMS)
        if not isinstance(width, (int, float)) or width <= 0 or (64 * width) % 2:
            raise UserError(
                f"ResNet.width is {width!r}; use 1-4, or a fraction that keeps 64 x width even, such as 0.25"
            )
        for name, ratio in (("sk_ratio", sk_ratio), ("se_ratio", se_ratio)):
            checks.number(f"ResNet.{name}", ratio, least=0, most=1, hint=", such as 0.0625; 0 is off")
        checks.switch("ResNet.remat", remat)
        block, expansion, counts = DEPTHS[depth]
        if sk_ratio > 0 and block is basic_block:
            raise UserError(
                f"ResNet.sk_ratio is {sk_ratio} at depth {depth}, but selective kernels replace the 3x3 convolution of "
                "a bottleneck block, which only depths 50 and up have; set sk_ratio to 0 or choose a greater depth"
            )
        self.depth, self.width, self.stem_kind = depth, width, stem
        self.sk_ratio, self.se_ratio = sk_ratio, se_ratio
        self.remat = remat
        policy = self._dtype_policy
        base = int(64 * width)
        self.feature_dim = 8 * base * expansion

        if stem == "cifar":
            self.stem = [ConvNorm(base, 3, dtype=policy)]
        elif sk_ratio > 0:
            self.stem = [
                ConvNorm(base // 2, 3, strides=2, dtype=policy),
                ConvNorm(base // 2, 3, dtype=policy),
                ConvNorm(base, 3, dtype=policy),
            ]
        else:
            self.stem = [ConvNorm(base, 7, strides=2, dtype=policy)]
        self._pools = stem == "imagenet"
        for group, count in enumerate(counts):
            blocks = [
                block(
                    base * 2**group,
                    strides=2 if group > 0 and i == 0 else 1,
                    project=i == 0,
                    sk_ratio=sk_ratio,
                    se_ratio=se_ratio,
                    dtype=policy,
                )
                for i in range(count)
            ]
            setattr(self, f"block_group{group + 1}", blocks)

    @property
    def block_groups(self) -> list[list]:
        """The four groups of residual blocks."""
        return [self.block_group1, self.block_group2, self.block_group3, self.block_group4]

    def call(self, images: tf.Tensor, training: bool = False, frozen: int = 0) -> dict[str, tf.Tensor]:
        """Encodes images.

        Args:
          images: [B, H, W, 3] in [0, 1].
          training: batch norm's mode.
          frozen: number of `sections()`, from the stem on, that always stay in inference mode and pass no gradient.

        Returns:
          Name -> tensor: maps [B, H', W', C], and `final_avg_pool`, [B, feature_dim], in the compute type.
        """
        x, outputs = images, {}
        for i, (name, layers) in enumerate(self.sections().items()):
            trains = training and i >= frozen
            for layer in layers:
                if trains and self.remat and isinstance(layer, ResidualBlock):
                    x = recomputed(layer, x, training=True)
                else:
                    x = layer(x, training=trains)
            if name == "initial_max_pool" and self._pools:
                x = tf.nn.max_pool2d(x, 3, 2, "SAME")
            if i == frozen - 1:
                x = tf.stop_gradient(x)
            outputs[name] = x
        outputs["final_avg_pool"] = spatial_mean(x)
        return outputs

    def sections(self) -> dict[str, list]:
        """Returns output name -> layers, for each section from the stem on."""
        groups = {f"block_group{i + 1}": blocks for i, blocks in enumerate(self.block_groups)}
        return {"initial_max_pool": self.stem, **groups}

    def units(self) -> Iterator[keras.layers.Layer]:
        """Yields every convolution and batch norm in the order in which the published code creates them."""
        for layers in self.sections().values():
            for layer in layers:
                yield from layer.units()

    def describe(self) -> dict:
        """Returns the constructor's arguments that define the architecture."""
        return {
            "depth": self.depth,
            "width": self.width,
            "sk_ratio": self.sk_ratio,
            "se_ratio": self.se_ratio,
            "stem": self.stem_kind,
        }
