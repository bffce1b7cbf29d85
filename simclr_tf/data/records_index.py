"""Random access to TFRecord files: where each record starts."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from simclr_tf.errors import UserError
from simclr_tf.stack import tf

_HEADER, _FOOTER = 12, 4  # A record's length and its checksum before it; its own checksum behind.
_POLYNOMIAL = 0x82F63B78  # CRC-32C, reflected.


def _crc_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1).astype(np.uint32)
    return table


def masked_crc(lengths: np.ndarray) -> np.ndarray:
    """TFRecord's checksums of lengths: [n] uint64 -> [n] uint32."""
    table = _crc_table()
    crc = np.full(lengths.shape, 0xFFFFFFFF, np.uint32)
    for byte in lengths.astype("<u8").view(np.uint8).reshape(-1, 8).T:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> np.uint32(8))
    crc = ~crc
    return (((crc >> np.uint32(15)) | (crc << np.uint32(17))).astype(np.uint64) + 0xA282EAD8).astype(np.uint32)


def scan(path: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Finds all records of a file.

    Args:
      path: of a TFRecord file, not compressed.

    Returns:
      offsets and lengths of the records' contents, [n] int64 each, and the file's size in bytes.

    Raises:
      UserError: where the file is missing, cut off or damaged.
    """
    try:
        size = tf.io.gfile.stat(path).length
        if "://" not in path and size:
            with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
                if hasattr(mmap, "MADV_RANDOM"):
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
    return starts.astype(np.int64) + _HEADER, lengths, size


def _walk(read, size: int, path: str) -> list[bytes]:
    """Returns all headers."""
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
        f"{path} is no sound TFRecord file: the record at byte {at} is damaged or cut off; prepare it again"
    )


class Index(NamedTuple):
    """Where examples lie.

    Attributes:
      files: [f] paths.
      sizes: [f] bytes.
      file: [n] int32 rows of `files`.
      offsets: [n] int64 bytes.
      lengths: [n] int64 bytes.
    """

    files: tf.Tensor
    sizes: tf.Tensor
    file: tf.Tensor
    offsets: tf.Tensor
    lengths: tf.Tensor

    def read(self, index: tf.Tensor) -> tf.Tensor:
        """Reads one record, a scalar string, by operations; index: scalar int64."""
        file, offset, length = (tf.gather(part, index) for part in (self.file, self.offsets, self.lengths))
        return tf.data.FixedLengthRecordDataset(
            tf.gather(self.files, file),
            record_bytes=length,
            header_bytes=offset,
            footer_bytes=tf.gather(self.sizes, file) - offset - length,
            buffer_size=length,
        ).get_single_element()


def index(parts: Sequence[tuple[str, int, int]]) -> Index:
    """Finds examples.

    Args:
      parts: (file, examples to skip, examples to take), in order.

    Raises:
      UserError: where a file is damaged or has fewer records.
    """
    files = sorted({path for path, _, _ in parts})
    scanned = [scan(path) for path in files]
    file, offsets, lengths = [], [], []
    for path, skip, take in parts:
        row = files.index(path)
        chosen = slice(skip, skip + take)
        if len(scanned[row][0]) < skip + take:
            raise UserError(
                f"{path} has {len(scanned[row][0])} records in place of at least {skip + take}; prepare the data set "
                "again"
            )
        offsets.append(scanned[row][0][chosen])
        lengths.append(scanned[row][1][chosen])
        file.append(np.full(take, row, np.int32))
    with tf.device("CPU:0"):
        return Index(
            tf.constant(files),
            tf.constant([size for _, _, size in scanned], tf.int64),
            *(tf.constant(np.concatenate(part)) for part in (file, offsets, lengths)),
        )
