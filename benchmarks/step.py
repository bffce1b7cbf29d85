"""Views a second of a whole pretraining step, beside a stand-in for the published one, in one process and in turn.

    python benchmarks/step.py                                # ResNet-18, CIFAR stem, 64 images: 128 views
    python benchmarks/step.py --precisions=bfloat16 --rounds=20 --ablation
    python benchmarks/step.py --xla --precisions=float32

Our step is the training loop's own: seeds, augmentation on the device, network, NT-Xent, the probe, gradient, LARS and
records, from uint8 crops in memory. The stand-in (`_published.py`) is float32 without augmentation. Matrix products
in each type, in the same rounds, give the machine's peak; the share of it counts three forward passes' FLOPs a step.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks import _common, _published
from simclr_tf.core import randomness
from simclr_tf.core.tf import tf
from simclr_tf.data.augment.augment import Augment
from simclr_tf.data.sources.source import Source
from simclr_tf.models import convolution, cost
from simclr_tf.models.heads import ProjectionHead
from simclr_tf.models.resnet import ResNet
from simclr_tf.optim.optimizers import Lars
from simclr_tf.stages.pretrain import Pretrain
from simclr_tf.training.loop import Loop

CLASSES = tuple("abcdefghij")


class Noise:
    """Stands for `Data`: all that the stage asks of it but the images themselves."""

    max_bad_images, train_split, eval_split = 0, "train", "test"

    def __init__(self, image_size: int):
        self.image_size = image_size

    def open(self, split: str, data_dir: str | None = None) -> Source:
        """Describes images that are never read."""
        source = Source()
        source.name, source.num_examples = "noise", 50_000
        source.class_names, source.may_fail = CLASSES, False
        return source

    def describe(self) -> dict:
        """Has nothing to say."""
        return {}


def noise(images: int, size: int) -> dict[str, np.ndarray]:
    """A batch as the input pipeline delivers it."""
    rng = np.random.default_rng(0)
    views = {f"view_{i}": rng.integers(0, 256, (images, size, size, 3), dtype=np.uint8) for i in (1, 2)}
    labels = rng.integers(0, len(CLASSES), images).astype(np.int32)
    return {**views, "label": labels, "index": np.arange(images, dtype=np.int64)}


class Ours:
    """The project's step; `run` takes one and returns its seconds."""

    def __init__(self, precision: str, options: argparse.Namespace, *, remat: bool = False, micro_batch_size=None):
        """Builds it for `options.images` images of `options.size` pixels."""
        stem = "cifar" if options.size <= 32 else "imagenet"
        self.augment = Augment(color_strength=0.5, blur_probability=0.0)
        self.stage = Pretrain(
            Noise(options.size),
            self.augment,
            lambda **kw: ResNet(options.depth, options.width, stem=stem, remat=remat, **kw),
            lambda **kw: ProjectionHead(num_layers=2, **kw),
            temperature=0.5,
            precision=precision,
            micro_batch_size=micro_batch_size,
        )
        optimizer = Lars()
        optimizer.build(self.stage.trained_variables, self.stage.network.undecayed_variables())
        strategy = tf.distribute.get_strategy()
        self._loop = Loop(
            self.stage,
            optimizer,
            lambda step: tf.constant(0.1),
            strategy,
            seed=0,
            jit_compile=options.xla,
            steps_per_call=1,
        )
        self._batch = noise(options.images, options.size)
        self._iterator = iter(tf.data.Dataset.from_tensors({"images": self._batch}).repeat())
        self._last = 0
        self.loss = float("nan")

    def run(self) -> float:
        """Takes a step; returns its seconds."""
        self._last += 1
        chunk = next(self._loop.run(self._iterator, self._last))
        self.loss = chunk.records[-1]["loss"]
        return chunk.seconds

    def augmentation(self) -> Callable[[], float]:
        """Returns what does the step's augmentation alone."""
        batch = {name: tf.constant(value) for name, value in self._batch.items()}

        @tf.function
        def run():
            seeds = randomness.example_seed(0, 0, tf.constant(0, tf.int64), batch["index"])
            views = [self.augment(batch[f"view_{i}"], randomness.fold_in(seeds, i)) for i in (1, 2)]
            return tf.reduce_sum(tf.concat(views, axis=0))

        return lambda: _common.timed(lambda: run().numpy())


def without_exchange(make: Callable[[], Ours]) -> Ours:
    """Builds and traces a step whose convolutions keep TensorFlow's own kernel gradients."""
    pays, convolution.exchange_pays = convolution.exchange_pays, lambda *_: False
    try:
        step = make()
        step.run()
    finally:
        convolution.exchange_pays = pays
    return step


def product(precision: str, size: int = 3072) -> Callable[[], float]:
    """Returns what times a product of two matrices of `size` x `size`."""
    dtype = tf.as_dtype(precision)
    a, b = (tf.cast(tf.random.stateless_normal([size, size], [i, 0]), dtype) for i in (0, 1))
    run = tf.function(lambda: tf.matmul(a, b)[0, 0])
    return lambda: _common.timed(lambda: run().numpy())


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64, help="images of a step; twice as many views")
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--depth", type=int, default=18, choices=sorted(_published.BLOCKS))
    parser.add_argument("--width", type=int, default=1)
    parser.add_argument("--precisions", default="bfloat16,float32")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--xla", action="store_true", help="compile our step with XLA")
    parser.add_argument("--ablation", action="store_true", help="also our step with TensorFlow's own kernel gradients")
    options = parser.parse_args()
    precisions = options.precisions.split(",")

    print(
        f"{_common.machine()}\nResNet-{options.depth}, width {options.width}, {options.size} pixels, "
        f"{options.images} images ({2 * options.images} views)",
        flush=True,
    )
    batch = noise(options.images, options.size)
    views = tf.constant(np.concatenate([batch["view_1"], batch["view_2"]]).astype(np.float32) / 255)
    labels = tf.constant(batch["label"])
    published = _published.Step(options.depth, options.size, options.images, width=options.width)
    ours = {precision: Ours(precision, options) for precision in precisions}
    runs = {"published": lambda: _common.timed(lambda: published.run(views, labels).numpy())}
    for precision, step in ours.items():
        runs[precision] = step.run
        runs[f"product {precision}"] = product(precision)
        if options.ablation:
            plain = without_exchange(lambda precision=precision: Ours(precision, options))
            runs[f"{precision}, TensorFlow's kernel gradients"] = plain.run
    runs["augmentation"] = next(iter(ours.values())).augmentation()
    if "float32" not in precisions:
        runs["product float32"] = product("float32")
    seconds = _common.in_turn(runs, options.rounds, warm_up=2)

    flops = 3 * 2 * options.images * cost.flops_per_image(next(iter(ours.values())).stage.network)
    peaks = {
        name.split()[1]: 2 * 3072**3 / min(values) for name, values in seconds.items() if name.startswith("product")
    }
    rows = []
    for name, values in seconds.items():
        if name.startswith("product") or name == "augmentation":
            continue
        precision = "float32" if name == "published" else name.split(",")[0]
        rate = [2 * options.images / value for value in values]
        gain = _common.ratios(seconds["published"], values)
        share = flops / statistics.median(values) / peaks[precision]
        label = "published, stand-in, no augmentation" if name == "published" else f"ours, {name}"
        rows.append((label, _common.spread(rate), _common.spread(gain, 2), f"{100 * share:.0f} %"))
    print(_common.table(("step", "views/s", "times the published", "of the matmul peak"), rows))
    for precision, peak in peaks.items():
        print(f"product peak, {precision}: {peak / 1e9:.0f} GFLOP/s")
    share = [a / b for a, b in zip(seconds["augmentation"], seconds[precisions[0]])]
    print(
        f"augmentation: {_common.spread(1e3 * s for s in seconds['augmentation'])} ms, "
        f"{100 * statistics.median(share):.1f} % of the {precisions[0]} step; "
        f"{options.rounds} rounds in turn, medians (least-greatest)"
    )


if __name__ == "__main__":
    main()
