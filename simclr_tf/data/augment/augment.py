"""SimCLR's augmentations as one configuration (Chen et al. 2020a, appendix A; 2020b, appendix).

The host decodes, crops and resizes (`Augment.crop_box`, `crop.resize`). The device flips, distorts colors and blurs
whole batches, with separate parameters for each image (`Augment.__call__`). Both are pure functions of stateless seeds
and give the same numbers eagerly, in tf.data and under XLA, for one image and for a batch.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

from simclr_tf.core import checks
from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import addons, tf
from simclr_tf.data.augment.addons import random_cutout, random_rotation
from simclr_tf.data.augment.blur import random_blur
from simclr_tf.data.augment.color import BRIGHTNESS_KINDS, color_jitter, random_gray
from simclr_tf.data.augment.random_step import RandomStep, channels_first, channels_last, choose, draw_all, random_step
from simclr_tf.data.crop import CROP_KINDS, LEAST_PUBLISHED_AREA, Box, random_crop_box
from simclr_tf.data.decode import unit_images

# At this strength hue shifts by up to half a turn either way, which reaches every hue.
_GREATEST_STRENGTH = 2.5


@random_step("flip", draws=1)
def random_flip(images: tf.Tensor, draws: tf.Tensor, *, probability: float = 0.5) -> tf.Tensor:
    """Mirrors images left to right at random: `random_flip(images, seeds, probability=0.5)`."""
    return choose(draws[..., 0] < probability, tf.reverse(images, axis=[-1]), images)


class Augment:
    """The augmentations of a training image, with their probabilities and ranges.

    Attributes:
      steps_without_xla: names of the parameters that turn on steps which XLA cannot compile; empty unless cutout or
        rotation is on.
    """

    def __init__(
        self,
        area_min: float = 0.08,
        area_max: float = 1.0,
        ratio_min: float = 3 / 4,
        ratio_max: float = 4 / 3,
        flip: bool = True,
        color_strength: float = 1.0,
        jitter_probability: float = 0.8,
        gray_probability: float = 0.2,
        blur_probability: float = 0.5,
        cutout_probability: float = 0.0,
        cutout_fraction: float = 0.5,
        rotation_probability: float = 0.0,
        rotation_degrees: Sequence[float] = (90.0, 180.0, 270.0),
        crop: str = "paper",
        brightness: str = "multiplicative",
    ):
        """Checks the parameters.

        Args:
          area_min: minimum share of the image's area that a crop takes, in (0, 1]; 1 takes whole images, or
            the largest central part within the ratios.
          area_max: maximum share, in [area_min, 1].
          ratio_min: minimum width / height of a crop, positive.
          ratio_max: maximum width / height.
          flip: whether half of the images are mirrored left to right.
          color_strength: strength s of the color jitter, in [0, 2.5]: brightness, contrast and saturation change by a
            factor within 1 +- 0.8 s, hue by up to 0.2 s of a turn. 1 for ImageNet, 0.5 for CIFAR-10.
          jitter_probability: probability of color jitter, in [0, 1].
          gray_probability: probability of conversion to gray, in [0, 1].
          blur_probability: probability of Gaussian blur, in [0, 1]; 0 for CIFAR-10.
          cutout_probability: probability that a square is blacked out, in [0, 1]; needs tensorflow-addons.
          cutout_fraction: side of that square as a fraction of the image's side, in (0, 1).
          rotation_probability: probability of a rotation, in [0, 1]; needs tensorflow-addons.
          rotation_degrees: angles to choose from, counterclockwise.
          crop: "paper" draws areas uniformly; "published" draws heights uniformly, as the released code does. See
            `crop.random_crop_box`.
          brightness: "multiplicative" as in SimCLRv2, by a factor within 1 +- 0.8 s; "additive" as in SimCLR's first
            version, by an offset within +- 0.8 s.

        Raises:
          UserError: if a value is out of range, or cutout or rotation is on without tensorflow-addons.
        """
        self.area_range = (
            _within("area_min", area_min, above=0, most=1),
            _within("area_max", area_max, least=0, most=1),
        )
        self.ratio_range = (
            _within("ratio_min", ratio_min, above=0),
            _within("ratio_max", ratio_max, above=0),
        )
        _ordered("area_min", area_min, "area_max", area_max)
        _ordered("ratio_min", ratio_min, "ratio_max", ratio_max)
        checks.switch("Augment.flip", flip)
        self.flip = flip
        self.color_strength = _within("color_strength", color_strength, least=0, most=_GREATEST_STRENGTH)
        self.jitter_probability = _within("jitter_probability", jitter_probability, least=0, most=1)
        self.gray_probability = _within("gray_probability", gray_probability, least=0, most=1)
        self.blur_probability = _within("blur_probability", blur_probability, least=0, most=1)
        self.cutout_probability = _within("cutout_probability", cutout_probability, least=0, most=1)
        self.cutout_fraction = _within("cutout_fraction", cutout_fraction, above=0, below=1)
        self.rotation_probability = _within("rotation_probability", rotation_probability, least=0, most=1)
        self.rotation_degrees = _angles("rotation_degrees", rotation_degrees)
        self.steps_without_xla = tuple(
            name for name in ("cutout_probability", "rotation_probability") if getattr(self, name) > 0
        )
        checks.choice("Augment.crop", crop, CROP_KINDS)
        if crop == "published" and self.area_range[1] < LEAST_PUBLISHED_AREA:
            raise UserError(
                f"Augment.area_max is {area_max!r}, but Augment.crop = 'published' takes no area under "
                f"{LEAST_PUBLISHED_AREA:g}; raise the one or set the other to 'paper'"
            )
        checks.choice("Augment.brightness", brightness, BRIGHTNESS_KINDS)
        self.crop, self.brightness = crop, brightness
        for name in self.steps_without_xla:
            addons(f"Augment.{name} = {getattr(self, name):g}")
        self._steps = self._configured_steps()

    def _configured_steps(self) -> list[tuple[RandomStep, dict[str, Any]]]:
        """Returns the steps of nonzero probability, in order, each with its settings."""
        jitter_probability = self.jitter_probability if self.color_strength > 0 else 0.0
        steps = [
            (random_flip, {"probability": 0.5 if self.flip else 0.0}),
            (
                color_jitter,
                {"probability": jitter_probability, "strength": self.color_strength, "brightness": self.brightness},
            ),
            (random_gray, {"probability": self.gray_probability}),
            (random_blur, {"probability": self.blur_probability}),
            (random_cutout, {"probability": self.cutout_probability, "fraction": self.cutout_fraction}),
            (random_rotation, {"probability": self.rotation_probability, "degrees": self.rotation_degrees}),
        ]
        return [(step, settings) for step, settings in steps if settings["probability"] > 0]

    def crop_box(
        self,
        seed: tf.Tensor | None,
        height: tf.Tensor | int,
        width: tf.Tensor | int,
        *,
        draws: tf.Tensor | None = None,
    ) -> Box:
        """Returns a random crop's y, x, height and width (int32, pixels); see `crop.random_crop_box`."""
        return random_crop_box(
            seed,
            height,
            width,
            area_range=self.area_range,
            ratio_range=self.ratio_range,
            kind=self.crop,
            draws=draws,
        )

    def __call__(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Augments crops: flip, color, blur and, where they are on, cutout and rotation.

        Args:
          images: [B, H, W, 3] uint8, or floating in [0, 1]; or one image [H, W, 3].
          seeds: [B, 2] int32, or [2] for one image. The two views of an image need different seeds.

        Returns:
          float32 of the same shape, in [0, 1].
        """
        images, seeds = tf.convert_to_tensor(images), tf.convert_to_tensor(seeds)
        if images.shape.rank not in (3, 4) or images.shape[-1] != 3:
            raise ValueError(f"images have to be [B, H, W, 3] or [H, W, 3], got {images.shape}")
        if seeds.shape.rank != images.shape.rank - 2 or seeds.shape[-1] != 2:
            raise ValueError(f"one seed of two int32 is needed for each image, got seeds {seeds.shape}")
        images = unit_images(images)
        if not self._steps:
            return images
        images = channels_first(images)
        for (step, settings), draws in zip(self._steps, draw_all(seeds, [step for step, _ in self._steps])):
            images = step.with_draws(images, draws, **settings)
        return channels_last(images)

    def describe(self) -> dict[str, Any]:
        """Returns the constructor's arguments by name, as plain values."""
        return {
            "area_min": self.area_range[0],
            "area_max": self.area_range[1],
            "ratio_min": self.ratio_range[0],
            "ratio_max": self.ratio_range[1],
            "flip": self.flip,
            "color_strength": self.color_strength,
            "jitter_probability": self.jitter_probability,
            "gray_probability": self.gray_probability,
            "blur_probability": self.blur_probability,
            "cutout_probability": self.cutout_probability,
            "cutout_fraction": self.cutout_fraction,
            "rotation_probability": self.rotation_probability,
            "rotation_degrees": list(self.rotation_degrees),
            "crop": self.crop,
            "brightness": self.brightness,
        }


def _within(name: str, value: Any, **bounds: float) -> float:
    checks.number(f"Augment.{name}", value, **bounds)
    return float(value)


def _ordered(low_name: str, low: float, high_name: str, high: float) -> None:
    if low > high:
        raise UserError(f"Augment.{low_name} is {low!r}, over {high_name}, which is {high!r}; exchange or change them")


def _angles(name: str, value: Any) -> tuple[float, ...]:
    angles = (value,) if isinstance(value, numbers.Real) else value
    if isinstance(angles, str) or not isinstance(angles, Sequence) or not angles:
        raise UserError(f"Augment.{name} is {value!r}; use a list of angles in degrees, such as (90, 180, 270)")
    return tuple(_within(name, angle) for angle in angles)
