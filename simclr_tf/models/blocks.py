"""Building blocks of encoders: convolution with batch norm, selective kernels, squeeze-and-excitation, residual blocks.

`units()` yields a block's convolutions and batch norms in the order in which the published code creates them, because
published checkpoints number them in that order.
"""

from __future__ import annotations

from collections.abc import Iterator

from simclr_tf.core.tf import keras, tf
from simclr_tf.models.convolution import Conv, fixed_padding
from simclr_tf.models.means import scale_channels, spatial_mean
from simclr_tf.models.normalization import BatchNorm


class ConvNorm(keras.layers.Layer):
    """Convolution, batch norm and optionally ReLU."""

    def __init__(
        self, filters: int, kernel_size: int, *, strides: int = 1, relu: bool = True, zero: bool = False, **kwargs
    ):
        """Creates the layers; `zero` starts gamma at 0, for the end of a residual branch."""
        super().__init__(**kwargs)
        policy = self._dtype_policy
        self.conv = Conv(filters, kernel_size, strides=strides, dtype=policy)
        self.norm = BatchNorm(gamma_initializer="zeros" if zero else "ones", dtype=policy)
        self._relu = relu

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """[B, H, W, C] -> [B, H / strides, W / strides, filters]."""
        outputs = self.norm(self.conv(inputs), training=training)
        return tf.nn.relu(outputs) if self._relu else outputs

    def units(self) -> Iterator[keras.layers.Layer]:
        """Yields the convolution and the batch norm."""
        yield self.conv
        yield self.norm


class SelectiveKernel(keras.layers.Layer):
    """Two streams of 3x3 convolutions, mixed by attention over the streams (Li et al. 2019, in SimCLRv2's variant)."""

    MIN_REDUCED_FILTERS = 32

    def __init__(self, filters: int, *, strides: int, sk_ratio: float, **kwargs):
        """Creates the layer; the attention's bottleneck has max(filters * sk_ratio, 32) channels."""
        super().__init__(**kwargs)
        policy = self._dtype_policy
        reduced = max(int(filters * sk_ratio), self.MIN_REDUCED_FILTERS)
        # Both streams in one convolution with twice the filters.
        self.streams = ConvNorm(2 * filters, 3, strides=strides, dtype=policy)
        self.reduce = ConvNorm(reduced, 1, dtype=policy)
        self.mix = Conv(2 * filters, 1, dtype=policy)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """[B, H, W, C] -> [B, H / strides, W / strides, filters]."""
        first, second = tf.split(self.streams(inputs, training=training), 2, axis=-1)
        pooled = spatial_mean(first + second, keepdims=True)
        mixing = self.mix(self.reduce(pooled, training=training))
        weights = tf.nn.softmax(tf.stack(tf.split(mixing, 2, axis=-1)), axis=0)
        return scale_channels(first, weights[0]) + scale_channels(second, weights[1])

    def units(self) -> Iterator[keras.layers.Layer]:
        """Yields convolutions and batch norms in the published order."""
        yield from self.streams.units()
        yield from self.reduce.units()
        yield self.mix


class SqueezeExcite(keras.layers.Layer):
    """Channel attention from the spatial mean (Hu et al. 2018)."""

    def __init__(self, width: int, *, reduced: int, **kwargs):
        """Creates the layer for inputs of `width` channels, with a bottleneck of `reduced`."""
        super().__init__(**kwargs)
        self.reduce = Conv(reduced, 1, use_bias=True, dtype=self._dtype_policy)
        self.expand = Conv(width, 1, use_bias=True, dtype=self._dtype_policy)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """[B, H, W, C] -> [B, H, W, C]."""
        pooled = spatial_mean(inputs, keepdims=True)
        return scale_channels(inputs, tf.sigmoid(self.expand(tf.nn.relu(self.reduce(pooled)))))

    def units(self) -> Iterator[keras.layers.Layer]:
        """Yields the two convolutions."""
        yield self.reduce
        yield self.expand


class Shortcut(keras.layers.Layer):
    """Projection shortcut: a strided 1x1 convolution, or ResNet-D's average pool and a plain one (He et al. 2019)."""

    def __init__(self, filters: int, *, strides: int, average_pool: bool, **kwargs):
        """Creates the projection to `filters` channels."""
        super().__init__(**kwargs)
        self._strides = strides
        self._average_pool = average_pool
        self.project = ConvNorm(
            filters, 1, strides=1 if average_pool else strides, relu=False, dtype=self._dtype_policy
        )

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """[B, H, W, C] -> [B, ceil(H / strides), ceil(W / strides), filters]."""
        if self._average_pool:
            strided = self._strides > 1
            if strided:  # At the edge of odd maps, zeros count in the average, as in the published code.
                inputs = tf.pad(inputs, fixed_padding(2))
            inputs = tf.nn.avg_pool2d(inputs, 2, self._strides, "VALID" if strided else "SAME")
        return self.project(inputs, training=training)

    def units(self) -> Iterator[keras.layers.Layer]:
        """Yields the convolution and the batch norm."""
        yield from self.project.units()


class ResidualBlock(keras.layers.Layer):
    """Two 3x3 convolutions (`BasicBlock`) or 1x1, 3x3, 1x1 (`Bottleneck`), plus the shortcut, then ReLU."""

    def __init__(self, branch: list, *, width: int, shortcut: Shortcut | None, se_filters: int, **kwargs):
        """Creates a block from the layers of its residual branch.

        Args:
          branch: layers of the residual branch, the last of them without ReLU.
          width: number of output channels.
          shortcut: projection shortcut, or None for the identity.
          se_filters: bottleneck channels of squeeze-and-excitation at the end of the branch; 0 for none.
          **kwargs: `name` and `dtype` (a Keras policy).
        """
        super().__init__(**kwargs)
        self.shortcut = shortcut
        self.branch = branch
        self.excite = SqueezeExcite(width, reduced=se_filters, dtype=self._dtype_policy) if se_filters else None

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """[B, H, W, C] -> [B, H / strides, W / strides, width]."""
        shortcut = inputs if self.shortcut is None else self.shortcut(inputs, training=training)
        outputs = inputs
        for layer in self.branch:
            outputs = layer(outputs, training=training)
        if self.excite is not None:
            outputs = self.excite(outputs)
        return tf.nn.relu(outputs + shortcut)

    def units(self) -> Iterator[keras.layers.Layer]:
        """Yields convolutions and batch norms in the published order, the shortcut's first."""
        for part in [self.shortcut, *self.branch, self.excite]:
            if part is not None:
                yield from part.units()


def squeezed_filters(filters: int, se_ratio: float) -> int:
    """Returns squeeze-and-excitation's bottleneck channels, by the filters of the 3x3 convolution as published."""
    return max(1, int(filters * se_ratio)) if se_ratio > 0 else 0


def basic_block(
    filters: int, *, strides: int, project: bool, sk_ratio: float, se_ratio: float, dtype: keras.mixed_precision.Policy
) -> ResidualBlock:
    """Makes a block of ResNet-10/18/34: two 3x3 convolutions with `filters` channels, without selective kernels."""
    del sk_ratio  # `ResNet` refuses it.
    shortcut = Shortcut(filters, strides=strides, average_pool=False, dtype=dtype) if project else None
    branch = [
        ConvNorm(filters, 3, strides=strides, dtype=dtype),
        ConvNorm(filters, 3, relu=False, zero=True, dtype=dtype),
    ]
    se_filters = squeezed_filters(filters, se_ratio)
    return ResidualBlock(branch, width=filters, shortcut=shortcut, se_filters=se_filters, dtype=dtype)


def bottleneck(
    filters: int, *, strides: int, project: bool, sk_ratio: float, se_ratio: float, dtype: keras.mixed_precision.Policy
) -> ResidualBlock:
    """Makes a block of ResNet-50 and deeper: 1x1 and 3x3 (or selective kernels) to `filters`, 1x1 to 4 x `filters`."""
    width = 4 * filters
    shortcut = Shortcut(width, strides=strides, average_pool=sk_ratio > 0, dtype=dtype) if project else None
    if sk_ratio > 0:
        middle = SelectiveKernel(filters, strides=strides, sk_ratio=sk_ratio, dtype=dtype)
    else:
        middle = ConvNorm(filters, 3, strides=strides, dtype=dtype)
    branch = [ConvNorm(filters, 1, dtype=dtype), middle, ConvNorm(width, 1, relu=False, zero=True, dtype=dtype)]
    se_filters = squeezed_filters(filters, se_ratio)
    return ResidualBlock(branch, width=width, shortcut=shortcut, se_filters=se_filters, dtype=dtype)
