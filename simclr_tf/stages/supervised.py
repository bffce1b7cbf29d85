"""Training with labels: linear evaluation of a frozen encoder."""

from __future__ import annotations

from collections.abc import Callable

from simclr_tf import losses
from simclr_tf.data.augment import Augment
from simclr_tf.data.dataset import Data
from simclr_tf.data.prepare import central, one_crop
from simclr_tf.errors import UserError
from simclr_tf.models.network import Network
from simclr_tf.models.resnet import ResNet
from simclr_tf.stack import tf
from simclr_tf.stages.base import Input, Stage


class Supervised(Stage):
    """Cross-entropy on labelled images; here with a frozen encoder, whose batch norm stays in inference mode."""

    name = "linear_eval"

    def __init__(
        self,
        data: Data,
        augment: Augment,
        make_encoder: Callable[..., ResNet],
        weight_decay: float = 0.0,
        precision: str = "float32",
        data_dir: str | None = None,
    ):
        """Creates the stage and its variables.

        Args:
          data: labelled images.
          augment: crop and flip, as a rule.
          make_encoder: takes `dtype`.
          weight_decay: of the classifier's kernel, through the loss: half of it times the squared norm.
          precision: "float32", "bfloat16" or "float64".
          data_dir: where data sets lie.

        Raises:
          UserError: where there are no labels.
        """
        super().__init__(name=self.name)
        if not isinstance(weight_decay, (int, float)) or not weight_decay >= 0:
            raise UserError(f"Supervised.weight_decay is {weight_decay!r}; use a number of at least 0")
        self._data_dir = data_dir
        self._data, self._augment, self._weight_decay = data, augment, weight_decay
        self.max_bad_images = data.max_bad_images
        self._train_source = data.open(data.train_split, data_dir)
        if not self._train_source.class_names:
            raise UserError(
                f"{self._train_source.name} has no labels, and linear evaluation needs them; sort a folder's images "
                "into one sub-folder a class, or choose a labelled data set"
            )
        self.network = Network(
            make_encoder=make_encoder,
            num_classes=len(self._train_source.class_names),
            image_size=data.image_size,
            precision=precision,
        )

    def train_input(self) -> Input:
        """See `Stage`."""
        return Input(self._train_source, one_crop(self._data.image_size, self._augment.crop_box))

    def eval_input(self) -> Input:
        """See `Stage`."""
        return Input(self._data.open(self._data.eval_split, self._data_dir), central(self._data.image_size))

    @property
    def trained_variables(self) -> list[tf.Variable]:
        """See `Stage`."""
        return self.network.classifier.trainable_variables

    @property
    def frozen_variables(self) -> list[tf.Variable]:
        """See `Stage`."""
        return self.network.encoder.variables

    def train_batch(self, batch, seeds):
        """See `Stage`; `batch` has `image`, uint8 [B, S, S, 3], and `label`."""
        logits = self.network.logits(self._augment(batch["image"], seeds), training=False)
        return {"cross_entropy": losses.cross_entropy(batch["label"], logits)}, {
            "accuracy": losses.top_1(batch["label"], logits)
        }

    def penalties(self) -> dict[str, tf.Tensor]:
        """See `Stage`."""
        if not self._weight_decay:
            return {}
        return {"weight_decay": self._weight_decay * tf.nn.l2_loss(self.network.classifier.dense.kernel)}

    def eval_batch(self, batch):
        """See `Stage`; `batch` has `image`, uint8 [B, S, S, 3]."""
        return {"logits": self.network.logits(tf.cast(batch["image"], self.network.dtype) / 255, training=False)}

    def describe(self) -> dict:
        """See `Stage`."""
        return {
            "stage": self.name,
            "network": self.network.describe(),
            "class_names": list(self._train_source.class_names),
            "data": self._data.describe(),
        }
