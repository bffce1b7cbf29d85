"""Image-classification data sets of tensorflow-datasets: `tfds:NAME`.

Prepared data sets are TFRecord files. Finding their records' offsets takes reading 12 bytes of each record once;
after that any example can be read by itself, in any order.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import os
from types import ModuleType
from typing import Any

import numpy as np

from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf
from simclr_tf.data.decode import plain
from simclr_tf.data.sources import splits, tfrecord_index
from simclr_tf.data.sources.resident import load
from simclr_tf.data.sources.source import RESIDENT_BYTES, Resident, Source, reason

# Features that hold an example's name in some data sets.
_NAME_FEATURES = ("file_name", "filename", "image/filename", "id")
# Number of examples, spread over a split, that are checked for labels.
_FEW = 64
# Labels by the split's files, with their states, and ranges of records.
_labels: dict[tuple, np.ndarray] = {}


def _import_tfds() -> ModuleType:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            f"tfds: sources need tensorflow-datasets, which cannot be imported ({error}); install it"
        ) from None
    return tensorflow_datasets


def _make_builder(tfds: ModuleType, name: str, data_dir: str | None) -> Any:
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError:
        known = difflib.get_close_matches(name.split("/")[0].split(":")[0], tfds.list_builders(), n=3)
        hint = f"did you mean tfds:{' or tfds:'.join(known)}?" if known else "see https://www.tensorflow.org/datasets"
        raise UserError(f"tensorflow-datasets has no data set {name!r}; {hint}") from None
    except (ValueError, AssertionError) as error:
        first = str(error).strip().splitlines()[0].split('}": ')[-1].rstrip(". ")
        raise UserError(f"tfds:{name} cannot be opened: {first}; see https://www.tensorflow.org/datasets") from None


def _prepare(tfds: ModuleType, builder: Any, name: str, data_dir: str | None, download: bool) -> None:
    where = data_dir or "tensorflow-datasets' own folder (~/tensorflow_datasets)"
    if not download:
        raise UserError(
            f"tfds:{name} is not prepared in {where}; give the folder that has it as --data_dir, or allow the download "
            "with Data.download = True"
        )
    try:
        builder.download_and_prepare()
    except (
        OSError,  # Includes failed connections.
        AssertionError,  # Files that users have to download by hand are missing.
        ValueError,  # An old version that can no longer be prepared.
        tf.errors.OpError,
        tfds.core.download.downloader.DownloadError,
        tfds.core.download.download_manager.NonMatchingChecksumError,
        tfds.core.download.extractor.ExtractError,
    ) as error:
        if builder.data_path.exists():  # Another process prepared it first.
            builder.info.read_from_directory(builder.data_dir)
            return
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"tfds:{name} is not prepared in {where} and could not be downloaded ({first}); prepare it where there is "
            "a network and give its folder as --data_dir"
        ) from None


class TfdsSource(Source):
    """A split of a prepared data set."""

    def __init__(self, name: str, split: str, data_dir: str | None = None, *, download: bool = False):
        """Opens the split. Records are located on demand.

        Args:
          name: "NAME", with or without "/CONFIG" and ":VERSION".
          split: split in tensorflow-datasets' syntax.
          data_dir: folder of prepared data sets; None for the default of tensorflow-datasets.
          download: whether to download and prepare a missing data set.

        Raises:
          UserError: if the data set is unknown, not prepared, or not one for image classification.
        """
        tfds = _import_tfds()
        builder = _make_builder(tfds, name, data_dir)
        # With network access, a builder knows the splits of data that are not on this machine.
        if not builder.data_path.exists() or not builder.info.splits:
            _prepare(tfds, builder, name, data_dir, download)
        self.splits = {key: value.num_examples for key, value in builder.info.splits.items()}
        taken = splits.respell(split, self.splits)
        self.remarks = splits.stand_in_remark(split, taken)
        self.name = f"tfds:{name} ({taken})"
        self._image_shape, self._has_label, self.class_names = _check_features(tfds, builder.info.features, name)
        self._name_feature = next((key for key in _NAME_FEATURES if key in builder.info.features), None)
        self._instructions = _instructions(builder, taken, name)
        self.num_examples = sum(instruction.take for instruction in self._instructions)
        self.remote = "://" in str(builder.data_path)
        self._known_labels: np.ndarray | None = None

    @functools.cached_property
    def _index(self) -> tfrecord_index.Index:
        with tf.init_scope():  # The first caller may be a function that is being traced.
            return tfrecord_index.index([(part.filename, part.skip, part.take) for part in self._instructions])

    @property
    def labels(self) -> np.ndarray | None:
        """See `Source`; reads all records once if they are not in memory."""
        if self.class_names is None:
            return None
        if self._known_labels is None:
            resident = self.resident()
            labels = resident.labels if resident is not None else self._all_labels()
            _check_labels(labels, len(self.class_names), self.name)
            self._known_labels = labels
        return self._known_labels

    @property
    def labels_at_hand(self) -> bool:
        """See `Source`."""
        return self._known_labels is not None

    @functools.cached_property
    def _some_labels(self) -> np.ndarray:
        """Labels of a few readable examples."""
        found = []
        with tf.init_scope(), tf.device("CPU:0"):  # The first caller may be a step that is being traced.
            for row in np.unique(np.linspace(0, self.num_examples - 1, _FEW, dtype=np.int64)):
                with contextlib.suppress(tf.errors.OpError):
                    found.append(self.read(tf.constant(row))[1].numpy())
        return np.array(found, np.int32)

    @property
    def partly_labelled(self) -> bool:
        """See `Source`."""
        return self.class_names is not None and bool(np.any(self._some_labels < 0))

    def any_label(self) -> bool:
        """See `Source`."""
        return self.class_names is not None and (bool(np.any(self._some_labels >= 0)) or super().any_label())

    def _all_labels(self) -> np.ndarray:
        """Reads every record for its label, once per process, however often the split is opened."""
        key = tuple((*tfrecord_index.state(part.filename), part.skip, part.take) for part in self._instructions)
        if key not in _labels:
            _labels[key] = self._column("label", tf.int64).astype(np.int32)
        return _labels[key]

    @functools.cached_property
    def example_ids(self) -> list[str]:
        """Ids of tensorflow-datasets: "FILE__POSITION"."""
        return [
            f"{os.path.basename(part.filename)}__{position}"
            for part in self._instructions
            for position in range(part.skip, part.skip + part.take)
        ]

    @property
    def identities(self) -> list[str]:
        """See `Source`; the record's file and position."""
        return [
            f"{part.filename}__{position}"
            for part in self._instructions
            for position in range(part.skip, part.skip + part.take)
        ]

    def other_ids(self) -> list[str] | None:
        """See `Source`."""
        if self._name_feature is None:
            return None
        return [value.decode() for value in self._column(self._name_feature, tf.string)]

    def read(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """See `Source`."""
        return self._parse(self._index.read(index))

    @functools.lru_cache(maxsize=None)  # noqa: B019  (a source lives as long as the run)
    def resident(self) -> Resident | None:
        """See `Source`."""
        height, width = self._image_shape[:2]
        if height is None or width is None or self.num_examples * height * width * 3 > RESIDENT_BYTES:
            return None
        try:
            resident = load(self, height, width, in_order=self._records().map(plain(self._parse)))
        except tf.errors.DataLossError as error:
            raise UserError(f"{self.name} is damaged ({reason(error)}); prepare it again") from None
        if resident is not None and self.class_names is not None:
            _check_labels(resident.labels, len(self.class_names), self.name)
        return resident

    def _records(self) -> tf.data.Dataset:
        """Returns all records in order."""
        index = self._index  # Locating the records also checks the files.
        files = [part.filename for part in self._instructions]
        counts = [[part.skip, part.take] for part in self._instructions]
        slices = (tf.constant(files), *tf.unstack(tf.constant(counts, tf.int64), axis=1))
        whole = tf.data.Dataset.from_tensor_slices(slices).flat_map(
            lambda file, skip, take: tf.data.TFRecordDataset(file).skip(skip).take(take)
        )
        return whole.apply(tf.data.experimental.assert_cardinality(len(index.offsets)))

    def _column(self, feature: str, dtype: tf.DType) -> np.ndarray:
        """Reads a scalar feature of all examples, [num_examples]."""
        features = {feature: tf.io.FixedLenFeature([], dtype)}

        def parse(records: tf.Tensor) -> tf.Tensor:
            return tf.io.parse_example(records, features)[feature]

        batches = self._records().batch(1024).map(plain(parse))
        try:
            return np.concatenate(list(batches.prefetch(1).as_numpy_iterator()))
        except tf.errors.OpError as error:
            raise UserError(f"feature {feature!r} of {self.name} cannot be read ({reason(error)})") from None

    def _parse(self, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        features = {"image": tf.io.FixedLenFeature([], tf.string)}
        if self._has_label:
            features["label"] = tf.io.FixedLenFeature([], tf.int64)
        example = tf.io.parse_single_example(record, features)
        if not self._has_label:
            return example["image"], tf.constant(-1)
        label, classes = example["label"], len(self.class_names)
        in_range = (label >= -1) & (label < classes)
        check = tf.raw_ops.Assert(condition=in_range, data=[f"its label is out of range: there are {classes} classes"])
        with tf.control_dependencies([] if tf.executing_eagerly() else [check]):
            return example["image"], tf.cast(label, tf.int32)


def _check_features(tfds: ModuleType, features: Any, name: str) -> tuple[tuple, bool, tuple[str, ...] | None]:
    """Returns the images' shape, whether there are class labels, and the classes' names."""
    keys = list(features) if hasattr(features, "keys") else []
    if "image" not in keys or not isinstance(features["image"], tfds.features.Image):
        raise UserError(
            f"tfds:{name} has no images under 'image' (it has {', '.join(keys) or type(features).__name__}); choose an "
            "image-classification data set"
        )
    image = features["image"]
    if np.dtype(getattr(image, "np_dtype", None) or image.dtype).kind == "f":
        raise UserError(f"tfds:{name} keeps its images as floating-point numbers; choose a data set of 8-bit images")
    label = features["label"] if "label" in keys else None
    if not isinstance(label, tfds.features.ClassLabel) or not label.num_classes:
        return tuple(image.shape), False, None
    return tuple(image.shape), True, tuple(label.names)


def _instructions(builder: Any, split: str, name: str) -> list[Any]:
    """Returns the file instructions of a split: which records of which files it consists of."""
    info = builder.info
    file_format = getattr(info.file_format, "value", None)
    if file_format != "tfrecord":
        raise UserError(
            f"tfds:{name} is prepared as {file_format}, and only TFRecord can be read; prepare it as tfrecord"
        )
    try:
        found = [part for part in info.splits[split].file_instructions if part.take]
    except ValueError:
        known = ", ".join(f"{key} ({value.num_examples} examples)" for key, value in info.splits.items())
        raise UserError(
            f"tfds:{name} has no split {split!r}; it has {known}, and slices of them, such as 'train[:90%]'"
        ) from None
    if not found:
        raise UserError(f"split {split!r} of tfds:{name} has no examples; choose a larger part")
    return [part._replace(take=_taken(part)) if hasattr(part, "_replace") else part for part in found]


def _taken(part: Any) -> int:
    return part.examples_in_shard - part.skip if part.take == -1 else part.take


def _check_labels(labels: np.ndarray, classes: int, name: str) -> None:
    wrong = (labels < -1) | (labels >= classes)
    if wrong.any():
        raise UserError(
            f"{name} has label {labels[wrong][0]} (example {int(np.argmax(wrong))}), but {classes} classes: labels go "
            f"from 0 to {classes - 1}; prepare it again"
        )
