"""The memory: loss against a slow oracle, queue, momentum network, replicas, resume."""

from __future__ import annotations

import functools
import math
from collections import deque

import numpy as np
import pytest
import tiny_run
from tiny_run import BATCH, SIZE, TINY, TinyRun

from simclr_tf.commands.convert.published import encoder_variables, head_variables
from simclr_tf.core.errors import UserError
from simclr_tf.core.files import write_json
from simclr_tf.core.tf import keras, tf
from simclr_tf.distribute.cluster import make_strategy
from simclr_tf.losses.nt_xent import NtXentKeys, nt_xent
from simclr_tf.models.heads import ProjectionHead
from simclr_tf.models.network import Network
from simclr_tf.models.resnet import ResNet
from simclr_tf.stages.memory import Memory
from simclr_tf.workdir import checkpoints, records
from simclr_tf.workdir.networks import load_network

# Holds two and a half steps' keys: three steps fill it and wrap around.
QUEUE = 5 * BATCH


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def oracle(views, keys, queue, filled, temperature):
    """Loss per image, and its mean's gradient into the projections, one pair at a time.

    Each query meets its image's key of the other view (the positive), all other images' keys of both views and the
    queue's valid entries.
    """
    n = len(views[0])
    loss = np.zeros(n)
    gradients = [np.zeros_like(view) for view in views]
    for direction in (0, 1):
        same, other = keys[direction], keys[1 - direction]
        for i in range(n):
            length = np.linalg.norm(views[direction][i])
            query = views[direction][i] / length
            candidates = [other[i]]
            for j in range(n):
                if j != i:
                    candidates += [other[j], same[j]]
            candidates += [queue[j] for j in range(filled)]
            scores = [float(query @ candidate) / temperature for candidate in candidates]
            total = sum(math.exp(score) for score in scores)
            loss[i] -= math.log(math.exp(scores[0]) / total)
            towards = -candidates[0] / temperature
            for score, candidate in zip(scores, candidates):
                towards = towards + math.exp(score) / total * candidate / temperature
            gradients[direction][i] += (towards - (towards @ query) * query) / length / n
    return loss, gradients


@pytest.mark.parametrize("kind", ["plain", "tiled"])
@pytest.mark.parametrize("filled", [0, 5, 13])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_loss_and_gradient_against_the_oracle(kind, filled, temperature):
    rng = np.random.default_rng(filled)
    anchor = rng.normal(size=(7, 5))
    views = [anchor + 0.5 * rng.normal(size=(7, 5)) for _ in range(2)]
    keys = [unit(anchor + 0.5 * rng.normal(size=(7, 5))) for _ in range(2)]
    queue = unit(rng.normal(size=(13, 5)))
    if filled < 13:
        queue[filled:] = 1e3  # What does not count must not be looked at.
    tensors = [tf.constant(value) for value in (*views, *keys, queue)]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        contrast = nt_xent(
            *tensors[:2], temperature=temperature, keys=NtXentKeys(*tensors[2:], tf.constant(filled)), kind=kind
        )
        loss = tf.reduce_mean(contrast.loss)
    expected, gradients = oracle(views, keys, queue, filled, temperature)
    np.testing.assert_allclose(contrast.loss, expected, rtol=1e-10)
    for actual, wanted in zip(tape.gradient(loss, tensors[:2]), gradients):
        np.testing.assert_allclose(actual, wanted, rtol=1e-10, atol=1e-13)


def small_network(precision="float32"):
    return Network(
        make_encoder=lambda **kw: ResNet(**TINY, **kw),
        make_head=lambda **kw: ProjectionHead(num_layers=2, output_dim=8, **kw),
        image_size=SIZE,
        precision=precision,
    )


@pytest.fixture(scope="module")
def online():
    keras.utils.set_random_seed(1)
    return small_network("float64")


def step_keys(rng, count: int) -> NtXentKeys:
    views = (tf.constant(unit(rng.normal(size=(count, 8)))) for _ in range(2))
    return NtXentKeys(*views, tf.zeros([1, 8], tf.float64), tf.constant(0))


@pytest.mark.parametrize("size", [12, 16, 7, 3])
def test_queue_is_first_in_first_out(online, size):
    """Sizes that the step's eight keys divide, do not divide, and overflow."""
    memory, rng = Memory(online, queue_size=size), np.random.default_rng(0)
    kept = deque(maxlen=size)
    for step in range(5):
        keys = step_keys(rng, 4)
        memory.enqueue(keys)
        for pair in zip(keys.view_1.numpy(), keys.view_2.numpy()):
            kept.extend(pair)
        assert int(memory.enqueued.numpy()) == 8 * (step + 1)
        queue, oldest = memory.queue.numpy(), int(memory.enqueued.numpy()) % size if len(kept) == size else 0
        in_order = np.roll(queue, -oldest, axis=0)[: len(kept)]
        np.testing.assert_array_equal(in_order, np.array(kept))
        assert np.all(queue[len(kept) :] == 0)


def test_planted_duplicates_are_recalled(online):
    """Nearest-neighbour search in the queue finds every key that is still kept, in its place, and none that is gone."""
    memory, rng = Memory(online, queue_size=40), np.random.default_rng(0)
    steps = [step_keys(rng, 4) for _ in range(8)]
    for keys in steps:
        memory.enqueue(keys)
    planted = np.concatenate([np.stack([k.view_1, k.view_2], axis=1).reshape(8, 8) for k in steps])
    similarity = planted @ memory.queue.numpy().T
    found = np.max(similarity, axis=1) > 1 - 1e-12
    np.testing.assert_array_equal(found, np.arange(64) >= 24)
    np.testing.assert_array_equal(np.argmax(similarity[24:], axis=1), np.arange(24, 64) % 40)
    # A query whose duplicate is in the queue has a rival as near as its positive.
    query = steps[-1].view_1
    contrast = nt_xent(
        query, query, temperature=0.01, keys=NtXentKeys(query, query, memory.queue.read_value(), tf.constant(40))
    )
    np.testing.assert_allclose(contrast.loss, 2 * math.log(2), atol=1e-3)


def named(network: Network) -> dict[str, np.ndarray]:
    return {**encoder_variables(network.encoder), **head_variables(network.head)}


def test_momentum_network_follows_with_its_decay(online):
    memory = Memory(online, queue_size=8, decay=0.9)
    mine, theirs = named(memory.network), named(online)
    assert (
        len(mine)
        == len({id(v) for v in mine.values()})
        == len(memory.network.encoder.variables) + len(memory.network.head.variables)
    )
    before = {name: variable.numpy() for name, variable in mine.items()}
    rng = np.random.default_rng(0)
    for name, variable in theirs.items():
        np.testing.assert_array_equal(before[name], variable.numpy())  # Warmed by copying.
        variable.assign(rng.normal(size=variable.shape))
    for _ in range(3):
        memory.follow(online)
    for name, variable in mine.items():
        wanted = 0.9**3 * before[name] + (1 - 0.9**3) * theirs[name].numpy()
        np.testing.assert_allclose(variable.numpy(), wanted, rtol=1e-12, atol=1e-15, err_msg=name)
    memory.copy(online)
    for name, variable in mine.items():
        np.testing.assert_array_equal(variable.numpy(), theirs[name].numpy())


def test_keys_use_the_batch_and_leave_the_averages_alone(online):
    memory = Memory(online, queue_size=8)
    before = [v.numpy() for v in memory.network.encoder.variables + memory.network.head.variables]
    images = tf.random.stateless_uniform([6, SIZE, SIZE, 3], [0, 1], dtype=tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(online.encoder.trainable_variables + memory.network.encoder.variables)
        keys = memory.keys(*tf.split(memory.project(images), 2))
    for value, variable in zip(before, memory.network.encoder.variables + memory.network.head.variables):
        np.testing.assert_array_equal(variable.numpy(), value)
    wanted = unit(online.outputs(images, training=True)["projection"].numpy())
    np.testing.assert_allclose(keys.view_1, wanted[:3], rtol=1e-12)
    np.testing.assert_allclose(keys.view_2, wanted[3:], rtol=1e-12)
    assert all(g is None for g in tape.gradient(keys.view_1, tape.watched_variables()))


with_memory = functools.partial(TinyRun, make_memory=functools.partial(Memory, queue_size=QUEUE, decay=0.9))


@pytest.fixture(scope="module")
def one():
    run = with_memory()
    return run, run.run(4)


def test_queue_fills(one):
    run, taken = one
    assert [record["queue_filled"] for record in taken] == pytest.approx([0, 0.4, 0.8, 1])
    assert int(run.stage.memory.enqueued.numpy()) == 4 * 2 * BATCH
    np.testing.assert_allclose(np.linalg.norm(run.stage.memory.queue, axis=1), 1)


@pytest.mark.parametrize(
    ("replicas", "kind"), [(1, "tiled"), (2, "plain"), pytest.param(4, "tiled", marks=pytest.mark.slow)]
)
def test_replicas_and_tiles_agree(one, replicas, kind):
    run = with_memory(replicas, nt_xent=kind)
    tiny_run.assert_same_records(one[1], run.run(4), 1e-9)
    for expected, actual in zip(one[0].values(), run.values()):
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)
    if replicas > 1:  # The memory lives once per replica; no copy may drift.
        for variable in run.stage.memory.variables:
            first, *others = (value.numpy() for value in run.strategy.experimental_local_results(variable))
            assert len(others) == replicas - 1
            for other in others:
                np.testing.assert_array_equal(other, first)


@pytest.mark.slow
def test_resume_in_mid_queue_ends_with_the_same_bits(one, tmp_path):
    first = with_memory()
    before = first.run(3, steps=4)
    path = tf.train.Checkpoint(**first.items()).save(str(tmp_path / "step"))
    second = with_memory()
    tf.train.Checkpoint(**second.items()).restore(path).assert_consumed()
    assert int(second.stage.memory.enqueued) == 3 * 2 * BATCH
    assert [*before, *second.run(4)] == one[1]
    for expected, actual in zip(one[0].values(), second.values()):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.slow
def test_compiled_step_agrees(one):
    run = with_memory(jit_compile=True)
    tiny_run.assert_same_records(one[1][:2], run.run(2, steps=4), 1e-5)
    assert int(run.stage.memory.enqueued.numpy()) == 2 * 2 * BATCH


def test_bfloat16_step(one):
    run = with_memory(precision="bfloat16")
    taken = run.run(2, steps=4)
    assert [record.keys() for record in taken] == [record.keys() for record in one[1][:2]]
    assert np.all(np.isfinite([list(record.values()) for record in taken]))
    assert taken[0]["contrastive"] < 2 * run.stage.constants(BATCH)["chance_loss"]
    memory = run.stage.memory
    assert {v.dtype for v in memory.variables} == {tf.float32, tf.int64}
    np.testing.assert_allclose(np.linalg.norm(memory.queue.numpy()[: 4 * BATCH], axis=1), 1, rtol=1e-6)


def test_without_memory_nothing_of_it_is_there():
    plain, run = TinyRun(), with_memory()
    assert plain.stage.checkpoint_items().keys() == {"encoder", "head", "classifier"}
    assert plain.stage.costs(BATCH) == {}
    assert plain.stage.describe()["memory"] is None
    # The online network starts from the same numbers with and without.
    for a, b in zip(run.stage.trained_variables, plain.stage.trained_variables):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_initializing_warms_the_momentum_network():
    run = with_memory(2)
    for variable in run.stage.network.encoder.variables:
        variable.assign(tf.ones_like(variable))
    run.stage.after_initialize()
    for variable in run.stage.memory.network.encoder.variables:
        for value in run.strategy.experimental_local_results(variable):
            np.testing.assert_array_equal(value, np.ones(variable.shape))


def test_costs_count_a_forward_pass_and_the_queue(one):
    costs = one[0].stage.costs(BATCH)
    memory = one[0].stage.memory
    weights = sum(v.numpy().nbytes for v in memory.network.encoder.variables + memory.network.head.variables)
    assert costs["memory_bytes"] == weights + QUEUE * 8 * 8
    assert costs["memory_flops_per_step"] > 2 * BATCH * 4 * QUEUE * 8
    assert one[0].stage.constants(BATCH)["chance_loss"] == pytest.approx(2 * math.log(2 * BATCH - 1 + QUEUE))


def test_exports_can_take_either_network(one, tmp_path):
    run = one[0]
    write_json(str(tmp_path / records.ARCHITECTURE), run.stage.describe())
    checkpoints.Checkpoints(str(tmp_path), run.items(), keep=1).save(4)
    online, *_ = load_network(str(tmp_path), precision="float64")
    momentum, *_ = load_network(str(tmp_path), precision="float64", momentum=True)
    for loaded, wanted in ((online, run.stage.network), (momentum, run.stage.memory.network)):
        for name in ("encoder", "head"):
            for a, b in zip(loaded.parts()[name].variables, wanted.parts()[name].variables):
                np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert online.classifier is not None and momentum.classifier is None
    kernels = (network.encoder.stem[0].conv.kernel.numpy() for network in (online, momentum))
    assert not np.array_equal(*kernels)


def test_momentum_network_of_a_run_without_one(tmp_path):
    run = TinyRun(precision="float32")
    write_json(str(tmp_path / records.ARCHITECTURE), run.stage.describe())
    checkpoints.Checkpoints(str(tmp_path), run.items(), keep=1).save(0)
    with pytest.raises(UserError, match="no momentum network"):
        load_network(str(tmp_path), momentum=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"queue_size": 0}, "queue_size is 0"),
        ({"queue_size": 1.5}, "queue_size is 1.5"),
        ({"decay": 1.0}, "decay is 1.0"),
        ({"decay": -0.1}, "decay is -0.1"),
        ({"decay": float("nan")}, "decay is nan"),
    ],
)
def test_senseless_settings_are_refused(online, settings, message):
    with pytest.raises(UserError, match=message):
        Memory(online, **settings)


def test_memory_needs_a_head():
    network = Network(make_encoder=lambda **kw: ResNet(**TINY, **kw), image_size=SIZE)
    with pytest.raises(UserError, match="projection head"):
        Memory(network)


def test_strategies_share_one_queue():
    """NtXentKeys of two replicas are enqueued in the order of the global batch."""
    strategy = make_strategy("mirrored", virtual_devices=2)
    with strategy.scope():
        memory = Memory(small_network("float64"), queue_size=24)
    images = tf.random.stateless_uniform([2, 4, SIZE, SIZE, 3], [0, 1], dtype=tf.float64)

    @tf.function
    def step():
        def replica(shard):
            keys = memory.keys(*tf.split(memory.project(shard), 2))
            memory.enqueue(keys)
            return keys.view_1, keys.view_2

        shards = strategy.experimental_distribute_values_from_function(
            lambda context: images[context.replica_id_in_sync_group]
        )
        return strategy.run(replica, args=(shards,))

    views = [strategy.experimental_local_results(view)[1].numpy() for view in step()]
    wanted = np.stack(views, axis=1).reshape(8, 8)
    for queue in strategy.experimental_local_results(memory.queue):
        np.testing.assert_array_equal(queue[:8], wanted)
        assert not np.any(queue[8:])
