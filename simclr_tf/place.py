"""Where a run works, and what a configuration makes of it before its first step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from simclr_tf import cluster
from simclr_tf.data.base import Source
from simclr_tf.errors import visible
from simclr_tf.loop import Loop
from simclr_tf.optim.optimizers import Optimizer
from simclr_tf.stack import tf
from simclr_tf.stages.base import Input, Stage


class Built(NamedTuple):
    """A run before its first step: what `train` makes of a configuration.

    Attributes:
      stage: what is trained, with its first values.
      optimizer: built for the stage's variables.
      loop: takes the steps.
      inputs: the stage's streams of examples, by name.
      global_batch_size: examples of a step over all replicas.
      num_examples: of an epoch.
      steps: length of the run.
      epochs: the same in epochs.
      seed: the run's.
      precision: "float32", "bfloat16" or "float64".
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


class Place(NamedTuple):
    """Where and how a run works: what the flags say.

    Attributes:
      workdir: folder of the run.
      strategy: its devices.
      data_dir: where data sets lie, or None.
      init_from: workdir to take weights from, or None.
      teacher: workdir or SavedModel to imitate, or None.
      source: what to read, or None.
      output: where to write, or None for within the workdir.
      queries: images to find neighbours of.
      dry_run: build and report only.
      built: called once all is constructed; says what is wrong with the settings.
      accepted: called once it is sure that the run may write to its workdir, with whether it is the first there.
      stepped: called after the first step.
      instead: called with what was built in place of training, and its answer returned.
      settings: returns what was set, name -> value as text, defaults included.
    """

    workdir: str
    strategy: tf.distribute.Strategy
    data_dir: str | None = None
    init_from: str | None = None
    teacher: str | None = None
    source: str | None = None
    output: str | None = None
    queries: tuple[str, ...] = ()
    dry_run: bool = False
    built: Callable[[], None] = lambda: None
    accepted: Callable[[bool], None] = lambda is_new: None
    stepped: Callable[[], None] = lambda: None
    instead: Callable[[Built], dict] | None = None
    settings: Callable[[], dict[str, str]] = dict

    @property
    def is_chief(self) -> bool:
        """Whether this is the one process of the run that prints and writes."""
        return cluster.role(self.strategy).is_chief

    def remark(self, source: Source) -> None:
        """Prints what people should know of a source."""
        for line in source.remarks:
            self.say(f"  {line}")

    def say(self, text: str) -> None:
        """Prints a line, in the one process of the run that does."""
        if self.is_chief:
            print(visible(text), flush=True)
