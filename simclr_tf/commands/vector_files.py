"""Files of vectors: names, vectors and a classifier's probabilities, as .npz, .parquet or .tfrecord.

All three are written row by row, which takes little memory. Their `details` say what made them. None of them holds
pickled objects.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import shutil
import tempfile
import uuid
import zipfile
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from simclr_tf.core.errors import UsageError, UserError
from simclr_tf.core.files import read_json, write_bytes, write_json, writing
from simclr_tf.core.tf import tf

COLUMNS = ("vector", "probabilities", "label")
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, DecodeError, tf.errors.OpError)


class Vectors(NamedTuple):
    """The content of a file of vectors.

    Attributes:
      names: The names of the images, [N].
      columns: "vector" [N, D] float32; optionally "probabilities" [N, C] float32 and "label" [N] int32.
      details: The network, source and settings that made them.
    """

    names: list[str]
    columns: dict[str, np.ndarray]
    details: dict


class Layout(NamedTuple):
    """Everything in a file but its rows.

    Attributes:
      names: The names of the images, [N].
      shapes: Column -> shape of one row.
      details: Plain values that describe the vectors.
    """

    names: Sequence[str]
    shapes: dict[str, tuple[int, ...]]
    details: dict


def check_path(path: str, flag: str) -> None:
    """Raises an error if a file name has no known ending, or its format's library is not installed."""
    kind = os.path.splitext(path)[1]
    if kind not in _WRITERS:
        raise UsageError(f"{flag}={path} has no known format; let it end in {', '.join(_WRITERS)}")
    if kind == ".parquet":
        _pyarrow()


def write(path: str, layout: Layout, parts: Callable[[], Iterable[dict[str, np.ndarray]]]) -> None:
    """Writes a file under a temporary name and renames it.

    Args:
      path: The file; its ending determines the format.
      layout: The names, columns and details.
      parts: A function, called at least once, that returns the columns in consecutive pieces.
    """
    kind = os.path.splitext(path)[1]
    with (
        writing(path),
        tempfile.TemporaryDirectory(dir=None if "://" in path else os.path.dirname(os.path.abspath(path))) as temporary,
    ):
        local = os.path.join(temporary, f"vectors{kind}")
        _WRITERS[kind](local, layout, parts)
        if kind == ".tfrecord":
            write_json(_details_path(path), layout.details)
        if "://" not in path:
            os.replace(local, path)
            return
        aside = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
        tf.io.gfile.copy(local, aside)
        tf.io.gfile.rename(aside, path, overwrite=True)


def read(path: str, flag: str) -> Vectors:
    """Reads a file of vectors.

    Raises:
      UserError: The file does not exist, or cannot be read as vectors.
    """
    check_path(path, flag)
    if not tf.io.gfile.exists(path):
        raise UserError(f"{flag}={path} does not exist; --mode=embed writes such a file")
    try:
        found = _READERS[os.path.splitext(path)[1]](path)
        if found.columns["vector"].ndim != 2 or len(found.names) != len(found.columns["vector"]):
            raise ValueError("its vectors and names do not match")
        if not isinstance(found.details, dict):
            raise ValueError("it does not say what made it")
        return found
    except _UNREADABLE as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{flag}={path} is not a file of vectors ({reason}); --mode=embed writes such a file") from None


# .npz
# -------------------------------------------------------------------------------------------------------------------


def _write_npz(path: str, layout: Layout, parts) -> None:
    count = len(layout.names)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _member(archive, "names", np.array(list(layout.names), dtype=np.str_).reshape(count))
        _member(archive, "details", np.array(json.dumps(layout.details)))
        for column, shape in layout.shapes.items():
            dtype = np.dtype(np.int32 if column == "label" else np.float32)
            # A member may exceed 2 GiB, which zipfile cannot know in advance.
            with archive.open(f"{column}.npy", "w", force_zip64=True) as file:
                header = {
                    "descr": np.lib.format.dtype_to_descr(dtype),
                    "fortran_order": False,
                    "shape": (count, *shape),
                }
                np.lib.format.write_array_header_2_0(file, header)
                # One pass for each column, since an .npz holds them one after the other.
                for part in parts():
                    file.write(np.ascontiguousarray(part[column], dtype).tobytes())


def _member(archive: zipfile.ZipFile, name: str, value: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, value, allow_pickle=False)
    archive.writestr(f"{name}.npy", buffer.getvalue())


def _read_npz(path: str) -> Vectors:
    with tf.io.gfile.GFile(path, "rb") as file:
        content = file.read()
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise ValueError("not an archive of arrays")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        columns = {name: arrays[name] for name in COLUMNS if name in arrays.files}
        return Vectors([str(name) for name in arrays["names"]], columns, json.loads(str(arrays["details"])))


# .parquet
# ---------------------------------------------------------------------------------------------------------------


def _pyarrow() -> ModuleType:
    try:
        importlib.import_module("pyarrow.parquet")
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise UserError(
            f"Parquet needs pyarrow, which cannot be imported ({error}); run: pip install -r requirements-export.txt "
            "(or '.[export]') in the clone, or write .npz"
        ) from None


def _write_parquet(path: str, layout: Layout, parts) -> None:
    arrow = _pyarrow()
    fields = [arrow.field("name", arrow.string())]
    for column, shape in layout.shapes.items():
        kind = arrow.int32() if column == "label" else arrow.list_(arrow.float32(), shape[0])
        fields.append(arrow.field(column, kind))
    schema = arrow.schema(fields, metadata={"details": json.dumps(layout.details)})
    first = 0
    with arrow.parquet.ParquetWriter(path, schema) as writer:
        for part in parts():
            rows = len(part["vector"])
            arrays = [arrow.array(list(layout.names[first : first + rows]), arrow.string())]
            for column, shape in layout.shapes.items():
                values = arrow.array(np.ascontiguousarray(part[column]).reshape(-1))
                arrays.append(values if column == "label" else arrow.FixedSizeListArray.from_arrays(values, shape[0]))
            writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))
            first += rows


def _read_parquet(path: str) -> Vectors:
    arrow = _pyarrow()
    with tf.io.gfile.GFile(path, "rb") as file:
        table = arrow.parquet.read_table(arrow.BufferReader(file.read()))
    details = json.loads((table.schema.metadata or {})[b"details"])
    columns: dict[str, Any] = {}
    for name in COLUMNS:
        if name in table.column_names:
            column = table[name].combine_chunks()
            if isinstance(column, arrow.ChunkedArray):
                column = arrow.concat_arrays(column.chunks)
            values = column if name == "label" else column.flatten()
            columns[name] = values.to_numpy(zero_copy_only=False).reshape(
                [len(table), *([] if name == "label" else [-1])]
            )
    return Vectors(table["name"].to_pylist(), columns, details)


# .tfrecord
# --------------------------------------------------------------------------------------------------------------


def _details_path(path: str) -> str:
    return f"{path}.json"


def _write_tfrecord(path: str, layout: Layout, parts) -> None:
    names = iter(layout.names)
    with tf.io.TFRecordWriter(path) as writer:
        for part in parts():
            for row in range(len(part["vector"])):
                # File names need not be valid UTF-8; this keeps their bytes.
                name = next(names).encode("utf-8", "surrogateescape")
                feature = {"name": tf.train.Feature(bytes_list=tf.train.BytesList(value=[name]))}
                for column in layout.shapes:
                    value = np.ravel(part[column][row])
                    feature[column] = (
                        tf.train.Feature(int64_list=tf.train.Int64List(value=value))
                        if column == "label"
                        else tf.train.Feature(float_list=tf.train.FloatList(value=value))
                    )
                example = tf.train.Example(features=tf.train.Features(feature=feature))
                writer.write(example.SerializeToString())


def _read_tfrecord(path: str) -> Vectors:
    details = read_json(_details_path(path)) if tf.io.gfile.exists(_details_path(path)) else {}
    names, rows = [], {}
    for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
        feature = tf.train.Example.FromString(record).features.feature
        if not {"name", "vector"} <= set(feature) or not feature["name"].bytes_list.value:
            raise ValueError("its examples have no name and vector")
        names.append(feature["name"].bytes_list.value[0].decode("utf-8", "surrogateescape"))
        for column in COLUMNS:
            if column in feature:
                value = feature[column].int64_list.value[0] if column == "label" else feature[column].float_list.value
                rows.setdefault(column, []).append(np.array(value, np.int32 if column == "label" else np.float32))
    return Vectors(names, {column: np.stack(values) for column, values in rows.items()}, details)


_WRITERS = {".npz": _write_npz, ".parquet": _write_parquet, ".tfrecord": _write_tfrecord}
_READERS = {".npz": _read_npz, ".parquet": _read_parquet, ".tfrecord": _read_tfrecord}


class Parts:
    """The finished pieces of an incomplete file, in a folder beside it, from which a killed run resumes."""

    def __init__(self, path: str, details: dict, *, writes: bool = True):
        """Opens the folder, or creates it if this process `writes`.

        Raises:
          UserError: The folder holds pieces of other vectors.
        """
        self._folder = f"{path}.parts"
        file = os.path.join(self._folder, "details.json")
        if tf.io.gfile.exists(file):
            if read_json(file) != json.loads(json.dumps(details)):
                raise UserError(
                    f"{self._folder} has pieces of other vectors (another checkpoint, source or setting); delete it, "
                    "or give another --output"
                )
        elif writes:
            with writing(self._folder):
                tf.io.gfile.makedirs(self._folder)
            write_json(file, details)

    def _list(self) -> list[tuple[int, int, str]]:
        if not tf.io.gfile.exists(self._folder):
            return []
        found = []
        for name in tf.io.gfile.listdir(self._folder):
            start, _, stop = name[: -len(".npz")].partition("-")
            if name.endswith(".npz") and start.isdigit() and stop.isdigit():
                found.append((int(start), int(stop), os.path.join(self._folder, name)))
        return sorted(found)

    def done(self) -> int:
        """Returns the number of the source's rows that the pieces cover without a gap, counted from the first."""
        covered = 0
        for start, stop, _ in self._list():
            if start != covered:
                break
            covered = stop
        return covered

    def add(self, start: int, stop: int, columns: dict[str, np.ndarray]) -> None:
        """Writes the piece for the source's rows [start, stop); `columns` lack those of unreadable images."""
        buffer = io.BytesIO()
        np.savez(buffer, **columns)
        write_bytes(os.path.join(self._folder, f"{start:012d}-{stop:012d}.npz"), buffer.getvalue())

    def read(self) -> Iterable[dict[str, np.ndarray]]:
        """Yields the pieces in order."""
        covered = 0
        for start, stop, path in self._list():
            if start != covered:
                return
            covered = stop
            with tf.io.gfile.GFile(path, "rb") as file, np.load(io.BytesIO(file.read()), allow_pickle=False) as arrays:
                yield {name: arrays[name] for name in arrays.files}

    def delete(self) -> None:
        """Deletes the folder."""
        if "://" in self._folder:
            tf.io.gfile.rmtree(self._folder)
        else:
            shutil.rmtree(self._folder)
