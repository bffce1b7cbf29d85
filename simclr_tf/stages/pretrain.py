"""Contrastive pretraining without labels."""

from __future__ import annotations

from collections.abc import Callable

from simclr_tf import losses, randomness
from simclr_tf.data.augment import Augment, unit_images
from simclr_tf.data.dataset import Data
from simclr_tf.data.prepare import central, two_crops
from simclr_tf.memory import Memory
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
        make_memory: Callable[..., Memory] | None = None,
        nt_xent: str = "auto",
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
          make_memory: takes the network; None for no momentum network and no queue.
          nt_xent: how the loss is computed: "plain", "tiled" (in little memory) or "auto"; see `losses.nt_xent`.
          probe: whether to train the linear probe where labels exist.
          precision: "float32", "bfloat16" or "float64".
          data_dir: where data sets lie.
        """
        super().__init__(name=self.name)
        losses.check_temperature("Pretrain", temperature)
        losses.check_nt_xent("Pretrain", nt_xent)
        self._data_dir = data_dir
        self._data, self._augment, self._temperature = data, augment, temperature
        self._nt_xent = nt_xent
        self.max_bad_images = data.max_bad_images
        self._train_source = data.open(data.train_split, data_dir)
        self.network = Network(
            make_encoder=make_encoder,
            make_head=make_head,
            num_classes=len(self._train_source.class_names or ()) if probe else 0,
            image_size=data.image_size,
            precision=precision,
        )
        self.memory = make_memory(self.network) if make_memory is not None else None

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
        images = tf.concat(views, axis=0)
        outputs = self.network.outputs(images, training=True)
        projections = tf.split(tf.cast(outputs["projection"], self.network.dtype), 2)
        keys = self.memory.keys(images) if self.memory is not None else None
        contrast = losses.nt_xent(*projections, temperature=self._temperature, keys=keys, kind=self._nt_xent)
        parts = {"contrastive": contrast.loss}
        metrics = {
            "contrastive_accuracy": contrast.accuracy,
            "contrastive_entropy": contrast.entropy,
            "alignment": contrast.alignment,
            "uniformity": contrast.uniformity,
        }
        if self.memory is not None:
            # The loss has read the queue as it was; what follows changes it for the next step.
            self.memory.enqueue(keys)
            filled = tf.cast(keys.filled, self.network.dtype) / self.memory.queue_size
            metrics["queue_filled"] = tf.fill(tf.shape(contrast.loss), filled)
        if self.network.classifier is not None:
            logits = self.network.classifier(tf.stop_gradient(outputs["final_avg_pool"]))
            labels = tf.concat([batch["label"]] * 2, axis=0)
            parts["probe"] = _mean_of_views(losses.cross_entropy(labels, logits))
            metrics["probe_accuracy"] = _mean_of_views(losses.top_1(labels, logits))
        return parts, metrics

    def after_update(self, step):
        """See `Stage`; the momentum network follows."""
        if self.memory is not None:
            self.memory.follow(self.network)

    def after_initialize(self):
        """See `Stage`; the momentum network starts as a copy."""
        if self.memory is not None:
            self.memory.copy(self.network)

    def checkpoint_items(self):
        """See `Stage`."""
        return {**super().checkpoint_items(), **({"memory": self.memory} if self.memory is not None else {})}

    def eval_batch(self, batch):
        """See `Stage`; `batch` has `image`, uint8 [B, S, S, 3]."""
        return {"logits": self.network.logits(unit_images(batch["image"]), training=False)}

    def describe(self) -> dict:
        """See `Stage`."""
        return {
            "stage": self.name,
            "network": self.network.describe(),
            "memory": self.memory.describe() if self.memory is not None else None,
            "class_names": list(self._train_source.class_names or ()),
            "data": self._data.describe(),
            "augment": self._augment.describe(),
        }

    def constants(self, global_batch_size: int) -> dict[str, float]:
        """See `Stage`."""
        return {"chance_loss": losses.nt_xent_chance(global_batch_size, self.memory.queue_size if self.memory else 0)}

    def costs(self, global_batch_size: int) -> dict[str, int]:
        """See `Stage`."""
        return self.memory.costs(global_batch_size) if self.memory is not None else {}


def _mean_of_views(values: tf.Tensor) -> tf.Tensor:
    """[2B] -> [B]."""
    return tf.reduce_mean(tf.reshape(values, [2, -1]), axis=0)
