"""Writes TensorBoard's files without the tensorboard package, which TensorFlow 2.21 no longer depends on.

Each value carries the name of the TensorBoard plugin that shows it, as in
tensorboard/plugins/{scalar,image}/summary_v2.py. The functions write to the default summary writer.
"""

from __future__ import annotations

from simclr_tf.core.tf import tf


def _description(plugin: str) -> bytes:
    metadata = tf.compat.v1.SummaryMetadata()
    metadata.plugin_data.plugin_name = plugin
    return metadata.SerializeToString()


_SCALAR, _IMAGES = _description("scalars"), _description("images")


def scalar(name: str, value: float, *, step: int) -> None:
    """Writes one number."""
    tf.summary.write(name, tf.constant(value, tf.float32), step=step, metadata=_SCALAR)


def image(name: str, picture: tf.Tensor, *, step: int) -> None:
    """Writes one picture.

    Args:
      name: tag of the picture.
      picture: [H, W, 3] uint8, or float32 in [0, 1].
      step: step to show it at.
    """
    encoded = tf.io.encode_png(tf.image.convert_image_dtype(picture, tf.uint8, saturate=True))
    size = [str(picture.shape[1]), str(picture.shape[0])]
    tf.summary.write(name, tf.stack([*map(tf.constant, size), encoded]), step=step, metadata=_IMAGES)


def board_writer(folder: str, **settings) -> tf.summary.SummaryWriter:
    """Opens an event file in `folder`.

    In a bucket, each flush uploads the whole file again, so the writer flushes rarely.
    """
    if "://" in folder:
        # Half an hour is the maximum: TensorFlow multiplies by 1,000 to get microseconds, in an int32.
        settings.update(max_queue=2**30, flush_millis=2_000_000)
    return tf.summary.create_file_writer(folder, **settings)
