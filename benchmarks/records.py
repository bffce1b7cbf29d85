"""How many records a second are read at random from a TFRecord file, as training on a large tfds: set does.

    python benchmarks/records.py [--rounds=5] [--mib=140]

Beside the public class that reads a record at an offset, `FixedLengthRecordDataset`, which goes through all that lies
before it. The file is written here: records of 110 KB, as ImageNet's are, 140 MiB together as in one of its files.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks import _common
from simclr_tf.core.tf import tf
from simclr_tf.data.sources import tfrecord_index

_RECORD = 110_000


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=140)
    options = parser.parse_args()
    count = options.mib * 2**20 // _RECORD
    print(_common.machine())
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "records")
        rng = np.random.default_rng(0)
        with tf.io.TFRecordWriter(path) as writer:
            for _ in range(count):
                writer.write(rng.bytes(_RECORD))
        index, size = tfrecord_index.index([(path, 0, count)]), os.path.getsize(path)
        order = tf.constant(rng.permutation(count))

        def skipping(i: tf.Tensor) -> tf.Tensor:
            offset, length = index.offsets[i], index.lengths[i]
            behind = size - offset - length
            return tf.data.FixedLengthRecordDataset(
                path, length, header_bytes=offset, footer_bytes=behind, buffer_size=length
            ).get_single_element()

        def rate(read, number: int) -> float:
            read_all = tf.data.Dataset.from_tensor_slices(order[:number]).map(read, num_parallel_calls=2)
            return number / _common.timed(lambda: list(read_all.map(tf.strings.length)))

        rates = _common.in_turn(
            {"skipping": lambda: rate(skipping, 60), "ours": lambda: rate(index.read, count)}, options.rounds
        )
    rows = [("all that lies before is read", _common.spread(rates["skipping"], 0), "")]
    times = _common.spread(_common.ratios(rates["ours"], rates["skipping"]), 0)
    rows.append(("ours", _common.spread(rates["ours"], 0), times))
    print(_common.table(["reader", "records/s", "times as many"], rows))


if __name__ == "__main__":
    main()
