"""Learning rates as functions of the step."""

from __future__ import annotations

import math

from simclr_tf.errors import UserError
from simclr_tf.stack import tf

_SCALINGS = {
    "none": lambda batch: 1.0,
    "linear": lambda batch: batch / 256.0,
    "sqrt": lambda batch: math.sqrt(batch),
}


def train_steps(num_examples: int, epochs: float, global_batch_size: int) -> int:
    """Returns the number of training steps for a number of epochs, as the published code counts: one more at last."""
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
          base_learning_rate: before scaling.
          scaling: how the peak grows with the global batch: "none", "linear" (x batch / 256), "sqrt" (x sqrt(batch)).
          warmup_epochs: length of the warm-up; or
          warmup_fraction: its share of all epochs. Neither: no warm-up.

        Raises:
          UserError: for values that make no schedule.
        """
        if not isinstance(base_learning_rate, (int, float)) or not 0 <= base_learning_rate < math.inf:
            raise UserError(f"WarmupCosine.base_learning_rate is {base_learning_rate!r}; use a number of at least 0")
        if scaling not in _SCALINGS:
            raise UserError(f"WarmupCosine.scaling is {scaling!r}; choose one of {', '.join(_SCALINGS)}")
        if warmup_epochs is not None and warmup_fraction is not None:
            raise UserError("WarmupCosine has both warmup_epochs and warmup_fraction; set one of them to None")
        if warmup_epochs is not None and not warmup_epochs >= 0:
            raise UserError(f"WarmupCosine.warmup_epochs is {warmup_epochs!r}; use a number of at least 0")
        if warmup_fraction is not None and not 0 <= warmup_fraction <= 1:
            raise UserError(f"WarmupCosine.warmup_fraction is {warmup_fraction!r}; use a number from 0 to 1")
        self._base, self._scaling = base_learning_rate, scaling
        self._warmup_epochs, self._warmup_fraction = warmup_epochs, warmup_fraction
        self.configured = False

    def configure(self, *, num_examples: int, epochs: float, global_batch_size: int, num_steps: int) -> None:
        """Fixes the schedule to a run's length.

        Args:
          num_examples: of an epoch.
          epochs: of the run.
          global_batch_size: images per step over all replicas.
          num_steps: of the run; the rate reaches 0 with its last one.
        """
        warmup_epochs = self._warmup_epochs or (self._warmup_fraction or 0.0) * epochs
        self.peak = self._base * _SCALINGS[self._scaling](global_batch_size)
        self.warmup_steps = int(round(warmup_epochs * num_examples // global_batch_size))
        self.num_steps = num_steps
        self.configured = True

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the learning rate of the update at `step` (int64, from 0), scalar float32."""
        if not self.configured:
            raise ValueError("configure() comes before the first call")
        step = tf.cast(step, tf.float64)
        warmup = step / max(1, self.warmup_steps)
        progress = (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps)
        cosine = 0.5 * (1 + tf.cos(math.pi * tf.clip_by_value(progress, 0.0, 1.0)))
        return tf.cast(self.peak * tf.where(step < self.warmup_steps, warmup, cosine), tf.float32)
