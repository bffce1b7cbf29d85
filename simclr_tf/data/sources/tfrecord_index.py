"""Random access to TFRecord files by the offsets of their records."""

from __future__ import annotations

import concurrent.futures
import mmap
import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf

_HEADER, _FOOTER = 12, 4  # Bytes before a record (its length and the length's checksum) and after it (its checksum).
_POLYNOMIAL = 0x82F63B78  # CRC-32C, reflected.
# `state` of a file -> result of `scan`.
_scanned: dict[tuple[str, int, int], tuple[np.ndarray, np.ndarray]] = {}


def _crc_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1).astype(np.uint32)
    return table


def masked_crc(lengths: np.ndarray) -> np.ndarray:
    """Computes TFRecord's checksums of lengths: [n] uint64 -> [n] uint32."""
    table = _crc_table()
    crc = np.full(lengths.shape, 0xFFFFFFFF, np.uint32)
    for byte in lengths.astype("<u8").view(np.uint8).reshape(-1, 8).T:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> np.uint32(8))
    crc = ~crc
    return (((crc >> np.uint32(15)) | (crc << np.uint32(17))).astype(np.uint64) + 0xA282EAD8).astype(np.uint32)


def scan(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Finds all records of a file.

    Args:
      path: path of a TFRecord file without compression.

    Returns:
      Offsets and lengths of the records' contents, [n] int64 each.

    Raises:
      UserError: if the file is missing, truncated or damaged.
    """
    try:
        size = tf.io.gfile.stat(path).length
        if "://" not in path and size:
            with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
                if hasattr(mmap, "MADV_RANDOM"):  # Without it, read-ahead would fetch everything between the headers.
                    memory.madvise(mmap.MADV_RANDOM)
                headers = _walk(lambda at: memory[at : at + _HEADER], size, path)
        else:
            with tf.io.gfile.GFile(path, "rb") as file:

                def read(at: int) -> bytes:
                    file.seek(at)
                    return file.read(_HEADER)

                headers = _walk(read, size, path)
    except (OSError, tf.errors.OpError) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}); prepare the data set again") from None
    found = np.frombuffer(b"".join(headers), dtype=[("length", "<u8"), ("crc", "<u4")])
    wrong = masked_crc(found["length"]) != found["crc"]
    lengths = found["length"].astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths + _HEADER + _FOOTER)])[: len(lengths)]
    if wrong.any():
        raise _broken(path, int(starts[np.argmax(wrong)]))
    return starts.astype(np.int64) + _HEADER, lengths


def state(path: str) -> tuple[str, int, int]:
    """Returns a file's name, size and modification time; while they stay the same, the file has not changed."""
    if "://" in path:
        found = tf.io.gfile.stat(path)
        return path, found.length, found.mtime_nsec
    found = os.stat(path)  # TensorFlow's stat rounds local files' times to whole seconds.
    return path, found.st_size, found.st_mtime_ns


def _scan_again(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns what `scan` returns, and scans an unchanged file only once per process."""
    try:
        key = state(path)
    except (OSError, tf.errors.OpError):
        return scan(path)  # Raises an error that says what is wrong.
    if key not in _scanned:
        _scanned[key] = scan(path)
    return _scanned[key]


def _walk(read, size: int, path: str) -> list[bytes]:
    """Reads the headers of all records."""
    headers, at = [], 0
    while at < size:
        header = read(at)
        if len(header) < _HEADER:
            raise _broken(path, at)
        after = at + _HEADER + struct.unpack_from("<Q", header)[0] + _FOOTER
        if after > size:
            raise _broken(path, at)
        headers.append(header)
        at = after
    return headers


def _broken(path: str, at: int) -> UserError:
    return UserError(
        f"{path} is not a sound TFRecord file: the record at byte {at} is damaged or cut off; prepare it again"
    )


class Index(NamedTuple):
    """Positions of examples in files.

    Attributes:
      files: [f] paths.
      file: [n] int32, each example's row in `files`.
      offsets: [n] int64, in bytes.
      lengths: [n] int64, in bytes.
    """

    files: tf.Tensor
    file: tf.Tensor
    offsets: tf.Tensor
    lengths: tf.Tensor

    def read(self, index: tf.Tensor) -> tf.Tensor:
        """Reads one record, a scalar string, by TensorFlow operations; index: scalar int64."""
        file, offset = tf.gather(self.file, index), tf.gather(self.offsets, index)
        # Only this raw operation starts at an offset without reading what precedes it; the public classes cannot.
        # No buffer, because every read would have to clear, fill and copy it.
        records = tf.raw_ops.TFRecordDatasetV2(
            filenames=tf.gather(self.files, file),
            compression_type="",
            buffer_size=0,
            byte_offsets=offset - _HEADER,
        )
        string = {"output_types": [tf.string], "output_shapes": [[]]}
        first = tf.raw_ops.TakeDataset(input_dataset=records, count=1, **string)
        return tf.raw_ops.DatasetToSingleElement(dataset=first, **string)[0]


def index(parts: Sequence[tuple[str, int, int]]) -> Index:
    """Finds the examples of a split.

    Args:
      parts: (file, examples to skip, examples to take), in order.

    Raises:
      UserError: if a file is damaged or has too few records.
    """
    files = sorted({path for path, _, _ in parts})
    # Many threads, because scanning mostly waits for disks and networks.
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        scanned = list(pool.map(_scan_again, files))
    file, offsets, lengths = [], [], []
    for path, skip, take in parts:
        row = files.index(path)
        chosen = slice(skip, skip + take)
        if len(scanned[row][0]) < skip + take:
            raise UserError(
                f"{path} has {len(scanned[row][0])} records instead of at least {skip + take}; prepare the data set "
                "again"
            )
        offsets.append(scanned[row][0][chosen])
        lengths.append(scanned[row][1][chosen])
        file.append(np.full(take, row, np.int32))
    with tf.device("CPU:0"):
        return Index(
            tf.constant(files),
            *(tf.constant(np.concatenate(part)) for part in (file, offsets, lengths)),
        )
