"""Turns the compiler's counts into hours: lower bounds, since no program reaches a chip's published rates."""

from __future__ import annotations

from typing import Any

from simclr_tf.commands.plan.chips import Topology


def memory(answer: dict[str, Any]) -> dict[str, int]:
    """Returns the memory of a compiled step on each device, in bytes, from `pjrt.compile_for_topology`'s answer.

    Outputs that reuse an argument's memory are not counted twice.
    """
    parts = {
        "arguments": answer["arguments"],
        "outputs": answer["outputs"] - answer["aliased"],
        "temporaries": answer["temporaries"],
        "code": answer["code"],
    }
    return {**parts, "total": sum(parts.values())}


def lower_bound(
    topology: Topology,
    *,
    flops: float,
    bytes_accessed: float,
    all_reduce_bytes: float,
    global_batch_size: int,
    steps: int,
    price: float | None = None,
) -> dict[str, Any]:
    """Returns a lower bound on a run's time.

    A step takes at least as long as its arithmetic at the chip's peak, its memory traffic at full bandwidth (the
    compiler counts each operation's operands and results once), and its sums over replicas on the interconnect; all
    three may overlap. From v4 on the compiler copies arrays into on-chip memory and counts these copies and the reads
    from them. There the time of the traffic is an estimate that may be too high.

    Args:
      topology: The TPU.
      flops: The FLOPs of a step on each replica.
      bytes_accessed: The bytes that a step reads and writes on each replica.
      all_reduce_bytes: The bytes of the arrays that a step sums over replicas.
      global_batch_size: The images of a step.
      steps: The steps of the run.
      price: The price of a chip for an hour, in any currency; None for no cost.

    Returns:
      Seconds of a step and what determines them, images/s, hours, chip-hours and cost. `at_least` says whether they are
      bounds or estimates from counted traffic; `least_hours` is a bound in either case.
    """
    seconds = {
        "arithmetic": flops / topology.peak_flops,
        "memory": bytes_accessed / topology.memory_bandwidth,
        "interconnect": topology.all_reduce_seconds(all_reduce_bytes),
    }
    bound_by = max(seconds, key=seconds.get)
    step = seconds[bound_by]
    hours = steps * step / 3600
    counted = not topology.chip.copies_on_chip
    least = max(value for name, value in seconds.items() if name != "memory" or counted)
    found = {
        "step_seconds": step,
        "bound_by": bound_by,
        "at_least": bound_by != "memory" or counted,
        "least_hours": steps * least / 3600,
        "seconds": seconds,
        "images_per_second": global_batch_size / step,
        "hours": hours,
        "chip_hours": hours * topology.num_chips,
    }
    if price is not None:
        found["cost"] = found["chip_hours"] * price
    return found
