"""`--mode=preview`: training images as the network will see them, before anything is trained."""

from __future__ import annotations

import os
from collections.abc import Callable

from simclr_tf import contact_sheet, records, views
from simclr_tf.data.augment import Augment
from simclr_tf.data.dataset import Data
from simclr_tf.errors import UserError
from simclr_tf.place import Place
from simclr_tf.stages.base import Stage
from simclr_tf.stages.pretrain import Pretrain

FILE = "preview.png"


def run_preview(
    place: Place,
    data: Data,
    augment: Augment,
    make_stage: Callable[..., Stage] = Pretrain,
    num_images: int = 8,
    seed: int = 0,
    cell_pixels: int = 96,
) -> dict:
    """Draws what training will see into `preview.png`.

    Args:
      place: its `workdir` is where the picture goes; it may be new or a run's.
      data: its training split is shown.
      augment: what training does to an image.
      make_stage: which training is shown: pretraining makes two views of an image, the others one.
      num_images: how many images.
      seed: the run's: the picture shows the first step of the run with this seed.
      cell_pixels: side of each picture on the sheet.

    Returns:
      `path` of the picture and `examples`, the images' names.

    Raises:
      UserError: for data that cannot be had, or a setting that makes no sense.
    """
    for name, number, least, most in (("num_images", num_images, 1, 256), ("cell_pixels", cell_pixels, 16, 1024)):
        if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= most:
            raise UserError(f"preview.{name} is {number!r}; use a whole number from {least} to {most}")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise UserError(f"preview.seed is {seed!r}; use a whole number")
    place.built()
    source = data.open(data.train_split, place.data_dir)
    if place.dry_run:
        print(f"preview: would draw {num_images} of {source.num_examples} images of {source.name}")
        return {}
    found = views.views(
        data,
        augment,
        two_views=issubclass(make_stage, Pretrain),
        num_images=num_images,
        seed=seed,
        data_dir=place.data_dir,
    )
    title = f"{source.name}: step 0 of seed {seed}"
    picture = views.sheet(found, source.class_names, title=title, cell_pixels=cell_pixels)
    path = os.path.join(place.workdir, FILE)
    records.write_bytes(path, contact_sheet.png(picture))
    print(f"preview: {len(found.names)} of {source.num_examples} images of {source.name}; see {path}")
    return {"path": path, "examples": found.names}
