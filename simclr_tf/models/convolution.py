"""The project's only convolution, with a kernel gradient for CPUs that takes less time and memory.

oneDNN computes TensorFlow's convolutions on x86 CPUs. In bfloat16 its outputs and input gradients are fast, but for
small maps with many channels its kernel gradients reach only a fifth to a half of that speed. A kernel gradient is a
convolution, too: of the inputs with the output gradient, with examples and channels exchanged. `docs/performance.md`
has the figures and the alternatives that were tried.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from simclr_tf.core.precision import cpu_has_bfloat16
from simclr_tf.core.tf import keras, tf
from simclr_tf.models import means

# Examples x positions per exchanged convolution: with 64 channels 1 MiB in bfloat16, which fits a core's cache.
_PART = 8192
# Thread-local, since each replica is traced in a thread of its own.
_switch = threading.local()


@contextlib.contextmanager
def cpu_kernel_gradients(on: bool = True) -> Iterator[None]:
    """While active, convolutions compute their gradients in the best way for a CPU.

    A kernel gradient is computed as a forward convolution where oneDNN is faster at that. In float32, kernel gradients
    come before input gradients, to save memory. Use it on CPUs without XLA: elsewhere the values agree up to rounding,
    but other devices and compilers have good kernel gradients of their own.
    """
    before = getattr(_switch, "on", False)
    _switch.on = on
    try:
        yield
    finally:
        _switch.on = before


def fixed_padding(kernel_size: int) -> list[list[int]]:
    """Returns padding that does not depend on the input's size: (k - 1) // 2 before, the rest of k - 1 after."""
    before = (kernel_size - 1) // 2
    pair = [before, kernel_size - 1 - before]
    return [[0, 0], pair, pair, [0, 0]]


def exchange_pays(kernel_shape: tf.TensorShape, positions: int | None, dtype: tf.DType) -> bool:
    """Returns whether the exchanged kernel gradient is faster on CPUs, as measured in `docs/performance.md`.

    Args:
      kernel_shape: [k, k, C, F].
      positions: number of positions in the output map, H' x W'; None if unknown.
      dtype: type that the convolution computes in.
    """
    size, _, *channels = kernel_shape
    if dtype != tf.bfloat16 or size == 1 or min(channels) < 32 or positions is None:
        return False
    return positions <= 64 or (positions <= 256 and min(channels) >= 128)


def exchanged_gradient(inputs: tf.Tensor, gradient: tf.Tensor, *, kernel_size: int, strides: int) -> tf.Tensor:
    """Computes the gradient of a convolution with respect to its kernel, as a forward convolution.

    dK[i, j, c, f] = sum over n, y, x of inputs[n, s y + i, s x + j, c] gradient[n, y, x, f]: the channels take the role
    of the examples, the examples that of the channels, the gradient that of the kernel, and the stride that of a
    dilation.

    Args:
      inputs: [B, H, W, C]; already padded if `strides` is above 1, as in `convolve`.
      gradient: [B, H', W', F], gradient with respect to the outputs.
      kernel_size: k.
      strides: s.

    Returns:
      [k, k, C, F].
    """
    batch, height, width, _ = gradient.shape
    part = batch if None in (batch, height, width) else max(32, _PART // (height * width) // 32 * 32)

    def exchange(inputs: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
        return tf.nn.conv2d(
            tf.transpose(inputs, [3, 1, 2, 0]),
            tf.transpose(gradient, [1, 2, 0, 3]),
            1,
            fixed_padding(kernel_size) if strides == 1 else "VALID",
            dilations=strides,
        )

    if batch is None or batch <= part:
        exchanged = exchange(inputs, gradient)
    else:
        parts = [exchange(inputs[i : i + part], gradient[i : i + part]) for i in range(0, batch, part)]
        # bfloat16 would round the sum after every part.
        wide = tf.float64 if gradient.dtype == tf.float64 else tf.float32
        exchanged = tf.cast(tf.add_n([tf.cast(part, wide) for part in parts]), gradient.dtype)
    # With a stride, the inputs may end in rows and columns that no window reached; they make surplus rows and columns.
    return tf.transpose(exchanged[:, :kernel_size, :kernel_size], [1, 2, 0, 3])


def _with_own_gradient(
    inputs: tf.Tensor, kernel: tf.Tensor, *, strides: int, padding: str, exchange: bool
) -> tf.Tensor:
    """Convolves with a kernel gradient that is exchanged, or else computed before the input gradient.

    By default, TensorFlow rushes back through the network and computes kernel gradients later, while all their inputs
    stay in memory: in float32 a fifth of a step's memory. In bfloat16 TensorFlow keeps its order, since ours would save
    4 % of the memory and cost 1 % of the time.

    Without oneDNN's bfloat16, TensorFlow sums a kernel's gradient in bfloat16 (measured here: up to 57 % off), so that
    it is computed in float32.
    """

    def summable(x: tf.Tensor) -> tf.Tensor:
        return x if cpu_has_bfloat16() else means.wide(x)

    @tf.custom_gradient
    def convolution(inputs, kernel):
        def gradients(gradient):
            how = {"strides": [1, strides, strides, 1], "padding": padding}
            if exchange:
                to_kernel = exchanged_gradient(inputs, gradient, kernel_size=kernel.shape[0], strides=strides)
            else:
                x, upstream = (summable(value) for value in (inputs, gradient))
                to_kernel = tf.raw_ops.Conv2DBackpropFilter(
                    input=x, out_backprop=upstream, filter_sizes=kernel.shape, **how
                )
                to_kernel = tf.cast(to_kernel, kernel.dtype)
            with tf.control_dependencies([] if exchange else [to_kernel]):
                to_inputs = tf.raw_ops.Conv2DBackpropInput(
                    input_sizes=tf.shape(inputs), filter=kernel, out_backprop=gradient, **how
                )
            return to_inputs, to_kernel

        return tf.nn.conv2d(inputs, kernel, strides, padding), gradients

    return convolution(inputs, kernel)


def convolve(inputs: tf.Tensor, kernel: tf.Tensor, *, strides: int = 1) -> tf.Tensor:
    """Computes a 2-D convolution with padding that does not depend on the input's size.

    Args:
      inputs: [B, H, W, C].
      kernel: [k, k, C, F] of the same type.
      strides: step between windows. At 1 the padding is SAME; above, it is `fixed_padding`, then VALID.

    Returns:
      [B, ceil(H / strides), ceil(W / strides), F].
    """
    size, padding = kernel.shape[0], "SAME"
    if size == 1 and strides > 1:
        # oneDNN's gradient of a strided 1x1 kernel writes outside its memory (docs/performance.md).
        inputs, strides = inputs[:, ::strides, ::strides], 1
    height, width = inputs.shape[1:3]
    positions = None if None in (height, width) else -(-height // strides) * -(-width // strides)
    if strides > 1:
        # Padding is an operation of its own, since a convolution with explicit padding has gradients that are ten times
        # slower on CPUs (a hundred times in bfloat16). XLA folds the two into one.
        inputs, padding = tf.pad(inputs, fixed_padding(size)), "VALID"
    if getattr(_switch, "on", False):
        exchange = exchange_pays(kernel.shape, positions, kernel.dtype)
        if exchange or kernel.dtype != tf.bfloat16 or not cpu_has_bfloat16():
            return _with_own_gradient(inputs, kernel, strides=strides, padding=padding, exchange=exchange)
    return tf.nn.conv2d(inputs, kernel, strides, padding)


class Conv(keras.layers.Layer):
    """2-D convolution layer with the padding of `convolve`."""

    def __init__(self, filters: int, kernel_size: int, *, strides: int = 1, use_bias: bool = False, **kwargs):
        """Creates a convolution to `filters` channels with a square kernel."""
        super().__init__(**kwargs)
        self._filters = filters
        self._kernel_size = kernel_size
        self._strides = strides
        self._use_bias = use_bias

    def build(self, input_shape) -> None:
        """Creates the kernel, [k, k, C, filters]."""
        self.kernel = self.add_weight(
            "kernel",
            shape=[self._kernel_size, self._kernel_size, int(input_shape[-1]), self._filters],
            # As in the published code.
            initializer=keras.initializers.VarianceScaling(scale=1.0, mode="fan_in", distribution="truncated_normal"),
        )
        self.bias = self.add_weight("bias", shape=[self._filters], initializer="zeros") if self._use_bias else None
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """[B, H, W, C] -> [B, ceil(H / strides), ceil(W / strides), filters]."""
        outputs = convolve(inputs, tf.convert_to_tensor(self.kernel), strides=self._strides)
        return outputs if self.bias is None else outputs + self.bias
