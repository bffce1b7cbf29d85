"""Contrastive pretraining without labels."""

from __future__ import annotations

from collections.abc import Callable

from simclr_tf import losses, randomness
from simclr_tf.data.augment import Augment, unit_images
from simclr_tf.data.dataset import Data
from simclr_tf.data.prepare import central, two_crops
from simclr_tf.models.heads import ProjectionHead
from simclr_tf.models.network import Network
from simclr_tf.models.resnet import ResNet
from simclr_tf.stack import tf
from simclr_tf.stages.base import Input, Stage


class Pretrain(Stage):
    """SimCLR: two augmented views of each image attract, views of different images repel (Chen et al. 2020a, b).

    Where labels exist, a linear probe behind a stopped gradient learns beside it and reports what the encoder knows; it
    changes nothing in the encoder.
    """

    name = "pretrain"

    def __init__(
        self,
        data: Data,
        augment: Augment,
        make_encoder: Callable[..., ResNet],
        make_head: Callable[..., ProjectionHead],
        temperature: float = 0.1,
        probe: bool = True,
        precision: str = "float32",
        data_dir: str | None = None,
    ):
        """Creates the stage and its variables.

        Args:
          data: what to learn from.
          augment: what makes two views of an image.
          make_encoder: takes `dtype`.
          make_head: takes `input_dim` and `dtype`.
          temperature: of the contrastive loss.
          probe: whether to train the linear probe where labels exist.
          precision: "float32", "bfloat16" or "float64".
          data_dir: where data sets lie.
        """
        super().__init__(name=self.name)
        losses.check_temperature("Pretrain", temperature)
        self._data_dir = data_dir
        self._data, self._augment, self._temperature = data, augment, temperature
        self.max_bad_images = data.max_bad_images
        self._train_source = data.open(data.train_split, data_dir)
        self.network = Network(
            make_encoder=make_encoder,
            make_head=make_head,
            num_classes=len(self._train_source.class_names or ()) if probe else 0,
            image_size=data.image_size,
            precision=precision,
        )

    def train_inputs(self) -> dict[str, Input]:
        """See `Stage`."""
        return {"images": Input(self._train_source, two_crops(self._data.image_size, self._augment.crop_box))}

    def eval_input(self) -> Input | None:
        """The probe's test examples; None without a probe."""
        if self.network.classifier is None:
            return None
        return Input(self._data.open(self._data.eval_split, self._data_dir), central(self._data.image_size))

    @property
    def trained_variables(self) -> list[tf.Variable]:
        """See `Stage`."""
        return [variable for part in self.network.parts().values() for variable in part.trainable_variables]

    def train_batch(self, batch, seeds):
        """See `Stage`; the stream `images` has `view_1` and `view_2`, uint8 [B, S, S, 3], and `label`."""
        batch, seeds = batch["images"], seeds["images"]
        views = [
            self._augment(batch[name], randomness.fold_in(seeds, randomness.stream(name))) for name in ("view_1", "view_2")
        ]
        outputs = self.network.outputs(tf.concat(views, axis=0), training=True)
        projections = tf.split(tf.cast(outputs["projection"], self.network.dtype), 2)
        contrast = losses.nt_xent(*projections, temperature=self._temperature)
        parts = {"contrastive": contrast.loss}
        metrics = {
            "contrastive_accuracy": contrast.accuracy,
            "contrastive_entropy": contrast.entropy,
            "alignment": contrast.alignment,
            "uniformity": contrast.uniformity,
        }
        if self.network.classifier is not None:
            logits = self.network.classifier(tf.stop_gradient(outputs["final_avg_pool"]))
            labels = tf.concat([batch["label"]] * 2, axis=0)
            parts["probe"] = _mean_of_views(losses.cross_entropy(labels, logits))
            metrics["probe_accuracy"] = _mean_of_views(losses.top_1(labels, logits))
        return parts, metrics

    def eval_batch(self, batch):
        """See `Stage`; `batch` has `image`, uint8 [B, S, S, 3]."""
        return {"logits": self.network.logits(unit_images(batch["image"]), training=False)}

    def describe(self) -> dict:
        """See `Stage`."""
        return {
            "stage": self.name,
            "network": self.network.describe(),
            "class_names": list(self._train_source.class_names or ()),
            "data": self._data.describe(),
        }

    def constants(self, global_batch_size: int) -> dict[str, float]:
        """See `Stage`."""
        return {"chance_loss": losses.nt_xent_chance(global_batch_size)}


def _mean_of_views(values: tf.Tensor) -> tf.Tensor:
    """[2B] -> [B]."""
    return tf.reduce_mean(tf.reshape(values, [2, -1]), axis=0)
