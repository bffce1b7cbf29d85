"""What the training loop asks of a stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from simclr_tf.models.network import Network
from simclr_tf.stack import tf


class Input(NamedTuple):
    """A stream of examples: the source and what the host makes of each of its images."""

    source: object
    prepare: Callable


class Stage(tf.Module):
    """One kind of training. Subclasses set `network` and implement what raises NotImplementedError here.

    All is resolved in the constructor; nothing reads configuration later.
    """

    name: str = "stage"
    network: Network
    max_bad_images: int = 100

    def train_input(self) -> Input:
        """Returns the examples to train on."""
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
        self, batch: dict[str, tf.Tensor], seeds: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """Computes the losses of this replica's part of a batch.

        Args:
          batch: the host's tensors, [B, ...] each.
          seeds: [B, 2] int32, for each example's random choices on the device.

        Returns:
          losses: name -> [B]; their sum's mean over the global batch is minimized.
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

    def checkpoint_items(self) -> dict[str, tf.Module]:
        """Returns what a checkpoint holds beside the optimizer and the step."""
        return self.network.parts()

    def initial_parts(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Returns the parts that `--init_from` must have, and those that are taken if it has them."""
        return ("encoder",), ()

    def describe(self) -> dict:
        """Returns what later stages and tools must know, as plain values for `architecture.json`."""
        raise NotImplementedError

    def constants(self, global_batch_size: int) -> dict[str, float]:
        """Returns numbers to record beside the metrics, such as a loss's chance level."""
        return {}
