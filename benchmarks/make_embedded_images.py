"""Makes `cifar10_mini` from CIFAR-10 as prepared for tensorflow-datasets.

    python benchmarks/make_embedded_images.py --data_dir=../shared/data/tfds

The first 500 training and 100 test images of each class, in the order of the prepared files, go into one PNG strip per
class and split, 32 pixels wide. The same input gives the same pixels.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import tensorflow as tf

PER_CLASS = {"train": 500, "test": 100}
FOLDER = Path(__file__).resolve().parents[1] / "simclr_tf" / "data" / "embedded" / "cifar10_mini"


def main() -> None:
    """Writes the strips and `index.json`."""
    import tensorflow_datasets as tfds

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="where tensorflow-datasets keeps cifar10")
    parser.add_argument("--output", default=FOLDER)
    arguments = parser.parse_args()

    builder = tfds.builder("cifar10:3.0.2", data_dir=arguments.data_dir)
    class_names = builder.info.features["label"].names
    index = {"class_names": class_names, "ids": {}}
    for split, per_class in PER_CLASS.items():
        examples = builder.as_dataset(split=split, shuffle_files=False)
        images: dict[int, list[np.ndarray]] = {label: [] for label in range(len(class_names))}
        ids: dict[str, list[str]] = {name: [] for name in class_names}
        for example in examples.as_numpy_iterator():
            label = int(example["label"])
            if len(images[label]) < per_class:
                images[label].append(example["image"])
                ids[class_names[label]].append(example["id"].decode())
        os.makedirs(os.path.join(arguments.output, split), exist_ok=True)
        for label, name in enumerate(class_names):
            strip = np.concatenate(images[label])
            png = tf.io.encode_png(strip, compression=9).numpy()
            with open(os.path.join(arguments.output, split, f"{name}.png"), "wb") as file:
                file.write(png)
        index["ids"][split] = ids
    with open(os.path.join(arguments.output, "index.json"), "w") as file:
        json.dump(index, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
