"""Learning rates as functions of the step."""

from __future__ import annotations

import math

from simclr_tf.core import checks
from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf

_SCALINGS = {
    "none": lambda batch: 1.0,
    "linear": lambda batch: batch / 256.0,
    "sqrt": lambda batch: math.sqrt(batch),
}


def train_steps(num_examples: int, epochs: float, global_batch_size: int) -> int:
    """Returns the number of training steps in a number of epochs, with one extra step as in the published code."""
    return int(num_examples * epochs // global_batch_size) + 1


class WarmupCosine:
    """Linear warm-up from 0, then a half cosine to 0 (Loshchilov & Hutter 2017)."""

    def __init__(
        self,
        base_learning_rate: float,
        *,
        scaling: str = "none",
        warmup_epochs: float | None = None,
        warmup_fraction: float | None = None,
    ):
        """Describes the schedule.

        Args:
          base_learning_rate: peak of the learning rate before scaling.
          scaling: growth of the peak with the global batch: "none", "linear" (x batch / 256) or "sqrt" (x sqrt(batch)).
          warmup_epochs: length of the warm-up in epochs. Without it and `warmup_fraction` there is no warm-up.
          warmup_fraction: length of the warm-up as a share of all epochs, in [0, 1]; set only one of the two.

        Raises:
          UserError: for a value out of range, or if both lengths are set.
        """
        checks.number("WarmupCosine.base_learning_rate", base_learning_rate, least=0)
        checks.choice("WarmupCosine.scaling", scaling, _SCALINGS)
        checks.number("WarmupCosine.warmup_epochs", warmup_epochs, least=0, optional=True)
        checks.number("WarmupCosine.warmup_fraction", warmup_fraction, least=0, most=1, optional=True)
        if warmup_epochs is not None and warmup_fraction is not None:
            raise UserError("WarmupCosine has both warmup_epochs and warmup_fraction; set one of them to None")
        self._base, self._scaling = base_learning_rate, scaling
        self._warmup_epochs, self._warmup_fraction = warmup_epochs, warmup_fraction
        self._earlier: list[tuple[int, int, int]] = []
        self.configured = False

    def configure(self, *, num_examples: int, epochs: float, global_batch_size: int, num_steps: int) -> None:
        """Fits the schedule to a run's length.

        Args:
          num_examples: number of examples in an epoch.
          epochs: number of epochs in the run.
          global_batch_size: images per step over all replicas.
          num_steps: number of steps in the run; the rate reaches 0 at its end.
        """
        self._num_examples, self._global_batch_size = num_examples, global_batch_size
        self.peak = self._base * _SCALINGS[self._scaling](global_batch_size)
        self.warmup_steps = self._warmup_steps(epochs)
        self.num_steps = num_steps
        self.configured = True

    def _warmup_steps(self, epochs: float) -> int:
        warmup_epochs = self._warmup_epochs or (self._warmup_fraction or 0.0) * epochs
        return int(round(warmup_epochs * self._num_examples // self._global_batch_size))

    def shorter_until(self, step: int, *, epochs: float, num_steps: int) -> None:
        """Uses a shorter run's schedule before a step. Call it once for each time the run grew, in that order.

        Args:
          step: first step of the longer schedule.
          epochs: number of epochs in the shorter run.
          num_steps: number of steps in the shorter run.
        """
        self._earlier.append((step, self._warmup_steps(epochs), num_steps))

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the learning rate at `step` (int64, counted from 0), scalar float32."""
        if not self.configured:
            raise ValueError("call configure() before the schedule")
        # float32 would round steps above 2^24.
        step = tf.cast(step, tf.float64)
        factor = _factor(step, self.warmup_steps, self.num_steps)
        # Last first, so that the shortest schedule, which covers the first steps, is applied on top.
        for until, warmup_steps, num_steps in reversed(self._earlier):
            factor = tf.where(step < until, _factor(step, warmup_steps, num_steps), factor)
        return tf.cast(self.peak * factor, tf.float32)


def _factor(step: tf.Tensor, warmup_steps: int, num_steps: int) -> tf.Tensor:
    """Returns the learning rate at a step as a share of the peak, scalar float64."""
    warmup = step / max(1, warmup_steps)
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    cosine = 0.5 * (1 + tf.cos(math.pi * tf.clip_by_value(progress, 0.0, 1.0)))
    return tf.where(step < warmup_steps, warmup, cosine)
