"""Distillation: a student learns to imitate a fine-tuned teacher on unlabeled images (Chen et al. 2020b, section 2)."""

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
    """Trains a student to predict a frozen teacher's class probabilities, on the same crops that the teacher sees.

    The loss is alpha x distillation on all images + (1 - alpha) x cross-entropy on labeled ones. With alpha below 1,
    every step takes a batch of each. The teacher is neither trained nor saved in the checkpoints.

    Losses at different temperatures have different scales. To compare such runs, use the metric `teacher_divergence`:
    the divergence from the teacher in nats at temperature 1.
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
          data: data set; distillation uses the whole train split, cross-entropy its labeled subset.
          augment: augmentation of the training crops, usually just crop and flip.
          make_encoder: function that makes the encoder; takes `dtype`.
          teacher: workdir of a run, or folder of a SavedModel; see `teacher.load_teacher`.
          make_head: function that makes the projection head; takes `input_dim`, `used_layers` and `dtype`. Only needed
            for a `head_layer` above 0.
          head_layer: projection head layer that the student's classifier reads; 0 is the encoder's output.
          temperature: divisor of the student's and the teacher's logits; the loss is multiplied by its square. The
            paper takes 0.1 for self-distillation and 1.0 from big to small.
          alpha: weight of the distillation loss, in (0, 1]; 1 needs no labels at all.
          labelled_batch_size: labeled images per step over all replicas, with alpha below 1; None takes as many as
            there are unlabeled ones.
          weight_decay: weight decay of the classifier's kernel; the loss adds half of it times the squared norm.
          precision: "float32", "bfloat16" or "float64", for the student and for a teacher from a workdir.
          data_dir: folder of the data sets.
          name: name of the stage in messages and results.

        Raises:
          UserError: if the teacher does not fit the data, or a setting is out of range.
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
                f"--teacher={teacher} only takes images of {self._teacher.image_size} pixels, but Data.image_size is "
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
        """Returns the data's class names if known, else the teacher's; refuses two that contradict each other."""
        here, there = list(self._train_source.class_names or ()), list(self._teacher.class_names)
        if here and len(here) != self._teacher.num_classes:
            raise UserError(
                f"the teacher has {self._teacher.num_classes} classes, but {self._train_source.name} has "
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
        """See `Stage`; None if the images have no labels."""
        if not self._has_labels:
            return None
        return Input(self._data.open(self._data.eval_split, self._data_dir), central(self._data.image_size))

    @property
    def trained_variables(self) -> list[tf.Variable]:
        """See `Stage`."""
        return [variable for part in self.network.parts().values() for variable in part.trainable_variables]

    @property
    def frozen_variables(self) -> list[tf.Variable]:
        """See `Stage`: the teacher's variables."""
        return self._teacher.variables

    def train_batch(self, batch, seeds):
        """See `Stage`; `batch` has the streams `unlabelled` and, with alpha below 1, `labelled`."""
        images = self._augment(batch["unlabelled"]["image"], seeds["unlabelled"])
        sizes = [tf.shape(images)[0]]
        if self._labelled_source is not None:
            labelled = self._augment(batch["labelled"]["image"], seeds["labelled"])
            sizes.append(tf.shape(labelled)[0])
        # A single forward pass over both streams lets batch norm see them as one batch.
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
        """See `Stage`; `batch` has `image`, uint8 [B, S, S, 3]. adds `teacher_logits`."""
        images = unit_images(batch["image"])
        return {"logits": self.network.logits(images, training=False), "teacher_logits": self._teacher.logits(images)}

    def measure(self, outputs):
        """See `Stage`; adds the teacher's accuracy and how often the student agrees with it."""
        wanted = outputs["teacher_logits"]
        return {
            **super().measure(outputs),
            "teacher_top_1": metrics.classification(outputs["label"], wanted, self._class_names)["top_1"],
            "teacher_agreement": float(np.mean(np.argmax(outputs["logits"], axis=1) == np.argmax(wanted, axis=1))),
        }

    def initial_items(self):
        """See `Stage`; a student may start from a pretrained encoder, and takes the head and classifier if they fit."""
        return self.network.parts()

    def describe(self) -> dict:
        """See `Stage`."""
        return {
            "stage": self.name,
            "network": self.network.describe(),
            "teacher": self._teacher.describe(),
            "alpha": self._alpha,
            "class_names": self._class_names,
            "data": self._data.describe(),
            "augment": self._augment.describe(),
        }

    def files(self) -> dict[str, str]:
        """See `Stage`; lists the labeled subset that was used."""
        return self._data.subset_files(self._labelled_source)
