"""Pictures of training images as the network sees them: the first step's views, and each augmentation alone."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from simclr_tf.analysis import contact_sheet
from simclr_tf.analysis.contact_sheet import Cell
from simclr_tf.core import randomness
from simclr_tf.core.tf import tf
from simclr_tf.data.augment.augment import Augment, random_flip
from simclr_tf.data.bad_images import bad_image_counter
from simclr_tf.data.dataset import Data
from simclr_tf.data.decode import unit_images
from simclr_tf.data.host_crops import one_crop, two_crops
from simclr_tf.data.pipeline import train_dataset
from simclr_tf.data.sources.source import Source

# Parameter of `Augment` -> name on the sheet.
_NAMES = {
    "jitter_probability": "color",
    "gray_probability": "gray",
    "blur_probability": "blur",
    "cutout_probability": "cutout",
    "rotation_probability": "rotation",
}


class Views(NamedTuple):
    """Training images and their augmented versions.

    Attributes:
      names: [N], names of the files or examples.
      labels: [N] int, -1 where unknown.
      indices: [N] int, indices in the source.
      columns: name -> N images, [H, W, 3] uint8 or float32 in [0, 1]; the originals may have any size.
    """

    names: list[str]
    labels: np.ndarray
    indices: np.ndarray
    columns: dict[str, Sequence[np.ndarray]]


def original(source: Source, index: int) -> np.ndarray:
    """Decodes a readable image as a whole, without a crop: [H, W, 3] uint8."""
    resident = source.resident()
    if resident is not None:
        return resident.images[index]
    return source.decode(source.read(tf.constant(index, tf.int64))[0]).numpy()


def alone(augment: Augment) -> dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]]:
    """Returns each augmentation that is on, by its name on the sheet: alone, always applied, at the strength set."""
    settings = augment.describe()
    parts: dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {}
    if augment.flip:
        parts["flip, 50%"] = functools.partial(random_flip, probability=1.0)
    for parameter, name in _NAMES.items():
        probability = settings[parameter]
        if probability and (parameter != "jitter_probability" or augment.color_strength > 0):
            only = Augment(**{**settings, "flip": False, **dict.fromkeys(_NAMES, 0.0), parameter: 1.0})
            parts[f"{name}, {100 * probability:.3g}%"] = only
    return parts


def views(
    data: Data,
    augment: Augment,
    *,
    stream: str = "images",
    num_images: int = 8,
    seed: int = 0,
    data_dir: str | None = None,
    count_unreadable: bool = True,
) -> Views:
    """Reproduces the first images of a run's first step, to the bit.

    Args:
      data: data set, whose training split is used.
      augment: augmentation of the training images.
      stream: name of the stage's first stream: "images" makes two views, "unlabelled" and "labelled" make one;
        "labelled" takes the labeled subset.
      num_images: number of images, at most as many as there are.
      seed: seed of the run.
      data_dir: folder of the data sets.
      count_unreadable: whether too many unreadable images are an error; counting works only if this process reads them.

    Returns:
      Views with the columns original, the views, the crop alone, and each augmentation alone on the whole image.

    Raises:
      UserError: if the data cannot be read.
    """
    two_views = stream == "images"
    source = data.open_labelled(data_dir) if stream == "labelled" else data.open(data.train_split, data_dir)
    num_images = min(num_images, source.num_examples)
    make = two_crops if two_views else one_crop
    bad_images = bad_image_counter(data.max_bad_images, source, elsewhere=not count_unreadable)
    batches = train_dataset(
        source,
        make(data.image_size, augment.crop_box),
        global_batch_size=num_images,
        per_replica_batch_size=num_images,
        seed=seed,
        num_steps=1,
        bad_images=bad_images,
        stream_name=stream,
    )
    try:
        batch = next(iter(batches))
    except tf.errors.OpError:
        if bad_images is not None:
            bad_images.check()
        raise
    index = batch["index"]
    crops = {name: batch[name] for name in (("view_1", "view_2") if two_views else ("image",))}
    seeds = randomness.example_seed(seed, randomness.stream(f"device/{stream}"), 0, index)
    # The same seeds as in the stages, so that the views are those of the run.
    folded = {name: randomness.fold_in(seeds, randomness.stream(name)) if two_views else seeds for name in crops}
    columns: dict[str, Sequence[np.ndarray]] = {"original": [original(source, i) for i in index.numpy()]}
    columns.update((name.replace("_", " "), augment(crops[name], folded[name]).numpy()) for name in crops)
    first = next(iter(crops))
    columns["crop alone"] = unit_images(crops[first]).numpy()
    whole = tf.stack([_square(image, data.image_size) for image in columns["original"]])
    for name, part in alone(augment).items():
        columns[name] = part(whole, folded[first]).numpy()
    names = [str(source.example_ids[i]) for i in index.numpy()]
    return Views(names, batch["label"].numpy(), index.numpy(), columns)


def _square(image: np.ndarray, size: int) -> tf.Tensor:
    """Resizes the largest central square of an image: [size, size, 3] float32 in [0, 1]."""
    side = min(image.shape[:2])
    y, x = ((length - side) // 2 for length in image.shape[:2])
    square = unit_images(tf.convert_to_tensor(image[y : y + side, x : x + side]))
    return tf.clip_by_value(tf.image.resize(square, [size, size], method="bicubic", antialias=True), 0.0, 1.0)


def sheet(found: Views, class_names: Sequence[str] | None, *, title: str, cell_pixels: int = 96) -> Image.Image:
    """Draws views as a contact sheet: one row per image, with its label and name."""
    rows = [[Cell(images[i]) for images in found.columns.values()] for i in range(len(found.names))]
    names = []
    for name, label in zip(found.names, found.labels):
        prefix = f"{class_names[label]}: " if class_names and label >= 0 else ""
        names.append(prefix + os.path.basename(name))
    return contact_sheet.draw(rows, columns=list(found.columns), names=names, title=title, cell_pixels=cell_pixels)
