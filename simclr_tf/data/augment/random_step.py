"""Random steps: augmentations as pure functions of images and seeds, and the numbers that several of them need.

Inside a step images are channels first, [..., 3, H, W]: on a CPU it is several times faster to work on whole planes
of red, green and blue than on every third number.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from simclr_tf.core.randomness import fold_in, stream, uniform
from simclr_tf.core.tf import tf


class RandomStep:
    """An augmentation with its own stream of random numbers, called with `(images, seeds, **settings)`.

    The function it wraps takes channels-first images and numbers in [0, 1) in place of the seeds, so that `draw_all`
    can make the numbers of many steps at once: the generator costs some 120 small operations, however many numbers
    it makes.

    Attributes:
      name: names the stream, which no other step may share.
      draws: how many numbers the step needs for each image.
      with_draws: the function (images [..., 3, H, W], draws [..., n], **settings) -> images of the same shape.
    """

    def __init__(self, name: str, draws: int, function: Callable[..., tf.Tensor]):
        """Wraps `function`; see the attributes."""
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
    """Makes a `RandomStep` of a function; for the arguments see there."""
    return functools.partial(RandomStep, name, draws)


def draw_all(seeds: tf.Tensor, steps: Sequence[RandomStep]) -> list[tf.Tensor]:
    """Draws the numbers of several steps.

    Args:
      seeds: [..., 2] int32.
      steps: at least one. What a step gets does not depend on the others.

    Returns:
      For each step float32 [..., step.draws] in [0, 1).
    """
    streams = tf.constant([stream(step.name) for step in steps], tf.int64)
    numbers = uniform(fold_in(tf.expand_dims(seeds, -2), streams), max(step.draws for step in steps))
    return [numbers[..., i, : step.draws] for i, step in enumerate(steps)]


def choose(chosen: tf.Tensor, changed: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
    """Takes `changed` where `chosen` holds and `images` elsewhere.

    Args:
      chosen: bool, [B] or a scalar.
      changed: [B, ...] or [...].
      images: like `changed`.
    """
    # The newer tf.where would broadcast `chosen` pixel by pixel, ten times slower on a CPU.
    return tf.compat.v1.where(chosen, changed, images)


def channels_first(images: tf.Tensor) -> tf.Tensor:
    """[..., H, W, C] -> [..., C, H, W], for one image or a batch."""
    return tf.transpose(images, [2, 0, 1] if images.shape.rank == 3 else [0, 3, 1, 2])


def channels_last(images: tf.Tensor) -> tf.Tensor:
    """[..., C, H, W] -> [..., H, W, C], for one image or a batch."""
    return tf.transpose(images, [1, 2, 0] if images.shape.rank == 3 else [0, 2, 3, 1])
