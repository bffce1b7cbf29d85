"""A run before its first step: what `Training` builds, and what everything after it reads."""

from __future__ import annotations

import dataclasses

from simclr_tf.data.pipeline import Input
from simclr_tf.optim.optimizers import Optimizer
from simclr_tf.optim.schedules import WarmupCosine
from simclr_tf.stages.stage import Stage
from simclr_tf.training.loop import Loop


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """A run, built and with its numbers settled.

    Attributes:
      stage: what is trained, with its first values.
      optimizer: built for the stage's variables.
      loop: takes the steps.
      inputs: the stage's streams of examples, by name.
      global_batch_size: examples of a step over all replicas.
      num_examples: examples of an epoch.
      steps: length of the run.
      epochs: the same in epochs.
      seed: decides every random choice.
      precision: "float32", "bfloat16" or "float64".
      schedule: the learning rate's; None for one that is no `WarmupCosine`, which cannot grow.
      replicas: how many share a step.
      checkpoint_every_steps: steps between two checkpoints.
      record_every_steps: steps between two records of the metrics.
      board_images: images in TensorBoard's pictures, 0 for no pictures.
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
        """Examples of a step over all replicas, for each stream."""
        return batch_sizes(self.inputs, self.global_batch_size)

    @property
    def steps_taken(self) -> int:
        """Steps since the run's start, whoever took them."""
        return int(self.loop.step.numpy())

    def numbers(self, *names: str) -> dict:
        """Returns some of the attributes by name."""
        return {name: getattr(self, name) for name in names}


def batch_sizes(inputs: dict[str, Input], global_batch_size: int) -> dict[str, int]:
    """Returns each stream's examples of a step over all replicas: its own number, else the run's."""
    return {name: stream.batch_size or global_batch_size for name, stream in inputs.items()}
