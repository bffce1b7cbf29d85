"""One side of NT-Xent without its matrix of similarities: tile by tile, with a running log-sum-exp.

The forward pass keeps three numbers a query; the backward pass computes each tile's similarities again (as Milakov &
Gimelshein 2018 and Dao et al. 2022 do for softmax and attention). Values and gradients are those of the whole matrix
but for the order of summation.
"""

from __future__ import annotations

from typing import NamedTuple

from simclr_tf.core.tf import tf

# Stands for minus infinity where a candidate does not count; exp() of it is exactly 0 in every type, and differences of
# two of them are numbers.
MASKED = -1e9
# What one tile of similarities may take; a few of its size are alive at a time.
_TILE_BYTES = 2**23


class Scores(NamedTuple):
    """What a row of similarities boils down to, per query.

    Attributes:
      logsumexp: [B], of the similarities to all candidates that count.
      best: [B] int32, number of the most similar candidate, the first of equals.
      mean: [B], similarity averaged over the softmax; `logsumexp - mean` is the softmax's entropy in nats.
    """

    logsumexp: tf.Tensor
    best: tf.Tensor
    mean: tf.Tensor


def tile_size(rows: int, candidates: int, itemsize: int) -> int:
    """Returns how many candidates a tile has: a power of two of at least 64, of which `rows` fill a few MiB."""
    limit = max(64, min(_TILE_BYTES // (rows * itemsize), candidates))
    return 2 ** (limit.bit_length() - 1)


def scores(
    queries: tf.Tensor,
    candidates: tf.Tensor,
    *,
    temperature: float,
    own: tf.Tensor | None = None,
    valid: tf.Tensor | int | None = None,
    details: bool = False,
    tile: int | None = None,
) -> Scores:
    """Scores candidates by their scalar product with the query over the temperature.

    Args:
      queries: [B, D] float32 or float64, B known when traced.
      candidates: [C, D] of the same type, C known when traced.
      temperature: divides the scalar products.
      own: [B] int32, one candidate per query that does not count; None for none.
      valid: only this many candidates, the first ones, count; None for all. Where none does, `logsumexp` is about -1e9.
      details: whether `best` and `mean` are wanted; else they are 0.
      tile: candidates of a tile; None for `tile_size`.

    Returns:
      The scores. Gradients flow through `logsumexp` only, into queries and candidates.
    """
    rows, dim = queries.shape
    count = candidates.shape[0]
    tile = tile or tile_size(rows, count, queries.dtype.size)
    tiles = -(-count // tile)
    limit = tf.constant(count, tf.int32) if valid is None else tf.cast(valid, tf.int32)
    # A tile that is whole, and of which all counts, needs no mask; which ones are is only known here without `valid`.
    bounded = valid is not None or count % tile != 0
    low = tf.constant(MASKED, queries.dtype)

    def similarities(scaled: tf.Tensor, padded: tf.Tensor, i: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns a tile of candidates, [tile, D], and of similarities, [B, tile]."""
        part = tf.slice(padded, [i * tile, 0], [tile, dim])
        logits = tf.matmul(scaled, part, transpose_b=True)
        columns = i * tile + tf.range(tile)
        if bounded:
            logits = tf.where((columns < limit)[None], logits, low)
        if own is not None:
            logits = tf.where(columns[None] == own[:, None], low, logits)
        return part, logits

    def pad(values: tf.Tensor) -> tf.Tensor:
        return tf.pad(values, [[0, tiles * tile - count], [0, 0]]) if tiles * tile > count else values

    def loop(body, state):
        # One tile at a time: several in flight would each take their memory.
        state = tf.while_loop(
            lambda i, *_: i < tiles,
            lambda i, *values: (i + 1, *body(i, *values)),
            (tf.constant(0), *state),
            parallel_iterations=1,
            maximum_iterations=tiles,
        )
        return state[1:]

    def forward(queries: tf.Tensor, candidates: tf.Tensor) -> Scores:
        scaled, padded = queries / temperature, pad(candidates)

        def body(i, highest, total, best, weighted):
            _, logits = similarities(scaled, padded, i)
            peak = tf.reduce_max(logits, axis=1)
            new = tf.maximum(highest, peak)
            kept = tf.exp(highest - new)
            weights = tf.exp(logits - new[:, None])
            if details:
                place = i * tile + tf.argmax(logits, axis=1, output_type=tf.int32)
                best = tf.where(peak > highest, place, best)
                weighted = weighted * kept + tf.reduce_sum(weights * logits, axis=1)
            return new, total * kept + tf.reduce_sum(weights, axis=1), best, weighted

        zeros = tf.zeros([rows], queries.dtype)
        state = (zeros + 2 * low, zeros, tf.zeros([rows], tf.int32), zeros)
        highest, total, best, weighted = loop(body, state)
        return Scores(highest + tf.math.log(total), best, weighted / total)

    def backward(queries, candidates, logsumexp, upstream):
        scaled, padded = queries / temperature, pad(candidates)
        weighted = upstream[:, None] * scaled

        def body(i, towards_queries, towards_candidates):
            part, logits = similarities(scaled, padded, i)
            weights = tf.exp(logits - logsumexp[:, None])
            towards_candidates = towards_candidates.write(i, tf.matmul(weights, weighted, transpose_a=True))
            return towards_queries + tf.matmul(weights, part), towards_candidates

        tensors = tf.TensorArray(queries.dtype, size=tiles, element_shape=[tile, dim])
        towards_queries, towards_candidates = loop(body, (tf.zeros_like(queries), tensors))
        towards_candidates = tf.reshape(towards_candidates.stack(), [tiles * tile, dim])[:count]
        return upstream[:, None] * towards_queries / temperature, towards_candidates

    found = Scores(*map(tf.stop_gradient, forward(tf.stop_gradient(queries), tf.stop_gradient(candidates))))

    @tf.custom_gradient
    def attach(queries, candidates):
        return tf.identity(found.logsumexp), lambda upstream: backward(queries, candidates, found.logsumexp, upstream)

    return found._replace(logsumexp=attach(queries, candidates))
