"""Contrastive pretraining without labels (Chen et al. 2020a, b)."""

from __future__ import annotations

from collections.abc import Callable

from simclr_tf.core import checks, randomness
from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf
from simclr_tf.data.augment.augment import Augment
from simclr_tf.data.class_names import disagreement
from simclr_tf.data.dataset import Data
from simclr_tf.data.decode import unit_images
from simclr_tf.data.host_crops import central, two_crops
from simclr_tf.data.pipeline import Input
from simclr_tf.distribute import collectives
from simclr_tf.losses.classification import cross_entropy, top_1
from simclr_tf.losses.nt_xent import NT_XENT_KINDS, nt_xent, nt_xent_chance
from simclr_tf.models.heads import ProjectionHead
from simclr_tf.models.network import Network
from simclr_tf.models.resnet import ResNet
from simclr_tf.stages import micro_batches
from simclr_tf.stages.memory import Memory, projection_dim
from simclr_tf.stages.stage import Stage, weight_of_labelled

_NORMS = ("apart", "together", "averages")


class Pretrain(Stage):
    """SimCLR: two augmented views of each image attract each other, views of different images repel each other.

    If the images have labels, a linear probe trains alongside and reports what the encoder knows. It reads the features
    behind a stopped gradient, so it changes nothing in the encoder.
    """

    name = "pretrain"
    first_stream = "images"
    separable = False
    instead_of_accumulation = ", and use Pretrain.micro_batch_size, which is exact"

    def __init__(
        self,
        data: Data,
        augment: Augment,
        make_encoder: Callable[..., ResNet],
        make_head: Callable[..., ProjectionHead],
        temperature: float = 0.1,
        make_memory: Callable[..., Memory] | None = None,
        nt_xent: str = "auto",
        micro_batch_size: int | None = None,
        micro_batch_norm: str = "apart",
        probe: bool = True,
        probe_weight_decay: float = 0.0,
        precision: str = "float32",
        data_dir: str | None = None,
    ):
        """Creates the stage and its variables.

        Args:
          data: data set to learn from.
          augment: augmentation that makes the two views of an image.
          make_encoder: function that makes the encoder; takes `dtype`.
          make_head: function that makes the projection head; takes `input_dim` and `dtype`.
          temperature: temperature of the contrastive loss, above 0.
          make_memory: function that makes the memory; takes the network. None for no momentum network and no queue.
          nt_xent: implementation of the loss: "plain", "tiled" (needs little memory) or "auto"; see `nt_xent.nt_xent`.
          micro_batch_size: images, over all replicas, whose activations are in memory at a time; None for the whole
            batch. The loss and its gradient are the whole batch's; batch norm sees one micro-batch.
          micro_batch_norm: what batch norm sees. "apart" puts an image's two views into different micro-batches, so
            that shared statistics cannot give the pair away. "together" puts them into the same one. "averages" runs
            batch norm in inference mode and leaves its moving averages alone (for a trained network).
          probe: whether to train the linear probe if there are labels.
          probe_weight_decay: weight decay of the probe's kernel; the loss adds half of it times the squared norm.
          precision: "float32", "bfloat16" or "float64".
          data_dir: folder of the data sets.

        Raises:
          UserError: if a setting is out of range.
        """
        super().__init__(name=self.name)
        checks.number("Pretrain.temperature", temperature, above=0, hint=", such as 0.1")
        checks.choice("Pretrain.nt_xent", nt_xent, NT_XENT_KINDS)
        checks.number("Pretrain.probe_weight_decay", probe_weight_decay, least=0)
        checks.whole("Pretrain.micro_batch_size", micro_batch_size, optional=True)
        checks.choice("Pretrain.micro_batch_norm", micro_batch_norm, _NORMS)
        self._data_dir, self._probe_weight_decay = data_dir, probe_weight_decay
        self._data, self._augment, self._temperature = data, augment, temperature
        self._nt_xent = nt_xent
        self._micro_batch_size, self._micro_batch_norm = micro_batch_size, micro_batch_norm
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

    def check_batch(self, global_batch_size, replicas):
        """See `Stage`; the micro-batch size must divide the batch."""
        size = self._micro_batch_size
        if size is not None and (size % replicas or global_batch_size % size):
            raise UserError(
                f"Pretrain.micro_batch_size is {size}, for a global batch of {global_batch_size} on {replicas} "
                f"replica(s); use a divisor of {global_batch_size} that is a multiple of {replicas}"
            )

    def train_inputs(self) -> dict[str, Input]:
        """See `Stage`."""
        return {"images": Input(self._train_source, two_crops(self._data.image_size, self._augment.crop_box))}

    def eval_input(self) -> Input | None:
        """See `Stage`; None without a probe."""
        if self.network.classifier is None:
            return None
        return Input(self._data.open(self._data.eval_split, self._data_dir), central(self._data.image_size))

    @property
    def trained_variables(self) -> list[tf.Variable]:
        """See `Stage`."""
        return [variable for part in self.network.parts().values() for variable in part.trainable_variables]

    def train_batch(self, batch, seeds):
        """See `Stage`; the stream `images` has `view_1` and `view_2`, uint8 [B, S, S, 3], and `label`."""
        views = {
            name: {"image": batch["images"][name], "seed": randomness.fold_in(seeds["images"], randomness.stream(name))}
            for name in ("view_1", "view_2")
        }
        (first, second), keys = self._whole(views) if self._micro_batch_size is None else self._in_parts(views)
        contrast = nt_xent(
            first["projection"], second["projection"], temperature=self._temperature, keys=keys, kind=self._nt_xent
        )
        parts = {"contrastive": contrast.loss}
        metrics = {
            "contrastive_accuracy": contrast.accuracy,
            "contrastive_entropy": contrast.entropy,
            "alignment": contrast.alignment,
            "uniformity": contrast.uniformity,
        }
        if self.memory is not None:
            # The loss has already read the queue; these keys are for the next step.
            self.memory.enqueue(keys)
            filled = tf.cast(keys.filled, self.network.dtype) / self.memory.queue_size
            metrics["queue_filled"] = tf.fill(tf.shape(contrast.loss), filled)
        if self.network.classifier is not None:
            features = tf.concat([first["final_avg_pool"], second["final_avg_pool"]], axis=0)
            logits = self.network.classifier(tf.stop_gradient(features))
            labels = tf.concat([batch["images"]["label"]] * 2, axis=0)
            weight = weight_of_labelled(self._train_source, batch["images"]["label"], logits.dtype)
            parts["probe"] = weight * _mean_of_views(cross_entropy(labels, logits))
            metrics["probe_accuracy"] = weight * _mean_of_views(top_1(labels, logits))
        return parts, metrics

    def penalties(self) -> dict[str, tf.Tensor]:
        """See `Stage`."""
        if not self._probe_weight_decay or self.network.classifier is None:
            return {}
        return {"weight_decay": self._probe_weight_decay * tf.nn.l2_loss(self.network.classifier.dense.kernel)}

    def _images(self, views) -> tf.Tensor:
        """Returns the augmented images of both views, [2B, S, S, 3], first views first."""
        images, seeds = (tf.concat([view[name] for view in views.values()], axis=0) for name in ("image", "seed"))
        return self._augment(images, seeds)

    def _encode(self, images: tf.Tensor, *, training: bool = True) -> dict[str, tf.Tensor]:
        """Returns the online network's outputs that the losses read, in the variables' type."""
        outputs = self.network.outputs(images, training=training)
        return {name: tf.cast(outputs[name], self.network.dtype) for name in ("projection", "final_avg_pool")}

    def _whole(self, views):
        """Returns the online network's outputs for each view, and the keys (None without a memory)."""
        images = self._images(views)
        online = _by_view(self._encode(images))
        keys = self.memory.keys(*tf.split(self.memory.project(images), 2)) if self.memory is not None else None
        return online, keys

    def _in_parts(self, views):
        """Returns what `_whole` does, with the activations of one micro-batch in memory at a time."""
        rows, replicas = views["view_1"]["image"].shape[0], collectives.num_replicas()
        count = rows * replicas // self._micro_batch_size
        apart, training = self._micro_batch_norm == "apart", self._micro_batch_norm != "averages"

        def by_view(outputs):
            first, second = ({name: value[:, i] for name, value in outputs.items()} for i in (0, 1))
            return first, ({name: tf.roll(value, -1, axis=0) for name, value in second.items()} if apart else second)

        def stack_views(outputs):
            return {name: tf.stack(tf.split(value, 2), axis=1) for name, value in outputs.items()}

        # `cut` gives each micro-batch every count-th row, so rolling the second views by one row moves each of them to
        # the next micro-batch. `by_view` rolls their outputs back.
        if apart:
            views = {**views, "view_2": {name: tf.roll(value, 1, axis=0) for name, value in views["view_2"].items()}}
        widths = {"projection": projection_dim(self.network), "final_avg_pool": self.network.encoder.feature_dim}
        returns = {name: tf.TensorSpec([2, width], self.network.dtype) for name, width in widths.items()}
        variables = [v for name in ("encoder", "head") for v in self.network.parts()[name].trainable_variables]
        online = micro_batches.outputs_with_gradient(
            lambda part: stack_views(self._encode(self._images(part), training=training)),
            views,
            count,
            returns,
            variables,
        )
        if self.memory is None:
            return by_view(online), None
        momentum = micro_batches.outputs(
            lambda part: stack_views({"projection": self.memory.project(self._images(part), training=training)}),
            views,
            count,
            {"projection": returns["projection"]},
        )
        return by_view(online), self.memory.keys(*(view["projection"] for view in by_view(momentum)))

    def after_update(self, step):
        """See `Stage`; moves the momentum network."""
        if self.memory is not None:
            self.memory.follow(self.network)

    def initial_items(self):
        """See `Stage`; includes the probe and the memory."""
        return {**self.network.parts(), **(self.memory.items() if self.memory is not None else {})}

    def misfit(self, item, description):
        """See `Stage`; a probe for other classes does not fit."""
        if item.startswith("memory/"):
            return self.memory.misfit(item, description)
        differ = disagreement(description.get("class_names"), self._train_source.class_names)
        if item != "classifier" or differ is None:
            return super().misfit(item, description)
        return [f"class {differ[0]!r} of that run is {differ[1]!r} here"]

    def after_initialize(self, taken=()):
        """See `Stage`; copies the online network into the momentum network, unless that was taken."""
        if self.memory is not None and "memory/network" not in taken:
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
        return {"chance_loss": nt_xent_chance(global_batch_size, self.memory.queue_size if self.memory else 0)}

    def costs(self, global_batch_size: int) -> dict[str, int]:
        """See `Stage`."""
        return self.memory.costs(global_batch_size) if self.memory is not None else {}


def _by_view(outputs: dict[str, tf.Tensor]) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
    """Splits each output, [2B, ...], into those of the first and of the second views, [B, ...]."""
    halves = {name: tf.split(value, 2) for name, value in outputs.items()}
    return tuple({name: half[i] for name, half in halves.items()} for i in (0, 1))


def _mean_of_views(values: tf.Tensor) -> tf.Tensor:
    """Averages the two views' values of each image, [2B] -> [B]."""
    return tf.reduce_mean(tf.reshape(values, [2, -1]), axis=0)
