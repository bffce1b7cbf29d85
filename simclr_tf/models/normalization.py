"""Batch norm over the global batch: the project's only implementation."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from simclr_tf.core.tf import keras, tf
from simclr_tf.distribute import collectives
from simclr_tf.models.means import scale_channels

_FUSED_TYPES = (tf.float32, tf.bfloat16, tf.float16)
# Thread-local, since each replica is traced in a thread of its own.
_frozen = threading.local()


@tf.autograph.experimental.do_not_convert  # AutoGraph cannot convert generators, and warns.
@contextlib.contextmanager
def frozen_moving_averages() -> Iterator[None]:
    """While active, training mode does not update moving averages: for extra forward passes."""
    before = getattr(_frozen, "on", False)
    _frozen.on = True
    try:
        yield
    finally:
        _frozen.on = before


def _moments(x: tf.Tensor, near: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns mean and variance over all replicas' examples, in one pass, given a value near the mean.

    The sums take differences from that value: sums of plain squares lose digits where the mean is much larger than the
    standard deviation.
    """
    difference = tf.cast(x, near.dtype) - near
    axes = list(range(x.shape.rank - 1))
    mean, square = tf.reduce_mean(difference, axes), tf.reduce_mean(tf.square(difference), axes)
    mean, square = tf.unstack(collectives.all_mean(tf.stack([mean, square])))
    return near + mean, tf.maximum(square - tf.square(mean), 0.0)  # Rounding can make the difference negative.


class BatchNorm(keras.layers.Layer):
    """Batch norm whose training statistics cover all replicas' examples (Ioffe & Szegedy 2015).

    A single replica uses TensorFlow's fused kernel. Several replicas average their first two moments. Variables and
    statistics have the policy's variable type (float32 under bfloat16). As in the published code, the moving variance
    is the biased one; the fused kernel's has Bessel's correction, which is undone.
    """

    def __init__(
        self,
        *,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        center: bool = True,
        gamma_initializer: str = "ones",
        **kwargs,
    ):
        """Creates the layer.

        Args:
          momentum: share of a moving average that each step keeps.
          epsilon: constant added to the variance.
          center: whether to add a trainable `beta`.
          gamma_initializer: "ones", or "zeros" at the end of a residual branch.
          **kwargs: `name` and `dtype` (a Keras policy), as for any Keras layer.
        """
        super().__init__(**kwargs)
        self._momentum = momentum
        self._epsilon = epsilon
        self._center = center
        self._gamma_initializer = gamma_initializer

    def build(self, input_shape) -> None:
        """Creates variables of shape [C] for inputs of shape [..., C]."""

        def weight(name: str, initializer: str, **kwargs):
            return self.add_weight(
                name,
                shape=[int(input_shape[-1])],
                dtype=self.variable_dtype,
                initializer=initializer,
                experimental_autocast=False,
                **kwargs,
            )

        def moving(name: str, initializer: str):
            # The statistics are global, so all replicas compute the same averages, and ON_READ needs no exchange.
            return weight(
                name,
                initializer,
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )

        self.gamma = weight("gamma", self._gamma_initializer)
        self.beta = weight("beta", "zeros") if self._center else None
        self.moving_mean = moving("moving_mean", "zeros")
        self.moving_variance = moving("moving_variance", "ones")
        super().build(input_shape)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Normalizes.

        Args:
          inputs: [B, H, W, C] or [B, C].
          training: whether to normalize by the global batch's statistics, and update the moving averages with them;
            otherwise the moving averages normalize.

        Returns:
          The normalized inputs, of the same shape and type.
        """
        flat = inputs.shape.rank == 2
        x = inputs[:, None, None, :] if flat else inputs
        beta = self.beta if self._center else tf.zeros_like(self.gamma)
        if x.dtype in _FUSED_TYPES and (not training or collectives.num_replicas() == 1):
            y = self._fused(x, beta, training)
        else:
            y = self._explicit(x, beta, training)
        return y[:, 0, 0, :] if flat else y

    def _fused(self, x: tf.Tensor, beta: tf.Tensor, training: bool) -> tf.Tensor:
        # The raw operation, since TensorFlow's public wrapper raises an epsilon of 1e-5 to 1.001e-5.
        outputs = tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=self.gamma,
            offset=beta,
            mean=tf.zeros([0], self.gamma.dtype) if training else self.moving_mean,
            variance=tf.zeros([0], self.gamma.dtype) if training else self.moving_variance,
            epsilon=self._epsilon,
            is_training=training,
        )
        if training:
            # Undoes Bessel's correction.
            count = tf.cast(tf.size(x) // tf.shape(x)[-1], self.gamma.dtype)
            self._move(outputs.batch_mean, outputs.batch_variance * (count - 1) / tf.maximum(count, 1))
        return outputs.y

    def _explicit(self, x: tf.Tensor, beta: tf.Tensor, training: bool) -> tf.Tensor:
        if training:
            mean, variance = _moments(x, tf.stop_gradient(tf.convert_to_tensor(self.moving_mean)))
            self._move(mean, variance)
        else:
            mean, variance = tf.convert_to_tensor(self.moving_mean), tf.convert_to_tensor(self.moving_variance)
        scale = self.gamma * tf.math.rsqrt(variance + tf.constant(self._epsilon, variance.dtype))
        return scale_channels(x, scale, beta - mean * scale)

    def _move(self, mean: tf.Tensor, variance: tf.Tensor) -> None:
        if getattr(_frozen, "on", False):
            return
        for average, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            kept = tf.constant(self._momentum, average.dtype)
            average.assign(average * kept + tf.stop_gradient(value) * (1 - kept))
