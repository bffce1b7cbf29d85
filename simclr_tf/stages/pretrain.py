"""Contrastive pretraining without labels."""

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
    """SimCLR: two augmented views of each image attract, views of different images repel (Chen et al. 2020a, b).

    Where labels exist, a linear probe behind a stopped gradient learns beside it and reports what the encoder knows; it
    changes nothing in the encoder.
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
          data: what to learn from.
          augment: what makes two views of an image.
          make_encoder: takes `dtype`.
          make_head: takes `input_dim` and `dtype`.
          temperature: of the contrastive loss.
          make_memory: takes the network; None for no momentum network and no queue.
          nt_xent: how the loss is computed: "plain", "tiled" (in little memory) or "auto"; see `nt_xent.nt_xent`.
          micro_batch_size: images, over all replicas, whose activations are in memory at a time; None for the whole
            batch. The loss and its gradient are the whole batch's; batch norm sees one micro-batch.
          micro_batch_norm: what that is: "apart", where an image's two views are in different micro-batches and so
            never share statistics that would tell them; "together", where they are in the same one; or "averages",
            where batch norm is in inference mode and its moving averages stay as they are (for a trained network).
          probe: whether to train the linear probe where labels exist.
          probe_weight_decay: of the probe's kernel, through the loss: half of it times the squared norm.
          precision: "float32", "bfloat16" or "float64".
          data_dir: where data sets lie.
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
        """See `Stage`; micro-batches must divide it."""
        size = self._micro_batch_size
        if size is not None and (size % replicas or global_batch_size % size):
            raise UserError(
                f"Pretrain.micro_batch_size is {size}, for a global batch of {global_batch_size} on {replicas} "
                "replica(s); use a divisor of the batch that the replicas divide"
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
            # The loss has read the queue as it was; what follows changes it for the next step.
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
        """Returns both views' images one after the other, augmented."""
        images, seeds = (tf.concat([view[name] for view in views.values()], axis=0) for name in ("image", "seed"))
        return self._augment(images, seeds)

    def _encode(self, images: tf.Tensor, *, training: bool = True) -> dict[str, tf.Tensor]:
        """Returns what the losses read of the online network's outputs, in the variables' type."""
        outputs = self.network.outputs(images, training=training)
        return {name: tf.cast(outputs[name], self.network.dtype) for name in ("projection", "final_avg_pool")}

    def _whole(self, views):
        """Returns the online network's outputs for each view, and the keys or None."""
        images = self._images(views)
        online = _by_view(self._encode(images))
        keys = self.memory.keys(*tf.split(self.memory.project(images), 2)) if self.memory is not None else None
        return online, keys

    def _in_parts(self, views):
        """What `_whole` returns, with the activations of one micro-batch at a time."""
        rows, replicas = views["view_1"]["image"].shape[0], collectives.num_replicas()
        count = rows * replicas // self._micro_batch_size
        apart, training = self._micro_batch_norm == "apart", self._micro_batch_norm != "averages"

        def by_view(outputs):
            first, second = ({name: value[:, i] for name, value in outputs.items()} for i in (0, 1))
            return first, ({name: tf.roll(value, -1, axis=0) for name, value in second.items()} if apart else second)

        def of_both(outputs):
            return {name: tf.stack(tf.split(value, 2), axis=1) for name, value in outputs.items()}

        if apart:  # An image's second view goes to the micro-batch after its first one's.
            views = {**views, "view_2": {name: tf.roll(value, 1, axis=0) for name, value in views["view_2"].items()}}
        widths = {"projection": projection_dim(self.network), "final_avg_pool": self.network.encoder.feature_dim}
        returns = {name: tf.TensorSpec([2, width], self.network.dtype) for name, width in widths.items()}
        variables = [v for name in ("encoder", "head") for v in self.network.parts()[name].trainable_variables]
        online = micro_batches.outputs_with_gradient(
            lambda part: of_both(self._encode(self._images(part), training=training)), views, count, returns, variables
        )
        if self.memory is None:
            return by_view(online), None
        momentum = micro_batches.outputs(
            lambda part: of_both({"projection": self.memory.project(self._images(part), training=training)}),
            views,
            count,
            {"projection": returns["projection"]},
        )
        return by_view(online), self.memory.keys(*(view["projection"] for view in by_view(momentum)))

    def after_update(self, step):
        """See `Stage`; the momentum network follows."""
        if self.memory is not None:
            self.memory.follow(self.network)

    def initial_items(self):
        """See `Stage`; the probe and the memory are taken, too."""
        return {**self.network.parts(), **(self.memory.items() if self.memory is not None else {})}

    def misfit(self, item, description):
        """See `Stage`; a probe of other classes does not fit."""
        if item.startswith("memory/"):
            return self.memory.misfit(item, description)
        differ = disagreement(description.get("class_names"), self._train_source.class_names)
        if item != "classifier" or differ is None:
            return super().misfit(item, description)
        return [f"class {differ[0]!r} there is {differ[1]!r} here"]

    def after_initialize(self, taken=()):
        """See `Stage`; the momentum network starts as a copy unless it was taken."""
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
    """[2B, ...] each -> [B, ...] each, of the first and of the second views."""
    halves = {name: tf.split(value, 2) for name, value in outputs.items()}
    return tuple({name: half[i] for name, half in halves.items()} for i in (0, 1))


def _mean_of_views(values: tf.Tensor) -> tf.Tensor:
    """[2B] -> [B]."""
    return tf.reduce_mean(tf.reshape(values, [2, -1]), axis=0)
