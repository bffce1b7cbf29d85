"""What a plan computes: TPUs by their names, bounds on a step, the largest batch."""

from __future__ import annotations

import pytest

from benchmarks import plan_table
from simclr_tf.commands.plan import chips, estimate
from simclr_tf.commands.plan.search import Try, largest_batch
from simclr_tf.commands.plan.tables import search_line
from simclr_tf.core.errors import UserError


@pytest.mark.parametrize(
    ("name", "libtpu", "num_chips", "replicas"),
    [
        ("v3-8", "v3:2x2x1", 4, 8),
        ("v3-32", "v3:4x4x1", 16, 32),
        ("v2-512", "v2:16x16x1", 256, 512),
        ("v4-8", "v4:2x2x1", 4, 4),
        ("v4-32", "v4:2x2x4", 16, 16),
        ("v4-256", "v4:4x4x8", 128, 128),
        ("v5e-1", "v5e:1x1", 1, 1),
        ("v5e-16", "v5e:4x4", 16, 16),
        ("v5e-128", "v5e:8x16", 128, 128),
        ("v6e-8", "v6e:2x4", 8, 8),
        ("v4:2x2x4", "v4:2x2x4", 16, 16),
        ("v3:2x2x1", "v3:2x2x1", 4, 8),
        ("v5litepod-16", "v5e:4x4", 16, 16),
        ("v5p:16x16x24", "v5p:16x16x24", 6144, 6144),
    ],
)
def test_names_of_tpus(name, libtpu, num_chips, replicas):
    topology = chips.parse_topology(name)
    assert (topology.libtpu_name, topology.num_chips, topology.num_replicas) == (libtpu, num_chips, replicas)


@pytest.mark.parametrize("name", ["v3-2048", "v5e-256", "v5p-8192"])
def test_largest_slices(name):
    kind, count = name.split("-")
    chips.parse_topology(name)
    with pytest.raises(UserError, match="power of two"):
        chips.parse_topology(f"{kind}-{2 * int(count)}")


def test_bounds():
    topology = chips.parse_topology("v3-8")
    bound = estimate.lower_bound(
        topology, flops=61.5e9, bytes_accessed=9e9, all_reduce_bytes=328e6, global_batch_size=64, steps=3600, price=3.0
    )
    # Half a chip's 123 TFLOP/s and 900 GB/s; 328 GB/s of links, over which 2 x 3/4 of the bytes leave each of 4 chips.
    assert bound["seconds"] == pytest.approx({"arithmetic": 1e-3, "memory": 20e-3, "interconnect": 1.5e-3})
    assert bound["bound_by"] == "memory" and bound["at_least"] and bound["images_per_second"] == pytest.approx(3200)
    assert bound["hours"] == pytest.approx(0.02) and bound["cost"] == pytest.approx(0.02 * 4 * 3)


@pytest.mark.parametrize("limit_bytes", [99, 3000, 5077, 123456, 10**9])
@pytest.mark.parametrize("tells", [True, False])
def test_search_finds_the_largest_batch(limit_bytes, tells):
    """Against trying every size; memory is linear with steps, as layouts round up."""

    def needed(batch_size: int) -> int:
        return 100 + 130 * batch_size + 40 * (batch_size % 16)

    def tries(batch_size: int) -> Try:
        fits = needed(batch_size) <= limit_bytes
        return Try(batch_size, fits, needed(batch_size) if fits or tells else None)

    found = largest_batch(tries, start=32, limit=4096, available_bytes=limit_bytes, max_tries=20)
    sizes = [size for size in [1, 2, 4, *range(8, 4097, 8)] if needed(size) <= limit_bytes]
    # The smallest size that does not fit may have a larger one above it that does, by a step of the layout.
    assert found.exact and found.batch_size in sizes[-2:] if sizes else found.batch_size == 0
    assert len({attempt.batch_size for attempt in found.tries}) == len(found.tries) <= (8 if tells else 20)


def test_the_table_marks_estimates():
    estimated = {name for name in plan_table.TPUS if chips.CHIPS[name].copies_on_chip}
    assert estimated == set(plan_table.ESTIMATED)


def test_traffic_that_may_stay_on_the_chip_bounds_nothing():
    work = {"flops": 1e9, "all_reduce_bytes": 0, "global_batch_size": 64, "steps": 1}
    topology = chips.parse_topology("v4-8")
    guessed = estimate.lower_bound(topology, bytes_accessed=9e9, **work)
    certain = estimate.lower_bound(topology, bytes_accessed=1e3, **work)
    assert not guessed["at_least"] and certain["at_least"]
    assert guessed["least_hours"] == certain["least_hours"] == certain["hours"] < guessed["hours"]


@pytest.mark.parametrize(("start", "limit", "parts"), [(100, 800, 10), (12, 96, 3), (2, 2, 1)])
def test_search_tries_what_a_step_can_be_made_of(start, limit, parts):
    def tries(batch_size: int) -> Try:
        assert batch_size % parts == 0
        return Try(batch_size, batch_size <= 150, batch_size)

    found = largest_batch(
        tries, start=start, limit=limit, available_bytes=150, possible=lambda size: size % parts == 0, max_tries=20
    )
    assert found.tries[0].batch_size == start and found.exact and start <= found.batch_size <= 150
    assert found.at_limit == (found.batch_size == limit)
    assert search_line("bfloat16", found).split()[1].rstrip(",") == str(found.batch_size)
    assert search_line("bfloat16", found).endswith("the whole batch") == found.at_limit
