"""What test_threads does in processes of their own: the demo's stages, two steps each, and training what was exported.

python tests/support/stages_on_threads.py WORKDIR [--extras], with TF_NUM_INTRAOP_THREADS as wanted.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from command import simclr

from simclr_tf.core.tf import keras, tf
from simclr_tf.models import bundled
from simclr_tf.models.convolution import convolve

SHORTLY = ("EPOCHS=None", "train.steps=2", "Data.eval_split='test[:20]'", "train.board_images=0")
# Every shape of the deeper networks' convolutions at a third of the time.
SHALLOW = "--gin_param=ResNet.depth=10"


def stage(mode: str, workdir: str, *arguments: str) -> None:
    settings = [f"--gin_param={setting}" for setting in SHORTLY]
    done = simclr(f"--mode={mode}", f"--workdir={workdir}", *settings, *arguments)
    assert done.code == 0, done.err


def fit_an_export() -> None:
    """A last batch of 13, as whoever has the SavedModel alone would train it."""
    exported = tf.saved_model.load(bundled.resolve(bundled.DEFAULT, "--workdir") + "/saved_model")

    class Exported(keras.Model):
        def __init__(self):
            super().__init__()
            self.module = exported

        def call(self, images, training=False):
            return self.module(images, training=training)

    model = Exported()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(tf.random.uniform([45, 32, 32, 3]), tf.zeros([45], tf.int32), batch_size=32, verbose=0)


def check_gradients() -> None:
    """Of few channels: with AVX2 alone oneDNN's gradient of a strided 1x1 kernel is wrong there and nothing dies."""

    @tf.function(autograph=False)
    def gradient(x, kernel):
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            loss = tf.reduce_sum(tf.square(convolve(x, kernel, strides=2)))
        return tape.gradient(loss, kernel)

    for size, channels in ((1, 2), (1, 4), (1, 12), (3, 4)):
        x = tf.random.normal([25, 8, 8, channels], dtype=tf.float64)
        kernel = tf.random.normal([size, size, channels, 8], dtype=tf.float64)
        exact = gradient(x, kernel)  # Not by oneDNN.
        error = tf.norm(tf.cast(gradient(tf.cast(x, tf.float32), tf.cast(kernel, tf.float32)), tf.float64) - exact)
        assert error < 1e-4 * tf.norm(exact), (size, channels, error)


def threads() -> int:
    """Of this process."""
    return len(list(Path("/proc/self/task").iterdir()))


def main() -> None:
    workdir, before = sys.argv[1], threads()
    tf.random.uniform([8])  # Starts TensorFlow's pools.
    assert threads() - before >= int(os.environ["TF_NUM_INTRAOP_THREADS"])
    check_gradients()
    if "--extras" in sys.argv:
        stage("finetune", f"{workdir}/odd", f"--init_from={bundled.DEFAULT}", "--gin_param=BATCH_SIZE=25")
        fit_an_export()
    else:
        stage("pretrain", f"{workdir}/pretrain", SHALLOW)
        stage("finetune", f"{workdir}/finetune", f"--init_from={workdir}/pretrain")
        stage("distill", f"{workdir}/distill", f"--teacher={workdir}/finetune", SHALLOW)


if __name__ == "__main__":
    main()
