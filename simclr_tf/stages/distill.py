"""Distillation: a student imitates a fine-tuned teacher on images without labels (Chen et al. 2020b, section 2)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from simclr_tf.analysis import metrics
from simclr_tf.core import checks
from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf
from simclr_tf.data.augment.augment import Augment
from simclr_tf.data.class_names import disagreement, known_class_names, numbered_classes
from simclr_tf.data.dataset import Data
from simclr_tf.data.decode import unit_images
from simclr_tf.data.host_crops import central, one_crop
from simclr_tf.data.pipeline import Input
from simclr_tf.losses import classification as losses
from simclr_tf.models.heads import ProjectionHead
from simclr_tf.models.network import Network, with_first_layers
from simclr_tf.models.resnet import ResNet
from simclr_tf.stages.stage import Stage, weight_of_labelled
from simclr_tf.stages.teacher import load_teacher


class Distill(Stage):
    """A student learns a frozen teacher's class probabilities, on the very crop that the teacher sees.

    The loss is alpha x distillation on all images + (1 - alpha) x cross-entropy on labelled ones; with alpha below 1
    every step takes a batch of each. The teacher is neither trained nor part of the checkpoints.

    Losses at different temperatures have different scales. `teacher_divergence`, recorded beside them, is the
    divergence from the teacher in nats at temperature 1 and can be compared.
    """

    first_stream = "unlabelled"

    def __init__(
        self,
        data: Data,
        augment: Augment,
        make_encoder: Callable[..., ResNet],
        teacher: str,
        make_head: Callable[..., ProjectionHead] | None = None,
        head_layer: int = 0,
        temperature: float = 1.0,
        alpha: float = 1.0,
        labelled_batch_size: int | None = None,
        weight_decay: float = 0.0,
        precision: str = "float32",
        data_dir: str | None = None,
        name: str = "distill",
    ):
        """Creates the stage, its variables and the teacher.

        Args:
          data: all of the train split is distilled on; its labelled subset is what cross-entropy sees.
          augment: crop and flip, as a rule.
          make_encoder: takes `dtype`.
          teacher: a run's workdir, or a SavedModel; see `teacher.load_teacher`.
          make_head: takes `input_dim`, `used_layers` and `dtype`; only needed for a `head_layer` above 0.
          head_layer: the projection head's layer that the student's classifier reads; 0 is the encoder's output.
          temperature: divides both sides' logits, and its square multiplies the loss; in the paper 0.1 for
            self-distillation, 1.0 from big to small.
          alpha: share of the distillation loss, in (0, 1]; 1 needs no labels at all.
          labelled_batch_size: labelled images of a step over all replicas, with alpha below 1; None for as many as
            there are unlabelled ones.
          weight_decay: of the classifier's kernel, through the loss: half of it times the squared norm.
          precision: "float32", "bfloat16" or "float64"; the teacher computes in the same.
          data_dir: where data sets lie.
          name: what the stage is called in messages and results.

        Raises:
          UserError: for a teacher that does not fit the data, or a setting that makes no sense.
        """
        super().__init__(name=name)
        checks.number("Distill.temperature", temperature, above=0, hint=", such as 0.1")
        checks.number("Distill.alpha", alpha, above=0, most=1, hint=" (only the teacher)")
        checks.whole("Distill.labelled_batch_size", labelled_batch_size, optional=True)
        checks.number("Distill.weight_decay", weight_decay, least=0)
        self._data, self._augment, self._data_dir = data, augment, data_dir
        self._temperature, self._alpha, self._weight_decay = temperature, alpha, weight_decay
        self._labelled_batch_size = labelled_batch_size
        self.max_bad_images = data.max_bad_images
        self._train_source = data.open(data.train_split, data_dir)
        self._labelled_source = data.open_labelled(data_dir) if alpha < 1 else None
        self._teacher = load_teacher(teacher, precision=precision)
        if not self._teacher.takes_any_size and self._teacher.image_size != data.image_size:
            raise UserError(
                f"--teacher={teacher} takes images of {self._teacher.image_size} pixels alone, and Data.image_size is "
                f"{data.image_size}; set Data.image_size to the teacher's"
            )
        self._class_names = self._agreed_class_names()
        self.network = Network(
            make_encoder=make_encoder,
            make_head=with_first_layers(make_head, head_layer, owner="Distill"),
            num_classes=self._teacher.num_classes,
            classifier_layer=head_layer,
            image_size=data.image_size,
            precision=precision,
        )

    def _agreed_class_names(self) -> list[str]:
        """The data's class names where they are known, else the teacher's; refuses two that cannot both be right."""
        here, there = list(self._train_source.class_names or ()), list(self._teacher.class_names)
        if here and len(here) != self._teacher.num_classes:
            raise UserError(
                f"the teacher tells {self._teacher.num_classes} classes apart, but {self._train_source.name} has "
                f"{len(here)}; give a teacher for these classes, or images without labels"
            )
        first = disagreement(there, here)
        if first is not None:
            raise UserError(
                f"the teacher's classes are not those of {self._train_source.name} (it says {first[0]!r} where the data "  # noqa: E501
                f"says {first[1]!r}); give a teacher for these classes, or images without labels"
            )
        return known_class_names(here) or there or numbered_classes(self._teacher.num_classes)

    @property
    def _has_labels(self) -> bool:
        return bool(self._train_source.class_names)

    def train_inputs(self) -> dict[str, Input]:
        """See `Stage`."""
        prepare = one_crop(self._data.image_size, self._augment.crop_box)
        inputs = {"unlabelled": Input(self._train_source, prepare)}
        if self._labelled_source is not None:
            inputs["labelled"] = Input(self._labelled_source, prepare, self._labelled_batch_size)
        return inputs

    def eval_input(self) -> Input | None:
        """See `Stage`; None where the images have no labels."""
        if not self._has_labels:
            return None
        return Input(self._data.open(self._data.eval_split, self._data_dir), central(self._data.image_size))

    @property
    def trained_variables(self) -> list[tf.Variable]:
        """See `Stage`."""
        return [variable for part in self.network.parts().values() for variable in part.trainable_variables]

    @property
    def frozen_variables(self) -> list[tf.Variable]:
        """See `Stage`: the teacher's."""
        return self._teacher.variables

    def train_batch(self, batch, seeds):
        """See `Stage`; `batch` has the streams `unlabelled` and, with alpha below 1, `labelled`."""
        images = self._augment(batch["unlabelled"]["image"], seeds["unlabelled"])
        sizes = [tf.shape(images)[0]]
        if self._labelled_source is not None:
            labelled = self._augment(batch["labelled"]["image"], seeds["labelled"])
            sizes.append(tf.shape(labelled)[0])
        # One pass over both streams, so that batch norm sees them as one batch.
        together = images if len(sizes) == 1 else tf.concat([images, labelled], axis=0)
        logits = tf.split(self.network.logits(together, training=True), sizes)
        wanted = tf.cast(self._teacher.logits(images), logits[0].dtype)
        distillation = losses.distillation(wanted, logits[0], temperature=self._temperature)
        parts = {"distillation": self._alpha * distillation}
        agreement = tf.equal(tf.argmax(wanted, axis=1), tf.argmax(logits[0], axis=1))
        metrics = {
            "teacher_agreement": tf.cast(agreement, logits[0].dtype),
            "teacher_divergence": losses.divergence(wanted, logits[0]),
        }
        if self._labelled_source is not None:
            parts["cross_entropy"] = (1 - self._alpha) * losses.cross_entropy(batch["labelled"]["label"], logits[1])
        if self._has_labels:
            labels = batch["unlabelled"]["label"]
            weight = weight_of_labelled(self._train_source, labels, logits[0].dtype)
            metrics["accuracy"] = weight * losses.top_1(labels, logits[0])
            metrics["teacher_accuracy"] = weight * losses.top_1(labels, wanted)
        return parts, metrics

    def penalties(self) -> dict[str, tf.Tensor]:
        """See `Stage`."""
        if not self._weight_decay:
            return {}
        return {"weight_decay": self._weight_decay * tf.nn.l2_loss(self.network.classifier.dense.kernel)}

    def eval_batch(self, batch):
        """See `Stage`; `batch` has `image`, uint8 [B, S, S, 3]. `teacher_logits` says what the teacher thinks."""
        images = unit_images(batch["image"])
        return {"logits": self.network.logits(images, training=False), "teacher_logits": self._teacher.logits(images)}

    def measure(self, outputs):
        """See `Stage`; with the teacher's accuracy and how often the student agrees with it."""
        wanted = outputs["teacher_logits"]
        return {
            **super().measure(outputs),
            "teacher_top_1": metrics.classification(outputs["label"], wanted, self._class_names)["top_1"],
            "teacher_agreement": float(np.mean(np.argmax(outputs["logits"], axis=1) == np.argmax(wanted, axis=1))),
        }

    def initial_items(self):
        """See `Stage`; a student may start from a pretrained encoder, and takes head and classifier where they fit."""
        return self.network.parts()

    def describe(self) -> dict:
        """See `Stage`."""
        return {
            "stage": self.name,
            "network": self.network.describe(),
            "teacher": self._teacher.describe(),
            "class_names": self._class_names,
            "data": self._data.describe(),
            "augment": self._augment.describe(),
        }

    def files(self) -> dict[str, str]:
        """See `Stage`; the labelled subset that was used."""
        return self._data.subset_files(self._labelled_source)
