"""How many images a second the host prepares for pretraining, beside a stand-in of the published pipeline.

    python benchmarks/pipeline.py [--rounds=5] [--seconds=4] [--data_dir=../shared/data/tfds]

The stand-in does what published TensorFlow 2 code does, image by image in `tf.data`: decode, then twice a random crop,
resized bicubically, a flip, and on the host color jitter, gray and blur, as float32. Ours stops at the crops, in uint8:
the rest runs on the device inside the step. Runs alternate, so that a change of the machine's mood falls on both.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from typing import NamedTuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np

from simclr_tf.core.tf import tf
from simclr_tf.data.augment.augment import Augment
from simclr_tf.data.bad_images import BadImages
from simclr_tf.data.decode import decode
from simclr_tf.data.host_crops import two_crops
from simclr_tf.data.pipeline import train_dataset
from simclr_tf.data.sources.open import open_source
from simclr_tf.data.sources.source import Source

HEIGHT, WIDTH = 375, 500
PHOTOS = 128


def photograph(seed: int) -> bytes:
    """A JPEG of 500x375 pixels and about 60 KB: clouds of all sizes and some grain."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    image = np.zeros((HEIGHT, WIDTH, 3))
    for cell in (4, 8, 16, 32, 64, 128):
        noise = rng.normal(size=(HEIGHT // cell + 2, WIDTH // cell + 2, 3)).astype(np.float32)
        clouds = tf.image.resize(noise, [HEIGHT + 2 * cell, WIDTH + 2 * cell], method="bicubic").numpy()
        image += clouds[:HEIGHT, :WIDTH] * cell**0.9
    image = (image - image.min()) / (image.max() - image.min()) * 255 + 8 * rng.normal(size=image.shape)
    file = io.BytesIO()
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=92)
    return file.getvalue()


# The stand-in.


def published_crop(image: tf.Tensor, size: int) -> tf.Tensor:
    """A random crop as published code takes it, [size, size, 3] float32 in [0, 1]."""
    begin, extent, _ = tf.image.sample_distorted_bounding_box(
        tf.shape(image),
        tf.constant([0.0, 0.0, 1.0, 1.0], shape=[1, 1, 4]),
        min_object_covered=0.1,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0),
        max_attempts=100,
        use_image_if_no_bounding_boxes=True,
    )
    crop = tf.slice(image, begin, extent)
    return tf.image.resize(tf.image.convert_image_dtype(crop, tf.float32), [size, size], method="bicubic")


def published_color(image: tf.Tensor, strength: float) -> tf.Tensor:
    """Jitter in random order with probability 0.8, gray with 0.2."""
    operations = [
        lambda x: x * tf.random.uniform([], max(1 - 0.8 * strength, 0.0), 1 + 0.8 * strength),
        lambda x: tf.image.random_contrast(x, 1 - 0.8 * strength, 1 + 0.8 * strength),
        lambda x: tf.image.random_saturation(x, 1 - 0.8 * strength, 1 + 0.8 * strength),
        lambda x: tf.image.random_hue(x, 0.2 * strength),
    ]

    def jitter() -> tf.Tensor:
        jittered, order = image, tf.random.shuffle(tf.range(4))
        for i in range(4):
            branches = [lambda f=f, x=jittered: f(x) for f in operations]
            jittered = tf.clip_by_value(tf.switch_case(order[i], branches), 0.0, 1.0)
        return jittered

    image = tf.cond(tf.random.uniform([]) < 0.8, jitter, lambda: image)
    gray = lambda: tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(image))  # noqa: E731
    return tf.cond(tf.random.uniform([]) < 0.2, gray, lambda: image)


def published_blur(image: tf.Tensor, size: int) -> tf.Tensor:
    """A separable depthwise Gaussian with probability 0.5."""

    def blur() -> tf.Tensor:
        radius = size // 10 // 2
        sigma = tf.random.uniform([], 0.1, 2.0)
        kernel = tf.exp(-(tf.range(-radius, radius + 1, dtype=tf.float32) ** 2) / (2 * sigma**2))
        kernel = tf.tile(tf.reshape(kernel / tf.reduce_sum(kernel), [-1, 1, 1, 1]), [1, 1, 3, 1])
        rows = tf.nn.depthwise_conv2d(image[None], kernel, [1, 1, 1, 1], "SAME")
        return tf.nn.depthwise_conv2d(rows, tf.transpose(kernel, [1, 0, 2, 3]), [1, 1, 1, 1], "SAME")[0]

    return tf.cond(tf.random.uniform([]) < 0.5, blur, lambda: image)


def published(encoded: tf.data.Dataset, *, size: int, batch: int, strength: float, blur: bool) -> tf.data.Dataset:
    """Two views an image, mapped image by image."""

    def view(image: tf.Tensor) -> tf.Tensor:
        image = tf.image.random_flip_left_right(published_crop(image, size))
        image = published_color(image, strength)
        image = published_blur(image, size) if blur else image
        return tf.clip_by_value(tf.reshape(image, [size, size, 3]), 0.0, 1.0)

    def views(content: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_image(content, channels=3, expand_animations=False)
        return tf.concat([view(image), view(image)], axis=-1)

    mapped = encoded.repeat().shuffle(512).map(views, num_parallel_calls=tf.data.AUTOTUNE)
    return mapped.batch(batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


# Ours.


def ours(source: Source, *, size: int, batch: int) -> tf.data.Dataset:
    """The pipeline of a pretraining run."""
    return train_dataset(
        source,
        two_crops(size, Augment().crop_box),
        global_batch_size=batch,
        per_replica_batch_size=batch,
        seed=0,
        num_steps=10**9,
        bad_images=BadImages(0, source) if source.may_fail else None,
    )


class Speed(NamedTuple):
    """Images a second, and how long all cores together worked for one, in milliseconds."""

    images_per_second: float
    cpu_milliseconds: float


def speed(dataset: tf.data.Dataset, batch: int, seconds: float) -> Speed:
    """Measures, after a start that is not counted."""
    iterator = iter(dataset)
    start = time.perf_counter()
    while time.perf_counter() - start < seconds / 4:
        next(iterator)
    count, start, cpu_start = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        next(iterator)
        count += batch
    return Speed(count / (time.perf_counter() - start), 1000 * (time.process_time() - cpu_start) / count)


def spread(values: Iterable[float], digits: int) -> str:
    """Median and range."""
    values = list(values)
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def row(name: str, speeds: list[Speed], base: list[Speed] | None = None) -> str:
    """A row of the table; ratios are those of paired runs."""
    ratio = less = ""
    if base is not None:
        ratio = spread((one.images_per_second / other.images_per_second for one, other in zip(speeds, base)), 2)
        less = spread((other.cpu_milliseconds / one.cpu_milliseconds for one, other in zip(speeds, base)), 2)
    rates = spread((one.images_per_second for one in speeds), 0)
    work = spread((one.cpu_milliseconds for one in speeds), 3)
    return f"| {name:<45} | {rates:<20} | {work:<20} | {ratio:<18} | {less:<18} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--data_dir", help="where tfds:cifar10 lies; without it the embedded images are used")
    arguments = parser.parse_args()

    small = open_source("tfds:cifar10" if arguments.data_dir else "embedded:cifar10_mini", "train", arguments.data_dir)
    pngs = [tf.io.encode_png(image).numpy() for image in small.resident().images[:5000]]
    with tempfile.TemporaryDirectory() as folder:
        contents = [photograph(i) for i in range(PHOTOS)]
        for i, content in enumerate(contents):
            with open(os.path.join(folder, f"{i}.jpg"), "wb") as file:
                file.write(content)
        photos = open_source(f"folder:{folder}", "all")
        files = tf.data.Dataset.list_files(os.path.join(folder, "*.jpg"))
        jpegs = files.map(tf.io.read_file, num_parallel_calls=tf.data.AUTOTUNE)
        decoded = files.repeat().map(lambda f: decode(tf.io.read_file(f)), num_parallel_calls=tf.data.AUTOTUNE)
        cases = {
            "two 32-pixel views, CIFAR, published stand-in": (
                published(tf.data.Dataset.from_tensor_slices(pngs), size=32, batch=256, strength=0.5, blur=False), 256,
            ),
            "two 32-pixel views, CIFAR, ours": (ours(small, size=32, batch=256), 256),
            "two 224-pixel views, JPEG, published stand-in": (
                published(jpegs, size=224, batch=32, strength=1.0, blur=True), 32,
            ),
            "two 224-pixel views, JPEG, ours": (ours(photos, size=224, batch=32), 32),
            "decoding JPEG alone": (decoded.prefetch(tf.data.AUTOTUNE), 1),
        }  # fmt: skip
        found: dict[str, list[Speed]] = {name: [] for name in cases}
        for _ in range(arguments.rounds):
            for name, (dataset, batch) in cases.items():
                found[name].append(speed(dataset, batch, arguments.seconds))
    kilobytes = sum(map(len, contents)) / len(contents) / 1000
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, TensorFlow {tf.__version__}, Python "
        f"{platform.python_version()}; {arguments.rounds} paired rounds of {arguments.seconds:g} s; JPEGs of "
        f"{WIDTH}x{HEIGHT} pixels, {kilobytes:.0f} KB\n"
    )
    print("Median (range). On a machine with other work to do, processor time says more than images a second.\n")
    print("| pipeline | images/s | processor ms/image | images/s, times the stand-in | its processor time / ours |")
    print("| --- | --- | --- | --- | --- |")
    names = list(cases)
    for name, base in zip(names, (None, names[0], None, names[2], None)):
        print(row(name, found[name], found[base] if base else None))


if __name__ == "__main__":
    main()
