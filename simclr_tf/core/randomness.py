"""Random numbers as a pure function of (run seed, stream, step, example).

A counter-based generator (Threefry-2x32, 20 rounds; Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011) in plain uint32 operations. TensorFlow's stateless operations choose their algorithm by device and compiler
and cannot take one seed per image; these give the same bits eagerly, in tf.data, under XLA, one image at a time or a
whole batch at once.
"""

from __future__ import annotations

import functools
import zlib

from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf

# The constants of Threefry-2x32.
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_ROUND_GROUPS = 5


def check_seed(name: str, seed: int) -> None:
    """Refuses a seed that is not a signed whole number of 64 bits.

    Raises:
      UserError: calls the seed `name`.
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or not -(2**63) <= seed < 2**63:
        raise UserError(f"{name} is {seed!r}; use a whole number of at most 63 bits, such as 0")


def stream(name: str) -> int:
    """Returns the number of a named use of randomness, so that no two uses share their draws."""
    return zlib.crc32(name.encode()) & 0x7FFFFFFF


def _rotate_left(x: tf.Tensor, distance: int) -> tf.Tensor:
    left = tf.bitwise.left_shift(x, tf.constant(distance, tf.uint32))
    return tf.bitwise.bitwise_or(left, tf.bitwise.right_shift(x, tf.constant(32 - distance, tf.uint32)))


@tf.function(input_signature=[tf.TensorSpec([None], tf.uint32)] * 4, autograph=False)
def _rounds(key_0, key_1, counter_0, counter_1) -> tuple[tf.Tensor, tf.Tensor]:
    """`threefry` of vectors; a `tf.function`, so that its 120 operations are traced only once."""
    parity = tf.bitwise.bitwise_xor(tf.bitwise.bitwise_xor(key_0, key_1), tf.constant(_PARITY, tf.uint32))
    keys = (key_0, key_1, parity)
    x0, x1 = counter_0 + keys[0], counter_1 + keys[1]
    for group in range(_ROUND_GROUPS):
        for distance in _ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = tf.bitwise.bitwise_xor(_rotate_left(x1, distance), x0)
        x0 = x0 + keys[(group + 1) % 3]
        x1 = x1 + keys[(group + 2) % 3] + tf.constant(group + 1, tf.uint32)
    return x0, x1


def threefry(key: tuple[tf.Tensor, tf.Tensor], counter: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Threefry-2x32 with 20 rounds.

    Args:
      key: Two uint32 tensors.
      counter: Two uint32 tensors; all four broadcast together.

    Returns:
      Two uint32 tensors of the broadcast shape.
    """
    words = [tf.convert_to_tensor(word, tf.uint32) for word in (*key, *counter)]
    static = functools.reduce(tf.broadcast_static_shape, (word.shape for word in words))
    if static.is_fully_defined():
        shape = tf.constant(static.as_list(), tf.int32)
    else:
        shape = functools.reduce(tf.broadcast_dynamic_shape, (tf.shape(word) for word in words))
    drawn = _rounds(*(tf.reshape(tf.broadcast_to(word, shape), [-1]) for word in words))
    return tuple(tf.ensure_shape(tf.reshape(x, shape), static) for x in drawn)


def _words(value: tf.Tensor | int) -> tuple[tf.Tensor, tf.Tensor]:
    """Splits integers into their low and high 32 bits."""
    value = tf.cast(value, tf.int64)
    low = tf.bitwise.bitwise_and(value, tf.constant(0xFFFFFFFF, tf.int64))
    high = tf.bitwise.bitwise_and(
        tf.bitwise.right_shift(value, tf.constant(32, tf.int64)), tf.constant(0xFFFFFFFF, tf.int64)
    )
    return tf.cast(low, tf.uint32), tf.cast(high, tf.uint32)


def _split(seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    bits = tf.bitcast(tf.cast(seed, tf.int32), tf.uint32)
    return bits[..., 0], bits[..., 1]


def _join(x0: tf.Tensor, x1: tf.Tensor) -> tf.Tensor:
    return tf.bitcast(tf.stack([x0, x1], axis=-1), tf.int32)


def fold_in(seed: tf.Tensor, data: tf.Tensor | int) -> tf.Tensor:
    """Derives a new seed from a seed and a number.

    Args:
      seed: [..., 2] int32.
      data: Integers that broadcast with `seed`'s leading dimensions.

    Returns:
      [..., 2] int32.
    """
    return _join(*threefry(_split(seed), _words(data)))


def stream_seed(run_seed: tf.Tensor | int, stream_id: int) -> tf.Tensor:
    """Returns the seed of one use of randomness in a run, [2] int32; for an int `run_seed` a constant in graphs."""
    if isinstance(run_seed, int):
        with tf.init_scope():  # Saves a hundred operations in the graph.
            return fold_in(_join(*_words(run_seed)), stream_id)
    return fold_in(_join(*_words(run_seed)), stream_id)


def example_seed(
    run_seed: tf.Tensor | int, stream_id: int, step: tf.Tensor | int, example: tf.Tensor | int
) -> tf.Tensor:
    """Returns the seed of one use of randomness for one example at one step.

    Args:
      run_seed: The run's seed, a scalar integer.
      stream_id: The number of the use of randomness; see `stream`.
      step: The training steps, integers.
      example: The examples' numbers in their source, integers; `step` and `example` broadcast.

    Returns:
      [..., 2] int32.
    """
    return fold_in(fold_in(stream_seed(run_seed, stream_id), step), example)


def uniform(seed: tf.Tensor, count: int, low: float = 0.0, high: float = 1.0) -> tf.Tensor:
    """Returns `count` uniform numbers for each seed.

    Args:
      seed: [..., 2] int32.
      count: The number of draws for each seed.
      low: The lower bound, included.
      high: The upper bound, excluded but for rounding where `low` is not 0.

    Returns:
      [..., count] float32 with 24 random bits each.
    """
    key = _split(seed)
    counters = tf.cast(tf.range((count + 1) // 2), tf.uint32)
    x0, x1 = threefry((key[0][..., None], key[1][..., None]), (counters, tf.zeros_like(counters)))
    shape = tf.concat([tf.shape(x0)[:-1], [2 * ((count + 1) // 2)]], axis=0)
    bits = tf.reshape(tf.stack([x0, x1], axis=-1), shape)[..., :count]
    # float32 holds 24 bits exactly; more bits could round up to 1.
    unit = tf.cast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), tf.float32) * 2.0**-24
    return low + (high - low) * unit
