"""Small data sets for tensorflow-datasets.

tensorflow-datasets looks for the folder of a builder's package, which test modules do not have.
"""

from __future__ import annotations

import numpy as np
import tensorflow_datasets as tfds

COUNTS = {"train": 30, "test": 7}


def picture(split: str, i: int) -> np.ndarray:
    """A JPEG-friendly picture whose size and color say which it is."""
    shade = np.linspace(0, 60, 30 + i)[:, None, None] + np.array([5 * i, 100, 200 if split == "test" else 20])
    return np.broadcast_to(shade, (30 + i, 50 - i, 3)).clip(0, 255).astype(np.uint8)


class SimclrTfTestPictures(tfds.core.GeneratorBasedBuilder):
    """Pictures of many sizes."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=["low", "middle", "high"]),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split):
        for i in range(COUNTS[split]):
            yield i, {"image": picture(split, i), "label": i % 3, "file_name": f"{split}_{i}.JPEG"}


class SimclrTfTestDigits(tfds.core.GeneratorBasedBuilder):
    """Small gray images without labels; the name in capitals would be tedious."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(shape=(12, 10, 1))}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": ((i, {"image": np.full((12, 10, 1), i, np.uint8)}) for i in range(50))}

    def _generate_examples(self):
        raise NotImplementedError


class SimclrTfTestTexts(SimclrTfTestDigits):
    """No images at all."""

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"text": tfds.features.Text()}))

    def _split_generators(self, dl_manager):
        return {"train": ((i, {"text": "word"}) for i in range(3))}
