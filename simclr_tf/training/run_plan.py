"""The plan of a run: `Training` builds it before the first step, and everything after that reads it."""

from __future__ import annotations

import dataclasses

from simclr_tf.data.pipeline import Input
from simclr_tf.optim.optimizers import Optimizer
from simclr_tf.optim.schedules import WarmupCosine
from simclr_tf.stages.stage import Stage
from simclr_tf.training.loop import Loop


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """A run that is built, with all its numbers settled.

    Attributes:
      stage: stage to train, with its initial values.
      optimizer: optimizer, built for the stage's variables.
      loop: inner loop, which takes the steps.
      inputs: training streams of the stage, by name.
      global_batch_size: examples per step over all replicas.
      num_examples: examples per epoch.
      steps: length of the run in steps.
      epochs: length of the run in epochs.
      seed: seed of every random choice.
      precision: "float32", "bfloat16" or "float64".
      schedule: learning rate schedule; None if it is not a `WarmupCosine`, so that the run cannot get longer.
      replicas: number of replicas that share a step.
      checkpoint_every_steps: steps between two checkpoints.
      record_every_steps: steps between two records of the metrics.
      board_images: number of images for TensorBoard's pictures; 0 for no pictures.
    """

    stage: Stage
    optimizer: Optimizer
    loop: Loop
    inputs: dict[str, Input]
    global_batch_size: int
    num_examples: int
    steps: int
    epochs: float
    seed: int
    precision: str
    schedule: WarmupCosine | None = None
    replicas: int = 1
    checkpoint_every_steps: int = 1
    record_every_steps: int = 1
    board_images: int = 0

    @property
    def batch_sizes(self) -> dict[str, int]:
        """Examples per step over all replicas, for each stream."""
        return batch_sizes(self.inputs, self.global_batch_size)

    @property
    def steps_taken(self) -> int:
        """Steps taken since the run's start, including those before it was resumed."""
        return int(self.loop.step.numpy())

    def numbers(self, *names: str) -> dict:
        """Returns the attributes with these names, as a dict."""
        return {name: getattr(self, name) for name in names}


def batch_sizes(inputs: dict[str, Input], global_batch_size: int) -> dict[str, int]:
    """Returns each stream's examples per step over all replicas: its own batch size, else the run's."""
    return {name: stream.batch_size or global_batch_size for name, stream in inputs.items()}
