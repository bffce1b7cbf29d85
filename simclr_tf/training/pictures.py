"""Draws pictures for TensorBoard during a run: augmented training images, nearest neighbors, the embedding.

`workdir/records.py` writes the scalars. Only the process that writes the records draws. Drawing affects no step.
"""

from __future__ import annotations

import math
import os

import numpy as np

from simclr_tf.analysis import contact_sheet, training_views
from simclr_tf.analysis.contact_sheet import Cell
from simclr_tf.analysis.features import THUMBNAIL, choose_queries, nearest
from simclr_tf.core.errors import UserError
from simclr_tf.core.files import write_bytes, write_text, writing
from simclr_tf.core.tf import tf
from simclr_tf.data.augment.augment import Augment
from simclr_tf.data.bad_images import IgnoredImages
from simclr_tf.data.dataset import Data
from simclr_tf.data.decode import unit_images
from simclr_tf.data.host_crops import central
from simclr_tf.data.pipeline import eval_dataset
from simclr_tf.data.sources.source import Source
from simclr_tf.data.sources.subset import sample
from simclr_tf.models.network import Network
from simclr_tf.workdir import tensorboard
from simclr_tf.workdir.tensorboard import board_writer

_BATCH = 50
_SHEET_IMAGES, _QUERIES, _NEIGHBORS = 4, 10, 8
_SAME, _OTHER = (22, 144, 90), (201, 53, 43)


class Pictures:
    """Writes pictures to a run's folder `tensorboard`: image panels, and the files of the embedding projector."""

    def __init__(self, workdir: str, network: Network, description: dict, *, num_images: int, data_dir: str | None):
        """Reads the images to draw.

        Args:
          workdir: folder of the run.
          network: network in training; `draw` uses its weights of that moment.
          description: description of the stage; see `Stage.describe`.
          num_images: number of random images from the evaluation split, or from the training split if there is none.
          data_dir: folder of the data sets.
        """
        self._folder = os.path.join(workdir, "tensorboard")
        self._network, self._description, self._data_dir = network, description, data_dir
        self._data = Data(**description["data"])
        source = sample(self._source(), num_images)
        self._names = [str(name) for name in source.example_ids]
        self._class_names = description.get("class_names") or ()
        size = {"batch_size": _BATCH, "per_replica_batch_size": _BATCH}
        # Unreadable images have weight 0. Here they are ignored: training counts them and stops if there are too many.
        ignored = IgnoredImages()
        batches = list(eval_dataset(source, central(self._data.image_size), **size, bad_images=ignored))
        joined = {name: np.concatenate([batch[name].numpy() for batch in batches]) for name in batches[0]}
        self._images, self._sound = joined["image"], np.flatnonzero(joined["weight"] > 0)
        self._labels, self._indices = joined["label"][self._sound], joined["index"][self._sound]
        self._writer = board_writer(self._folder, filename_suffix=".images")
        self._features = tf.function(self._compute, reduce_retracing=True, autograph=False)
        self._has_sprite = False

    def _source(self) -> Source:
        try:
            return self._data.open(self._data.eval_split, self._data_dir)
        except UserError:  # There is no such split, which unlabeled data do not need.
            return self._data.open(self._data.train_split, self._data_dir)

    def _compute(self, images: tf.Tensor) -> tf.Tensor:
        outputs = self._network.outputs(unit_images(images), training=False)
        return tf.cast(outputs["final_avg_pool"], tf.float32)

    def show_augmentations(self, seed: int, stream: str) -> None:
        """Draws the first images of the run's first step, as `--mode=preview` does.

        Args:
          seed: seed of the run.
          stream: name of the stage's first stream.
        """
        augment = Augment(**self._description["augment"])
        found = training_views.views(
            self._data,
            augment,
            stream=stream,
            num_images=_SHEET_IMAGES,
            seed=seed,
            data_dir=self._data_dir,
            count_unreadable=False,
        )
        sheet = training_views.sheet(found, self._class_names, title=f"The first images of step 0, seed {seed}")
        self._show("what training sees", np.asarray(sheet), 0)

    def draw(self, step: int) -> None:
        """Draws nearest neighbors and writes the embedding for the projector, after `step` steps."""
        parts = np.split(self._images, range(_BATCH, len(self._images), _BATCH))
        features = np.concatenate([self._features(tf.constant(part)).numpy() for part in parts])[self._sound]
        if len(features) < 2:
            return
        images = self._images[self._sound]
        queries = choose_queries(self._labels, _QUERIES)
        rows = []
        for query, found, similarity in zip(queries, *nearest(features, queries, _NEIGHBORS)):
            row = [Cell(images[query], self._name(query))]
            for i, value in zip(found, similarity):
                known = self._labels[query] >= 0 and self._labels[i] >= 0
                color = (_SAME if self._labels[i] == self._labels[query] else _OTHER) if known else None
                row.append(Cell(images[i], f"{value:.2f} {self._name(i)}", color))
            rows.append(row)
        sheet = contact_sheet.draw(rows, columns=["image", "neighbors"], title=f"Nearest neighbors at step {step}")
        self._show("nearest neighbors", np.asarray(sheet), step)
        self._project(features, images)

    def _name(self, i: int) -> str:
        label = self._labels[i]
        return self._class_names[label] if self._class_names and label >= 0 else self._file(i)

    def _file(self, i: int) -> str:
        return os.path.basename(self._names[self._indices[i]])

    def _show(self, name: str, picture: np.ndarray, step: int) -> None:
        with writing(self._folder), self._writer.as_default():
            tensorboard.image(name, picture, step=step)
            self._writer.flush()

    def _project(self, features: np.ndarray, images: np.ndarray) -> None:
        """Writes the newest embedding for the projector; names and thumbnails only once."""
        lines = ["\t".join(f"{value:.5g}" for value in row) for row in features]
        write_text(os.path.join(self._folder, "features.tsv"), "\n".join(lines) + "\n")
        if self._has_sprite:
            return
        side = math.ceil(math.sqrt(len(images)))
        small = min(THUMBNAIL, images.shape[1])
        sprite = np.full([side * small, side * small, 3], 255, np.uint8)
        resized = tf.image.resize(images, [small, small], method="area").numpy().round().astype(np.uint8)
        for i, image in enumerate(resized):
            y, x = divmod(i, side)
            sprite[y * small : (y + 1) * small, x * small : (x + 1) * small] = image
        rows = ["class\tname"]
        for i, label in enumerate(self._labels):
            class_name = self._class_names[label] if self._class_names and label >= 0 else ""
            rows.append("\t".join(" ".join(text.split()) for text in (class_name, self._file(i))))
        write_text(os.path.join(self._folder, "names.tsv"), "\n".join(rows) + "\n")
        write_bytes(os.path.join(self._folder, "sprite.png"), contact_sheet.png(sprite))
        write_text(
            os.path.join(self._folder, "projector_config.pbtxt"),
            'embeddings {\n  tensor_name: "encoder"\n  tensor_path: "features.tsv"\n  metadata_path: "names.tsv"\n'
            f'  sprite {{\n    image_path: "sprite.png"\n    single_image_dim: {small}\n    single_image_dim: {small}\n'
            "  }\n}\n",
        )
        self._has_sprite = True

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


def is_worth_a_look(step: int, steps: int, checkpoint_every_steps: int) -> bool:
    """Whether to draw pictures at a checkpoint: the first, second, fourth, eighth and so on, and the last.

    >>> [step for step in range(10, 101, 10) if is_worth_a_look(step, 100, 10)]
    [10, 20, 40, 80, 100]
    """
    number = step // checkpoint_every_steps
    return step == steps or (step % checkpoint_every_steps == 0 and number & (number - 1) == 0)
