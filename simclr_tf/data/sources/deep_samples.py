"""Detects 16-bit PNG files that use fewer bits, as scientific cameras and X-rays write: networks see them as black."""

from __future__ import annotations

from simclr_tf.core.tf import tf
from simclr_tf.data.decode import DEEP_START, has_deep_samples
from simclr_tf.data.sources.source import Source

_LOOKED_AT = 16
# Usual depths; a brighter image is taken to use all 16 bits.
_DEPTHS = (8, 10, 12, 14)


def remarks(source: Source) -> list[str]:
    """Returns a remark if 16-bit PNG files use only their lowest bits; reads up to 16 PNG files to find out."""
    rows = [row for row, name in enumerate(source.example_ids) if name.lower().endswith(".png")][:_LOOKED_AT]
    deep, brightest = 0, 0
    for row in rows:
        try:
            encoded, _ = source.read(tf.constant(row, tf.int64))
            if not has_deep_samples(tf.strings.substr(encoded, 0, DEEP_START).numpy()):
                continue
            image = tf.io.decode_png(encoded, dtype=tf.uint16)
        except tf.errors.OpError:  # The pipeline counts unreadable pictures when it reads them.
            continue
        deep, brightest = deep + 1, max(brightest, int(tf.reduce_max(image)))
        if brightest >= 2 ** _DEPTHS[-1]:
            return []
    if not deep:
        return []
    depth = next(depth for depth in _DEPTHS if brightest < 2**depth)
    return [
        f"{source.name} has 16-bit PNG files whose values end at {brightest} ({deep} were looked at), black to a "
        f"network: set Data.bit_depth={depth} for values from 0 to {2**depth - 1} (or 16 if they are meant to be dark)"
    ]
