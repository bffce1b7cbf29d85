"""The interface between a stage and the training loop."""

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
    """Returns the weight that turns the global batch's mean into the mean over its labeled examples.

    Examples without a label count 0 in the batch's mean.

    Args:
      source: source of the examples.
      labels: [B] int, labels of this replica's part of the batch, -1 where unknown.
      dtype: type of the result.

    Returns:
      A scalar; 0 if no example of the batch has a label.
    """
    if not source.partly_labelled:
        return tf.ones([], dtype)
    labelled = collectives.all_mean(tf.reduce_mean(tf.cast(labels >= 0, dtype)))
    return tf.math.divide_no_nan(tf.ones([], dtype), labelled)


class Stage(tf.Module):
    """One kind of training. Subclasses set `network` and implement what raises NotImplementedError here.

    The constructor settles everything; nothing reads configuration later.
    """

    network: Network
    max_bad_images: int = 100
    # Name of the first stream of training examples; see `training_views.views`.
    first_stream: str = "labelled"
    # Items that `--init_from` must restore.
    required_items: tuple[str, ...] = ("encoder",)
    # Whether a batch's losses can be computed part by part. If not, a message advises this instead.
    separable: bool = True
    instead_of_accumulation: str = ""

    def train_inputs(self) -> dict[str, Input]:
        """Returns the streams of training examples by name; an epoch is one pass over the first stream."""
        raise NotImplementedError

    def eval_input(self) -> Input | None:
        """Returns the examples to evaluate on, or None if there is nothing to measure."""
        return None

    @property
    def trained_variables(self) -> list[tf.Variable]:
        """The variables that gradients change, in a fixed order."""
        raise NotImplementedError

    @property
    def frozen_variables(self) -> list[tf.Variable]:
        """The variables that training must not change; the run checks this at its end."""
        return []

    def train_batch(
        self, batch: dict[str, dict[str, tf.Tensor]], seeds: dict[str, tf.Tensor]
    ) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """Computes the losses of this replica's part of a batch.

        Args:
          batch: stream name -> the tensors that the host prepared, by name, each [B, ...].
          seeds: stream name -> [B, 2] int32, seeds of each example's random choices on the device.

        Returns:
          losses: name -> [B]; the loop minimizes the sum of their means over the global batch.
          metrics: name -> [B]; the loop records their means.
        """
        raise NotImplementedError

    def penalties(self) -> dict[str, tf.Tensor]:
        """Returns name -> scalar, terms that do not depend on the batch; the loop adds them to its mean loss."""
        return {}

    def after_update(self, step: tf.Tensor) -> None:
        """Called on each replica after each update of the weights."""

    def eval_batch(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns a batch's outputs for evaluation, name -> [B, ...]; at least `logits`, [B, classes]."""
        raise NotImplementedError

    def measure(self, outputs: dict[str, np.ndarray]) -> dict:
        """Returns the report of an evaluation; `outputs` has what `eval_batch` gave for all examples, and `label`."""
        return metrics.classification(outputs["label"], outputs["logits"], self.describe()["class_names"])

    def start(self, init_from: str | None) -> list[str]:
        """Initializes a new run, from the workdir `init_from` if it is given. Resumed runs do not call this.

        Returns:
          The lines of a table of what was taken and what was not; see `networks.initialize`.
        """
        taken, table = set(), []
        if init_from is not None:
            taken, table = initialize(self.initial_items(), init_from, required=self.required_items, misfit=self.misfit)
        self.after_initialize(taken)
        return table

    def after_initialize(self, taken: Collection[str] = ()) -> None:
        """Called once when a run starts; `taken` has the paths of the items that `--init_from` restored."""

    def checkpoint_items(self) -> dict[str, tf.Module]:
        """Returns what a checkpoint holds besides the optimizer and the step."""
        return self.network.parts()

    def initial_items(self) -> dict[str, Any]:
        """Returns the items that `--init_from` may restore, by path in the checkpoint; a classifier starts anew."""
        return {name: part for name, part in self.network.parts().items() if name != "classifier"}

    def misfit(self, item: str, description: dict) -> list[str]:
        """Lists why an item does not fit the run whose `architecture.json` is `description`; empty if it fits."""
        return self.network.mismatch(item, description["network"])

    def describe(self) -> dict:
        """Returns what later stages and tools must know, as plain values for `architecture.json`."""
        raise NotImplementedError

    def files(self) -> dict[str, str]:
        """Returns file name -> text for the workdir, such as the list of the labeled subset."""
        return {}

    def check_batch(self, global_batch_size: int, replicas: int) -> None:
        """Raises UserError if the stage cannot split this batch over the replicas."""

    def costs(self, global_batch_size: int) -> dict[str, int]:
        """Returns what a step costs besides the network and its gradient, by name, such as a memory's FLOPs."""
        return {}

    def constants(self, global_batch_size: int) -> dict[str, float]:
        """Returns constants to record with the metrics, such as a loss's chance level."""
        return {}
