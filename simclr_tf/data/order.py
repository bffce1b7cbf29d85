"""The order of examples: a permutation for each epoch, computed position by position.

A Feistel network permutes the numbers below a power of two. Following its cycle until a number below N appears makes
it a permutation of N (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). Nothing is stored or replayed:
position 10^9 costs as much as position 0.
"""

from __future__ import annotations

import functools

from simclr_tf.core.randomness import fold_in, stream, stream_seed
from simclr_tf.core.tf import tf

_ROUNDS = 6
# Small halves mix badly, and the longer cycle costs little.
_MIN_BITS = 8


def _mix(x: tf.Tensor) -> tf.Tensor:
    """Hashes uint32 numbers (Wellons' lowbias32)."""
    for distance, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(distance, tf.uint32)))
        x = x * tf.constant(factor, tf.uint32)
    return tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(16, tf.uint32)))


def _feistel(x: tf.Tensor, keys: list[tf.Tensor], bits: int) -> tf.Tensor:
    """Permutes the numbers below 2^bits; x: [B] uint32; keys: [B] uint32 for each of an even number of rounds."""
    right_bits, left_bits = bits // 2, bits - bits // 2
    for key in keys:
        right = tf.bitwise.bitwise_and(x, tf.constant(2**right_bits - 1, tf.uint32))
        left = tf.bitwise.right_shift(x, tf.constant(right_bits, tf.uint32))
        mixed = tf.bitwise.bitwise_and(
            _mix(tf.bitwise.bitwise_xor(right, key)), tf.constant(2**left_bits - 1, tf.uint32)
        )
        left = tf.bitwise.bitwise_xor(left, mixed)
        # The halves swap and keep their widths; after an even number of rounds each is back in its place.
        x = tf.bitwise.bitwise_or(tf.bitwise.left_shift(right, tf.constant(left_bits, tf.uint32)), left)
        right_bits, left_bits = left_bits, right_bits
    return x


def permutation(seed: tf.Tensor | int, stream_name: str, position: tf.Tensor, count: int) -> tf.Tensor:
    """Returns the examples at positions of an endless order, in which every epoch of `count` shows each example once.

    Args:
      seed: seed of the run.
      stream_name: name of the order; orders of different names are independent.
      position: [B] int64, at least 0.
      count: number of examples, from 1 to 2^31.

    Returns:
      [B] int64 in [0, count).
    """
    position = tf.convert_to_tensor(position, tf.int64)
    epoch, place = position // count, tf.cast(position % count, tf.uint32)
    bits = max(_MIN_BITS, (count - 1).bit_length())
    seeds = fold_in(stream_seed(seed, stream(f"order {stream_name}")), epoch)
    draws = fold_in(tf.expand_dims(seeds, -2), tf.range(_ROUNDS, dtype=tf.int64))
    keys = tf.unstack(tf.bitcast(draws[..., 0], tf.uint32), axis=-1)
    limit = tf.constant(count, tf.int64)

    def outside(x: tf.Tensor) -> tf.Tensor:
        return tf.cast(x, tf.int64) >= limit

    @functools.partial(tf.function, autograph=False)  # Used in two places but traced once.
    def shuffle(x: tf.Tensor, keys: list[tf.Tensor]) -> tf.Tensor:
        return _feistel(x, keys, bits)

    def walk(x: tf.Tensor) -> tuple[tf.Tensor]:
        return (tf.where(outside(x), shuffle(x, keys), x),)

    first = shuffle(place, keys)
    return tf.cast(tf.while_loop(lambda x: tf.reduce_any(outside(x)), walk, (first,))[0], tf.int64)


def replacement(seeds: tf.Tensor, attempt: tf.Tensor, count: int) -> tf.Tensor:
    """Returns the example that replaces an unreadable one.

    Args:
      seeds: [..., 2] int32, seeds of this step and example.
      attempt: scalar int, counted from 1, because replacements may be unreadable, too.
      count: number of examples.

    Returns:
      [...] int64 in [0, count).
    """
    bits = tf.bitcast(fold_in(fold_in(seeds, stream("replacement")), attempt), tf.uint32)
    # The high 32 bits of the 64-bit product are uniform below `count`, without the cost of a modulo.
    return tf.cast(
        tf.bitwise.right_shift(tf.cast(bits[..., 0], tf.uint64) * count, tf.constant(32, tf.uint64)), tf.int64
    )
