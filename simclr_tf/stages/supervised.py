"""Training with labels: linear evaluation, fine-tuning and training from scratch differ only in configuration."""

from __future__ import annotations

from collections.abc import Callable

from simclr_tf.core import checks
from simclr_tf.core.tf import tf
from simclr_tf.data.augment.augment import Augment
from simclr_tf.data.dataset import Data
from simclr_tf.data.decode import unit_images
from simclr_tf.data.host_crops import central, one_crop
from simclr_tf.data.pipeline import Input
from simclr_tf.losses.classification import cross_entropy, top_1
from simclr_tf.models.heads import ProjectionHead
from simclr_tf.models.network import Network, with_first_layers
from simclr_tf.models.resnet import ResNet
from simclr_tf.stages.stage import Stage


class Supervised(Stage):
    """Trains with cross-entropy on labeled images, with a classifier on a chosen layer of the projection head.

    Chen et al. 2020b, section 2: fine-tuning starts from the first layer of a three-layer head, not from the encoder's
    output. Frozen layers pass no gradient, and their batch norm stays in inference mode.
    """

    required_items = ("encoder", "head")

    def __init__(
        self,
        name: str,
        data: Data,
        augment: Augment,
        make_encoder: Callable[..., ResNet],
        make_head: Callable[..., ProjectionHead] | None = None,
        head_layer: int = 0,
        freeze_up_to: str | None = None,
        zero_init_classifier: bool = False,
        weight_decay: float = 0.0,
        precision: str = "float32",
        data_dir: str | None = None,
    ):
        """Creates the stage and its variables.

        Args:
          name: name of the stage in messages and results.
          data: data set with labels; if it has a labeled subset, only that is trained on.
          augment: augmentation of the training crops, usually just crop and flip.
          make_encoder: function that makes the encoder; takes `dtype`.
          make_head: function that makes the projection head; takes `input_dim`, `used_layers` and `dtype`. Only needed
            for a `head_layer` above 0.
          head_layer: projection head layer that the classifier reads; 0 is the encoder's output. Later layers are not
            built.
          freeze_up_to: name of the last output that is frozen, with everything before it, or None; see
            `Network.frozen_up_to`.
          zero_init_classifier: whether the classifier starts with equal logits instead of small random ones.
          weight_decay: weight decay of the classifier's kernel; the loss adds half of it times the squared norm.
          precision: "float32", "bfloat16" or "float64".
          data_dir: folder of the data sets.

        Raises:
          UserError: if there are no labels, or a setting is out of range.
        """
        super().__init__(name=name)
        checks.number("Supervised.weight_decay", weight_decay, least=0)
        self._data_dir = data_dir
        self._data, self._augment, self._weight_decay = data, augment, weight_decay
        self.max_bad_images = data.max_bad_images
        self._train_source = data.open_labelled(data_dir)
        self.network = Network(
            make_encoder=make_encoder,
            make_head=with_first_layers(make_head, head_layer, owner="Supervised"),
            num_classes=len(self._train_source.class_names),
            classifier_layer=head_layer,
            zero_init_classifier=zero_init_classifier,
            image_size=data.image_size,
            precision=precision,
        )
        self._freeze_up_to = freeze_up_to
        self._frozen = self.network.frozen_up_to(freeze_up_to)

    def train_inputs(self) -> dict[str, Input]:
        """See `Stage`."""
        return {"labelled": Input(self._train_source, one_crop(self._data.image_size, self._augment.crop_box))}

    def eval_input(self) -> Input:
        """See `Stage`."""
        return Input(self._data.open(self._data.eval_split, self._data_dir), central(self._data.image_size))

    @property
    def trained_variables(self) -> list[tf.Variable]:
        """See `Stage`."""
        frozen = {id(variable) for variable in self.frozen_variables}
        parts = self.network.parts().values()
        return [variable for part in parts for variable in part.trainable_variables if id(variable) not in frozen]

    @property
    def frozen_variables(self) -> list[tf.Variable]:
        """See `Stage`."""
        return self._frozen.variables()

    def train_batch(self, batch, seeds):
        """See `Stage`; the stream `labelled` has `image`, uint8 [B, S, S, 3], and `label`."""
        batch, seeds = batch["labelled"], seeds["labelled"]
        logits = self.network.logits(self._augment(batch["image"], seeds), training=True, frozen=self._frozen)
        return {"cross_entropy": cross_entropy(batch["label"], logits)}, {"accuracy": top_1(batch["label"], logits)}

    def penalties(self) -> dict[str, tf.Tensor]:
        """See `Stage`."""
        if not self._weight_decay:
            return {}
        return {"weight_decay": self._weight_decay * tf.nn.l2_loss(self.network.classifier.dense.kernel)}

    def eval_batch(self, batch):
        """See `Stage`; `batch` has `image`, uint8 [B, S, S, 3]."""
        return {"logits": self.network.logits(unit_images(batch["image"]), training=False)}

    def describe(self) -> dict:
        """See `Stage`."""
        return {
            "stage": self.name,
            "network": self.network.describe(),
            "freeze_up_to": self._freeze_up_to,
            "class_names": list(self._train_source.class_names),
            "data": self._data.describe(),
            "augment": self._augment.describe(),
        }

    def files(self) -> dict[str, str]:
        """See `Stage`; lists the labeled subset that was used."""
        return self._data.subset_files(self._train_source)
