"""Random steps: augmentations as pure functions of images and seeds.

Inside a step images are channels first, [..., 3, H, W]: a CPU works several times faster on whole planes of red, green
and blue than on every third number.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from simclr_tf.core.randomness import fold_in, stream, uniform
from simclr_tf.core.tf import tf


class RandomStep:
    """An augmentation with its own stream of random numbers, called with `(images, seeds, **settings)`.

    The function it wraps takes channels-first images and, instead of seeds, numbers in [0, 1). `draw_all` makes the
    numbers of many steps at once, because the generator costs about 120 small operations however many it makes.

    Attributes:
      name: name of the stream; each step needs a different one.
      draws: number of random numbers that the step needs for each image.
      with_draws: function (images [..., 3, H, W], draws [..., n], **settings) -> images of the same shape.
    """

    def __init__(self, name: str, draws: int, function: Callable[..., tf.Tensor]):
        """Wraps a function; see the attributes."""
        self.name = name
        self.draws = draws
        self.with_draws = function
        functools.update_wrapper(self, function)

    def __call__(self, images: tf.Tensor, seeds: tf.Tensor, **settings: Any) -> tf.Tensor:
        """Applies the step.

        Args:
          images: [B, H, W, 3] or [H, W, 3] float32 in [0, 1].
          seeds: [B, 2] or [2] int32.
          **settings: see the wrapped function.

        Returns:
          Images of the same shape and range.
        """
        draws = draw_all(seeds, [self])[0]
        return channels_last(self.with_draws(channels_first(tf.convert_to_tensor(images)), draws, **settings))


def random_step(name: str, *, draws: int) -> Callable[[Callable[..., tf.Tensor]], RandomStep]:
    """Decorates a function to make it a `RandomStep`; see its constructor for the arguments."""
    return functools.partial(RandomStep, name, draws)


def draw_all(seeds: tf.Tensor, steps: Sequence[RandomStep]) -> list[tf.Tensor]:
    """Draws the random numbers of several steps.

    Args:
      seeds: [..., 2] int32.
      steps: at least one step. A step's numbers do not depend on the others.

    Returns:
      One float32 tensor [..., step.draws] in [0, 1) for each step.
    """
    streams = tf.constant([stream(step.name) for step in steps], tf.int64)
    numbers = uniform(fold_in(tf.expand_dims(seeds, -2), streams), max(step.draws for step in steps))
    return [numbers[..., i, : step.draws] for i, step in enumerate(steps)]


def choose(chosen: tf.Tensor, changed: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
    """Selects `changed` where `chosen` is true and `images` elsewhere.

    Args:
      chosen: [B] bool, or a scalar.
      changed: [B, ...], or [...] for a scalar `chosen`.
      images: images of the same shape as `changed`.
    """
    # TensorFlow 2's tf.where would broadcast `chosen` to every pixel, ten times slower on a CPU.
    return tf.compat.v1.where(chosen, changed, images)


def channels_first(images: tf.Tensor) -> tf.Tensor:
    """Transposes [..., H, W, C] to [..., C, H, W], for one image or a batch."""
    return tf.transpose(images, [2, 0, 1] if images.shape.rank == 3 else [0, 3, 1, 2])


def channels_last(images: tf.Tensor) -> tf.Tensor:
    """Transposes [..., C, H, W] to [..., H, W, C], for one image or a batch."""
    return tf.transpose(images, [1, 2, 0] if images.shape.rank == 3 else [0, 2, 3, 1])
