"""The one convolution in this project, and on CPUs a quicker and smaller way to its kernel's gradient.

oneDNN, which computes TensorFlow's convolutions on x86 CPUs, is quick in bfloat16 forward and to the inputs, but
reaches a fifth to a half of that for the kernel's gradient of small maps with many channels. That gradient is a
convolution too: of the inputs by the outputs' gradient, with examples and channels exchanged. `docs/performance.md` has
the figures, and what else was tried.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from simclr_tf.core.tf import keras, tf

# Examples x positions that one exchanged convolution takes: 64 channels of them are 1 MiB in bfloat16, a core's cache.
_PART = 8192
# Replicas are traced in threads of their own.
_here = threading.local()


@contextlib.contextmanager
def cpu_kernel_gradients(on: bool = True) -> Iterator[None]:
    """Within it, convolutions compute gradients as it is best on a CPU.

    The kernel's gradient is a forward convolution where oneDNN gains by it, and in float32 comes before the inputs'
    one, for the memory. For CPUs without XLA: the values agree up to rounding everywhere, but other devices and
    compilers have good kernel gradients of their own.
    """
    before = getattr(_here, "on", False)
    _here.on = on
    try:
        yield
    finally:
        _here.on = before


def fixed_padding(kernel_size: int) -> list[list[int]]:
    """Padding of a convolution that does not depend on the input's size: (k - 1) // 2 before, the rest after."""
    before = (kernel_size - 1) // 2
    pair = [before, kernel_size - 1 - before]
    return [[0, 0], pair, pair, [0, 0]]


def exchange_pays(kernel_shape: tf.TensorShape, positions: int | None, dtype: tf.DType) -> bool:
    """Whether the exchanged gradient is the quicker one on a CPU.

    Args:
      kernel_shape: [k, k, C, F].
      positions: of the output's map, H' x W'; None where unknown.
      dtype: that the convolution computes in.
    """
    size, _, *channels = kernel_shape
    if dtype != tf.bfloat16 or size == 1 or min(channels) < 32 or positions is None:
        return False
    return positions <= 64 or (positions <= 256 and min(channels) >= 128)


def exchanged_gradient(inputs: tf.Tensor, gradient: tf.Tensor, *, kernel_size: int, strides: int) -> tf.Tensor:
    """The gradient of a convolution with respect to its kernel, as a forward convolution.

    dK[i, j, c, f] = sum over n, y, x of inputs[n, s y + i, s x + j, c] gradient[n, y, x, f]: channels take the place of
    examples, examples that of channels, the gradient that of the kernel, and its stride becomes a dilation.

    Args:
      inputs: [B, H, W, C]; padded already when `strides` is above 1, as `convolve` does.
      gradient: [B, H', W', F], of the outputs.
      kernel_size: k.
      strides: s.

    Returns:
      [k, k, C, F].
    """
    batch, height, width, _ = gradient.shape
    part = batch if None in (batch, height, width) else max(32, _PART // (height * width) // 32 * 32)

    def of(inputs: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
        return tf.nn.conv2d(
            tf.transpose(inputs, [3, 1, 2, 0]),
            tf.transpose(gradient, [1, 2, 0, 3]),
            1,
            fixed_padding(kernel_size) if strides == 1 else "VALID",
            dilations=strides,
        )

    if batch is None or batch <= part:
        exchanged = of(inputs, gradient)
    else:
        parts = [of(inputs[i : i + part], gradient[i : i + part]) for i in range(0, batch, part)]
        wide = tf.float64 if gradient.dtype == tf.float64 else tf.float32
        exchanged = tf.cast(tf.add_n([tf.cast(part, wide) for part in parts]), gradient.dtype)
    # A stride may leave a last row and column that no window reached.
    return tf.transpose(exchanged[:, :kernel_size, :kernel_size], [1, 2, 0, 3])


def _with_own_gradient(
    inputs: tf.Tensor, kernel: tf.Tensor, *, strides: int, padding: str, exchange: bool
) -> tf.Tensor:
    """A convolution whose kernel's gradient is exchanged, or else comes before its inputs' one.

    Left to itself TensorFlow hurries back through the network and leaves kernels' gradients for later, while all that
    they are made of stays in memory: in float32 a fifth of a step's memory. In bfloat16 the order gains 4 % of memory
    and costs 1 % of the time, and is left to TensorFlow.
    """

    @tf.custom_gradient
    def convolution(inputs, kernel):
        def gradients(gradient):
            how = {"strides": [1, strides, strides, 1], "padding": padding, "out_backprop": gradient}
            if exchange:
                to_kernel = exchanged_gradient(inputs, gradient, kernel_size=kernel.shape[0], strides=strides)
            else:
                to_kernel = tf.raw_ops.Conv2DBackpropFilter(input=inputs, filter_sizes=kernel.shape, **how)
            with tf.control_dependencies([] if exchange else [to_kernel]):
                to_inputs = tf.raw_ops.Conv2DBackpropInput(input_sizes=tf.shape(inputs), filter=kernel, **how)
            return to_inputs, to_kernel

        return tf.nn.conv2d(inputs, kernel, strides, padding), gradients

    return convolution(inputs, kernel)


def convolve(inputs: tf.Tensor, kernel: tf.Tensor, *, strides: int = 1) -> tf.Tensor:
    """2-D convolution with padding that does not depend on the input's size.

    Args:
      inputs: [B, H, W, C].
      kernel: [k, k, C, F] of the same type.
      strides: SAME at 1; when above, padded by `fixed_padding` and then VALID. A kernel of 1x1 takes every `strides`-th
        row and column first: oneDNN's gradient of a strided 1x1 kernel writes outside its memory (docs/performance.md).

    Returns:
      [B, ceil(H / strides), ceil(W / strides), F].
    """
    size, padding = kernel.shape[0], "SAME"
    if size == 1 and strides > 1:
        inputs, strides = inputs[:, ::strides, ::strides], 1
    height, width = inputs.shape[1:3]
    positions = None if None in (height, width) else -(-height // strides) * -(-width // strides)
    if strides > 1:
        # As an operation of its own: with explicit padding, TensorFlow on CPUs takes gradients that are ten times
        # slower (and in bfloat16 a hundred). XLA folds it into the convolution.
        inputs, padding = tf.pad(inputs, fixed_padding(size)), "VALID"
    if getattr(_here, "on", False):
        exchange = exchange_pays(kernel.shape, positions, kernel.dtype)
        if exchange or kernel.dtype != tf.bfloat16:
            return _with_own_gradient(inputs, kernel, strides=strides, padding=padding, exchange=exchange)
    return tf.nn.conv2d(inputs, kernel, strides, padding)


class Conv(keras.layers.Layer):
    """2-D convolution; SAME at stride 1, explicit padding and VALID when strided."""

    def __init__(self, filters: int, kernel_size: int, *, strides: int = 1, use_bias: bool = False, **kwargs):
        """Creates a convolution with `filters` outputs and a square kernel."""
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
            initializer=keras.initializers.VarianceScaling(scale=1.0, mode="fan_in", distribution="truncated_normal"),
        )
        self.bias = self.add_weight("bias", shape=[self._filters], initializer="zeros") if self._use_bias else None
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """[B, H, W, C] -> [B, ceil(H / strides), ceil(W / strides), filters]."""
        outputs = convolve(inputs, tf.convert_to_tensor(self.kernel), strides=self._strides)
        return outputs if self.bias is None else outputs + self.bias
