"""`--mode=preview`: draws training images as the network will see them, before any training."""

from __future__ import annotations

import os
from collections.abc import Callable

from simclr_tf.analysis import contact_sheet, training_views
from simclr_tf.core import checks, randomness
from simclr_tf.core.files import write_bytes
from simclr_tf.data.augment.augment import Augment
from simclr_tf.data.dataset import Data
from simclr_tf.settings.run_context import RunContext
from simclr_tf.stages.pretrain import Pretrain
from simclr_tf.stages.stage import Stage
from simclr_tf.training import opened

FILE = "preview.png"


def run_preview(
    context: RunContext,
    data: Data,
    augment: Augment,
    make_stage: Callable[..., Stage] = Pretrain,
    num_images: int = 8,
    seed: int = 0,
    cell_pixels: int = 96,
) -> dict:
    """Draws the images of the first training step into `preview.png`.

    Args:
      context: The run's context. Its `workdir`, new or a run's, receives the picture.
      data: The data; the picture shows its training split.
      augment: The augmentation of the training images.
      make_stage: The stage to show. Pretraining makes two views of an image, the others one; training with labels
        takes the labeled subset.
      num_images: The number of images, at most 256.
      seed: The seed of the run whose first step is shown.
      cell_pixels: The side of each image on the sheet, in pixels.

    Returns:
      `path`, the picture's, and `examples`, the names of the images.

    Raises:
      UserError: The data cannot be opened, or a setting makes no sense.
    """
    checks.whole("preview.num_images", num_images, most=256)
    checks.whole("preview.cell_pixels", cell_pixels, **contact_sheet.CELL_PIXELS)
    randomness.check_seed("preview.seed", seed)
    context.settings.check_read()
    source = data.open(data.train_split, context.data_dir)
    opened.tell(context, source, image_size=data.image_size)
    if context.dry_run:
        context.say(f"preview: would draw {num_images} of {source.num_examples} images of {source.name}")
        return {}
    if not context.is_chief:
        return {}
    found = training_views.views(
        data,
        augment,
        stream=make_stage.first_stream,
        num_images=num_images,
        seed=seed,
        data_dir=context.data_dir,
    )
    title = f"{source.name}: step 0 of seed {seed}"
    picture = training_views.sheet(found, source.class_names, title=title, cell_pixels=cell_pixels)
    path = os.path.join(context.workdir, FILE)
    write_bytes(path, contact_sheet.png(picture))
    context.say(f"preview: {len(found.names)} of {source.num_examples} images of {source.name}; see {path}")
    return {"path": path, "examples": found.names}
