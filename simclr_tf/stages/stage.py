"""What the training loop asks of a stage."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from simclr_tf.analysis import metrics
from simclr_tf.core.tf import tf
from simclr_tf.data.pipeline import Input
from simclr_tf.data.sources.source import Source
from simclr_tf.distribute import collectives
from simclr_tf.models.network import Network
from simclr_tf.workdir.networks import initialize


def weight_of_labelled(source: Source, labels: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns what makes a mean over the global batch, in which examples without a label count 0, one over the others.

    Args:
      source: of the examples.
      labels: [B] int of this replica's part of the batch, -1 where unknown.
      dtype: of the result, a scalar.
    """
    if not source.partly_labelled:
        return tf.ones([], dtype)
    labelled = collectives.all_mean(tf.reduce_mean(tf.cast(labels >= 0, dtype)))
    return tf.math.divide_no_nan(tf.ones([], dtype), labelled)


class Stage(tf.Module):
    """One kind of training. Subclasses set `network` and implement what raises NotImplementedError here.

    All is resolved in the constructor; nothing reads configuration later.
    """

    network: Network
    max_bad_images: int = 100
    # The name of the first stream that it trains on; see `views.views`.
    first_stream: str = "labelled"
    # What `--init_from` must bring.
    required_items: tuple[str, ...] = ("encoder",)
    # Whether a batch's losses are those of its parts. What to do where they are not, for a message.
    separable: bool = True
    instead_of_accumulation: str = ""

    def train_inputs(self) -> dict[str, Input]:
        """Returns the streams of examples to train on, by name; the first one's examples make the epochs."""
        raise NotImplementedError

    def eval_input(self) -> Input | None:
        """Returns the examples to evaluate on, or None where there is nothing to measure."""
        return None

    @property
    def trained_variables(self) -> list[tf.Variable]:
        """The variables that gradients change, in a fixed order."""
        raise NotImplementedError

    @property
    def frozen_variables(self) -> list[tf.Variable]:
        """Variables that must leave training exactly as they entered it; the loop checks."""
        return []

    def train_batch(
        self, batch: dict[str, dict[str, tf.Tensor]], seeds: dict[str, tf.Tensor]
    ) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """Computes the losses of this replica's part of a batch.

        Args:
          batch: each stream's name -> the host's tensors, [B, ...] each.
          seeds: each stream's name -> [B, 2] int32, for each example's random choices on the device.

        Returns:
          losses: name -> [B]; the sum of their means over the global batch is minimized.
          metrics: name -> [B]; their means are recorded.
        """
        raise NotImplementedError

    def penalties(self) -> dict[str, tf.Tensor]:
        """Returns name -> scalar, added to the global batch's mean loss."""
        return {}

    def after_update(self, step: tf.Tensor) -> None:
        """Called on each replica after the weights changed."""

    def eval_batch(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns name -> [B, ...] for evaluation; `logits` [B, classes] at least."""
        raise NotImplementedError

    def measure(self, outputs: dict[str, np.ndarray]) -> dict:
        """Returns what to report of an evaluation; outputs: what `eval_batch` gave for all examples, and `label`."""
        return metrics.classification(outputs["label"], outputs["logits"], self.describe()["class_names"])

    def start(self, init_from: str | None) -> list[str]:
        """Begins a run, which a resumed one does not: takes from the workdir `init_from` what fits, if it is given.

        Returns:
          The lines of a table of what was taken and what was not; see `checkpoint.initialize`.
        """
        taken, table = set(), []
        if init_from is not None:
            taken, table = initialize(self.initial_items(), init_from, required=self.required_items, misfit=self.misfit)
        self.after_initialize(taken)
        return table

    def after_initialize(self, taken: Collection[str] = ()) -> None:
        """Called once when a run starts; `taken` are the paths of the items that `--init_from` brought."""

    def checkpoint_items(self) -> dict[str, tf.Module]:
        """Returns what a checkpoint holds beside the optimizer and the step."""
        return self.network.parts()

    def initial_items(self) -> dict[str, Any]:
        """Returns what `--init_from` may bring, by its path in a checkpoint; a classifier starts anew."""
        return {name: part for name, part in self.network.parts().items() if name != "classifier"}

    def misfit(self, item: str, description: dict) -> list[str]:
        """Lists why an item cannot take its values from the run whose `architecture.json` is `description`."""
        return self.network.mismatch(item, description["network"])

    def describe(self) -> dict:
        """Returns what later stages and tools must know, as plain values for `architecture.json`."""
        raise NotImplementedError

    def files(self) -> dict[str, str]:
        """Returns file name -> text of what the workdir should hold beside the records, such as the labelled subset."""
        return {}

    def check_batch(self, global_batch_size: int, replicas: int) -> None:
        """Raises UserError where the stage cannot work with such a batch on so many replicas."""

    def costs(self, global_batch_size: int) -> dict[str, int]:
        """Returns what a step costs beside the network and its gradient, by name, such as a memory's FLOPs."""
        return {}

    def constants(self, global_batch_size: int) -> dict[str, float]:
        """Returns numbers to record beside the metrics, such as a loss's chance level."""
        return {}
