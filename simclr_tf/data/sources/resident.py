"""Decodes whole sources into memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np

from simclr_tf.core.tf import tf
from simclr_tf.data.decode import plain, png_header, png_pixels, try_decode
from simclr_tf.data.sources.source import Resident, Source


def load(source: Source, height: int, width: int, *, in_order: tf.data.Dataset | None = None) -> Resident | None:
    """Decodes a whole source.

    Args:
      source: source of the images.
      height: height of all images in pixels.
      width: width of all images in pixels.
      in_order: data set of what `source.read` returns for each example, if reading in order is faster.

    Returns:
      All images and labels, or None if an image has another size.
    """
    indices = tf.data.Dataset.range(source.num_examples)
    if in_order is None:
        in_order = indices.map(plain(source.read), num_parallel_calls=tf.data.AUTOTUNE)
    try:
        return _quick(in_order, source, height, width)
    except tf.errors.DataLossError:  # The files of the data set are damaged, not single images.
        raise
    except tf.errors.OpError:  # Some images are not sound PNG files of this size: try each by itself.
        return _careful(source, height, width)


def _quick(examples: tf.data.Dataset, source: Source, height: int, width: int) -> Resident:
    """Decodes PNG files of one size, checked in their headers; fails for anything else."""
    # Many at a time: a data set's overhead per element is as large as the cost of decoding a small image.
    chunk, count = 32, source.num_examples
    head = tf.constant(png_header(height, width))

    def decode_all(encoded: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        same = tf.reduce_all(tf.equal(tf.strings.substr(encoded, 0, len(png_header(height, width))), head))
        tf.debugging.assert_equal(same, True, "not a PNG file of the expected size")
        with tf.control_dependencies([same]):
            images = [png_pixels(one, source.bit_depth) for one in tf.unstack(encoded)]
        return tf.ensure_shape(tf.stack(images), [chunk, height, width, 3]), labels

    padded = examples.concatenate(examples.repeat().take(-count % chunk)).batch(chunk, drop_remainder=True)
    images, labels = np.empty([count, height, width, 3], np.uint8), np.empty(count, np.int32)
    for i, (chunk_images, chunk_labels) in enumerate(_parallel(padded, decode_all)):
        here = slice(i * chunk, min((i + 1) * chunk, count))
        images[here], labels[here] = chunk_images[: here.stop - here.start], chunk_labels[: here.stop - here.start]
    return Resident(images, labels, np.ones(count, bool))


def _careful(source: Source, height: int, width: int) -> Resident | None:
    """Decodes images one by one and marks the unreadable ones; returns None if an image has another size."""
    count = source.num_examples
    images = np.zeros([count, height, width, 3], np.uint8)
    labels, readable = np.full(count, -1, np.int32), np.zeros(count, bool)
    examples = tf.data.Dataset.range(count)
    attempt = functools.partial(try_decode, source.read, bit_depth=source.bit_depth)
    for i, (image, label, sound) in enumerate(_parallel(examples, attempt)):
        if sound:
            if image.shape != images.shape[1:]:
                return None
            images[i], labels[i], readable[i] = image, label, True
    return Resident(images, labels, readable)


def _parallel(dataset: tf.data.Dataset, function: Callable) -> Iterator:
    mapped = dataset.map(plain(function), num_parallel_calls=tf.data.AUTOTUNE)
    return mapped.prefetch(4).as_numpy_iterator()
