"""Teachers for distillation: a run's workdir, or any SavedModel that maps images to class logits."""

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

    It is deliberately no `tf.Module`: an attribute of that kind would bring its variables into a stage's
    `trainable_variables` and checkpoints.

    Attributes:
      num_classes: of its logits.
      image_size: of the square images that it was made for, in pixels; None where it does not say.
      takes_any_size: whether it computes images of other sizes, too.
      class_names: [num_classes], or empty where they are unknown.
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
        """Use `load_teacher`.

        Args:
          compute: [B, H, W, 3] float32 in [0, 1] -> [B, num_classes].
          num_classes: see the class.
          image_size: see the class.
          class_names: see the class.
          variables: see the class.
          description: where it comes from, as plain values.
          takes_any_size: see the class.
        """
        self._compute = compute
        self._description = description
        self.num_classes, self.image_size, self.takes_any_size = num_classes, image_size, takes_any_size
        self.class_names, self.variables = class_names, variables

    @tf.autograph.experimental.do_not_convert
    def logits(self, images: tf.Tensor) -> tf.Tensor:
        """Computes class logits; no gradient flows back from them.

        Args:
          images: [B, H, W, 3] in [0, 1], any float type.

        Returns:
          [B, num_classes] float32.
        """
        logits = tf.cast(self._compute(tf.cast(images, tf.float32)), tf.float32)
        return tf.stop_gradient(tf.ensure_shape(logits, [None, self.num_classes]))

    def describe(self) -> dict:
        """Returns what it is and where it came from, as plain values for `architecture.json`."""
        told = {**self._description, "num_classes": self.num_classes, "image_size": self.image_size}
        return {**told, "fingerprint": self._fingerprint}

    @functools.cached_property
    def _fingerprint(self) -> str:
        with tf.init_scope():
            return fingerprint(self.variables)[:16]


def load_teacher(path: str, *, precision: str = "float32", flag: str = "--teacher") -> Teacher:
    """Loads a classifier to be imitated; to be called inside the strategy's scope.

    Args:
      path: a workdir of this project with a classifier in it, or a folder with a SavedModel (ours or anybody's) that
        takes one float image batch, [B, H, W, 3] in [0, 1]; a folder of versions that `--mode=export` wrote stands for
        the newest one.
      precision: what a workdir's network computes in; a SavedModel computes in what it was saved with.
      flag: what `path` was given as, for messages.

    Returns:
      The teacher.

    Raises:
      UserError: where there is none, it has no class logits, or it is not clear which output they are.
    """
    if tf.io.gfile.exists(os.path.join(path, records.ARCHITECTURE)):
        return _from_workdir(path, precision, flag)
    folder = find_saved_model(path)
    if folder is None:
        found = "no such folder"
        if tf.io.gfile.exists(path):
            found = f"it has neither {records.ARCHITECTURE} nor saved_model.pb"
        raise UserError(f"{flag}={path} is no teacher ({found}); give a run's workdir or a SavedModel's folder")
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
