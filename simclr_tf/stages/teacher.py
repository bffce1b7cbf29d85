"""Teachers for distillation, from a run's workdir or from any SavedModel that maps images to class logits."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf
from simclr_tf.data.class_names import known_class_names
from simclr_tf.models.network import fingerprint
from simclr_tf.stages.saved_model_logits import find_saved_model, load_logits
from simclr_tf.workdir import records
from simclr_tf.workdir.networks import load_network


class Teacher:
    """A frozen classifier in inference mode.

    This is deliberately not a `tf.Module`: as a module it would bring its variables into the stage's checkpoints and
    `trainable_variables`.

    Attributes:
      num_classes: number of logits.
      image_size: side in pixels of the square images that it was made for; None if unknown.
      takes_any_size: whether it also accepts images of other sizes.
      class_names: [num_classes], or empty if unknown.
      variables: all of its variables; nothing here ever changes them.
    """

    def __init__(
        self,
        compute: Callable[[tf.Tensor], tf.Tensor],
        *,
        num_classes: int,
        image_size: int | None,
        class_names: list[str],
        variables: list[tf.Variable],
        description: dict,
        takes_any_size: bool = True,
    ):
        """Creates a teacher; `load_teacher` is the usual way.

        Args:
          compute: function from images, [B, H, W, 3] float32 in [0, 1], to logits, [B, num_classes].
          num_classes: see the class.
          image_size: see the class.
          class_names: see the class.
          variables: see the class.
          description: origin of the teacher, as plain values.
          takes_any_size: see the class.
        """
        self._compute = compute
        self._description = description
        self.num_classes, self.image_size, self.takes_any_size = num_classes, image_size, takes_any_size
        self.class_names, self.variables = class_names, variables

    @tf.autograph.experimental.do_not_convert
    def logits(self, images: tf.Tensor) -> tf.Tensor:
        """Computes class logits; no gradient flows back.

        Args:
          images: [B, H, W, 3] in [0, 1], any float type.

        Returns:
          [B, num_classes] float32.
        """
        logits = tf.cast(self._compute(tf.cast(images, tf.float32)), tf.float32)
        return tf.stop_gradient(tf.ensure_shape(logits, [None, self.num_classes]))

    def describe(self) -> dict:
        """Returns what the teacher is and where it came from, as plain values for `architecture.json`."""
        told = {**self._description, "num_classes": self.num_classes, "image_size": self.image_size}
        return {**told, "fingerprint": self._fingerprint}

    @functools.cached_property
    def _fingerprint(self) -> str:
        # The values must be read eagerly, even when the first caller is tracing a function.
        with tf.init_scope():
            return fingerprint(self.variables)[:16]


def load_teacher(path: str, *, precision: str = "float32", flag: str = "--teacher") -> Teacher:
    """Loads a classifier to imitate; call this in the strategy's scope.

    Args:
      path: workdir of a run with a classifier, or folder of any SavedModel that takes one float image batch,
        [B, H, W, 3] in [0, 1]. In a folder of versions that `--mode=export` wrote, the newest one is taken.
      precision: precision of a workdir's network; a SavedModel computes in the precision that it was saved with.
      flag: flag that `path` was given with, for messages.

    Returns:
      The teacher.

    Raises:
      UserError: if there is no teacher, it has no class logits, or it is unclear which output they are.
    """
    if tf.io.gfile.exists(os.path.join(path, records.ARCHITECTURE)):
        return _from_workdir(path, precision, flag)
    folder = find_saved_model(path)
    if folder is None:
        found = "no such folder"
        if tf.io.gfile.exists(path):
            found = f"it has neither {records.ARCHITECTURE} nor saved_model.pb"
        raise UserError(f"{flag}={path} is not a teacher ({found}); give a run's workdir or a SavedModel's folder")
    return Teacher(**load_logits(folder, flag)._asdict())


def _from_workdir(path: str, precision: str, flag: str) -> Teacher:
    network, description, _ = load_network(path, precision=precision, flag=flag)
    if network.classifier is None:
        raise UserError(
            f"{flag}={path} has no classifier (it was trained without labels), so there is nothing to imitate; give a "
            "fine-tuned run"
        )
    return Teacher(
        lambda images: network.logits(images, training=False),
        num_classes=network.num_classes,
        image_size=network.image_size,
        class_names=known_class_names(description.get("class_names")),
        variables=[variable for part in network.parts().values() for variable in part.variables],
        description={"kind": "workdir", "path": path, "network": network.describe()},
    )
