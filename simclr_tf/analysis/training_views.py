"""Training images as the network sees them, for people: the views of the first step, and each augmentation alone."""

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

_NAMES = {
    "jitter_probability": "color",
    "gray_probability": "gray",
    "blur_probability": "blur",
    "cutout_probability": "cutout",
    "rotation_probability": "rotation",
}


class Views(NamedTuple):
    """Training images and what becomes of them.

    Attributes:
      names: [N], of the files or examples.
      labels: [N] int, -1 where unknown.
      indices: [N] int, in the source.
      columns: name -> N images, [H, W, 3] uint8 or float32 in [0, 1]; the originals of any size.
    """

    names: list[str]
    labels: np.ndarray
    indices: np.ndarray
    columns: dict[str, Sequence[np.ndarray]]


def original(source: Source, index: int) -> np.ndarray:
    """Returns a whole decoded image, [H, W, 3] uint8; it has to be readable."""
    resident = source.resident()
    if resident is not None:
        return resident.images[index]
    return source.decode(source.read(tf.constant(index, tf.int64))[0]).numpy()


def alone(augment: Augment) -> dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]]:
    """Returns each augmentation that is on, by its name in the sheet: alone, certain, in the strength that is set."""
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
    """Makes what the run with this seed makes of the first images of its first step, to the bit.

    Args:
      data: its training split is used.
      augment: what training does to an image.
      stream: a stage's first one: of "images" there are two views, of "unlabelled" and "labelled" ones one; the latter
        are the labelled subset.
      num_images: how many; no more than there are.
      seed: the run's.
      data_dir: where data sets lie.
      count_unreadable: whether too many unreadable images are an error; counting them needs Python where they are read.

    Returns:
      The columns: originals, the views, the crop alone, and each augmentation alone on the whole image.

    Raises:
      UserError: for data that cannot be had.
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
    """The largest central square, brought to a size: [size, size, 3] float32 in [0, 1]."""
    side = min(image.shape[:2])
    y, x = ((length - side) // 2 for length in image.shape[:2])
    square = unit_images(tf.convert_to_tensor(image[y : y + side, x : x + side]))
    return tf.clip_by_value(tf.image.resize(square, [size, size], method="bicubic", antialias=True), 0.0, 1.0)


def sheet(found: Views, class_names: Sequence[str] | None, *, title: str, cell_pixels: int = 96) -> Image.Image:
    """Draws views as a contact sheet, one image a row, with its label and name."""
    rows = []
    for i in range(len(found.names)):
        rows.append([Cell(images[i]) for images in found.columns.values()])
    names = []
    for name, label in zip(found.names, found.labels):
        of_class = f"{class_names[label]}: " if class_names and label >= 0 else ""
        names.append(of_class + os.path.basename(name))
    return contact_sheet.draw(rows, columns=list(found.columns), names=names, title=title, cell_pixels=cell_pixels)
