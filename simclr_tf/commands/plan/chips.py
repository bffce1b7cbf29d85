"""Published data of TPU chips, and the slices that names such as v3-32 stand for."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from simclr_tf.core.errors import UserError

_GIB = 2**30


class Chip(NamedTuple):
    """One TPU chip, as published.

    Peak rates are the makers' figures, in decimal units; no program reaches them.

    Attributes:
      name: The name in a topology, such as "v3".
      peak_flops: bfloat16 FLOP/s.
      memory_bytes: The size of its high-bandwidth memory.
      memory_bandwidth: Bytes/s of that memory.
      interconnect: Bytes/s that all its links together carry in one direction.
      devices: Replicas per chip: 2 where each core is a device, 1 where the chip is one device.
      counts_cores: Whether the number in "v3-8" counts cores, two per chip, instead of chips.
      dimensions: The number of directions of its interconnect's grid.
      pod_chips: The number of chips in the largest slice.
      chip_config: libtpu's name of the configuration.
      copies_on_chip: Whether the compiler copies arrays into on-chip memory and counts these copies as traffic.
    """

    name: str
    peak_flops: float
    memory_bytes: int
    memory_bandwidth: float
    interconnect: float
    devices: int
    counts_cores: bool
    dimensions: int
    pod_chips: int
    chip_config: str = "default"
    copies_on_chip: bool = True


# v2, v3: Jouppi et al. 2020, "A domain-specific supercomputer for training deep neural networks", Communications of the
# ACM 63(7), table 3 (links of 496 and 656 Gbit/s, four a chip). v4: Jouppi et al. 2023 and cloud.google.com/tpu/docs/v4
# (six links of 50 GB/s). v5e, v5p, v6e: cloud.google.com/tpu/docs, whose bidirectional rates are halved here.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v2", 46e12, 16 * _GIB, 700e9, 4 * 62e9, 2, True, 2, 256, copies_on_chip=False),
        Chip("v3", 123e12, 32 * _GIB, 900e9, 4 * 82e9, 2, True, 2, 1024, copies_on_chip=False),
        Chip("v4", 275e12, 32 * _GIB, 1200e9, 6 * 50e9, 1, True, 3, 4096, "megacore"),
        Chip("v5e", 197e12, 16 * _GIB, 819e9, 200e9, 1, False, 2, 256),
        Chip("v5p", 459e12, 95 * _GIB, 2765e9, 600e9, 1, True, 3, 6144),
        Chip("v6e", 918e12, 32 * _GIB, 1638e9, 400e9, 1, False, 2, 256),
    )
}


class Topology(NamedTuple):
    """A slice of a TPU pod.

    Attributes:
      name: The name that the user gave.
      chip: The kind of chip.
      shape: The number of chips in each direction.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def num_chips(self) -> int:
        """The number of chips."""
        return math.prod(self.shape)

    @property
    def num_replicas(self) -> int:
        """The number of replicas."""
        return self.num_chips * self.chip.devices

    @property
    def libtpu_name(self) -> str:
        """The compiler's name of the slice."""
        # libtpu gives v2 and v3 a third direction of length 1.
        shape = self.shape + (1,) * (self.chip.name in ("v2", "v3"))
        return f"{self.chip.name}:{'x'.join(map(str, shape))}"

    @property
    def memory_bytes(self) -> int:
        """The memory of one replica."""
        return self.chip.memory_bytes // self.chip.devices

    @property
    def peak_flops(self) -> float:
        """bfloat16 FLOP/s of one replica."""
        return self.chip.peak_flops / self.chip.devices

    @property
    def memory_bandwidth(self) -> float:
        """Bytes/s of memory traffic of one replica."""
        return self.chip.memory_bandwidth / self.chip.devices

    def all_reduce_seconds(self, nbytes: float) -> float:
        """Returns a lower bound on the seconds that replicas need to sum arrays of `nbytes` bytes.

        A sum over n chips sends 2 (n - 1) / n times the array's bytes out of each chip (reduce-scatter, then
        all-gather; no algorithm needs less), over all links at once. Cores of one chip share its memory.
        """
        n = self.num_chips
        return 2 * (n - 1) / n * nbytes / self.chip.interconnect


def _shape(chips: int, dimensions: int) -> tuple[int, ...]:
    """Returns the squarest grid of powers of two, shortest side first; small 3D slices grow from 2 x 2 x 1."""
    exponent = chips.bit_length() - 1
    if dimensions == 3 and chips < 64:
        return {0: (1, 1, 1), 1: (1, 2, 1), 2: (2, 2, 1), 3: (2, 2, 2), 4: (2, 2, 4), 5: (2, 4, 4)}[exponent]
    base, longer = divmod(exponent, dimensions)
    return tuple(2 ** (base + (i >= dimensions - longer)) for i in range(dimensions))


def parse_topology(name: str) -> Topology:
    """Returns the slice with a given name.

    Args:
      name: Google's name, such as "v3-8", where the number counts cores of v2, v3, v4 and v5p (two per chip) and chips
        of v5e and v6e; or the chips in each direction, such as "v4:2x2x4". "v5litepod" means v5e.

    Raises:
      UserError: If there is no such TPU.
    """
    known = ", ".join(CHIPS)
    usual = name.strip().lower().replace("v5litepod", "v5e")
    match = re.fullmatch(r"(v\d[ep]?)(?:-(\d+)|:(\d+(?:x\d+)*))", usual)
    if not match:
        raise UserError(f"--topology={name!r} is not a TPU; write a name such as v3-8, v4-32 or v5e-16 (of {known})")
    kind, number, grid = match.groups()
    if kind not in CHIPS:
        raise UserError(f"--topology={name}: TPU {kind} is unknown; choose one of {known}")
    chip = CHIPS[kind]
    if grid:
        shape = tuple(int(side) for side in grid.split("x"))
        if len(shape) == 3 and chip.dimensions == 2 and shape[-1] == 1:
            shape = shape[:2]
        if len(shape) != chip.dimensions or 0 in shape:
            example = f"{kind}:{'x'.join('2' * chip.dimensions)}"
            raise UserError(f"--topology={name}: a slice of {kind} has {chip.dimensions} directions, as in {example}")
        if math.prod(shape) > chip.pod_chips:
            raise UserError(
                f"--topology={name} has {math.prod(shape)} chips; the largest slice of {kind} has {chip.pod_chips}"
            )
        return Topology(name, chip, shape)
    unit, smallest = ("cores", 2) if chip.counts_cores else ("chips", 1)
    count, largest = int(number), 2 ** ((chip.pod_chips * smallest).bit_length() - 1)
    if count < smallest or count & (count - 1) or count > largest:
        raise UserError(
            f"--topology={name}: the number counts {unit} of {kind}; use a power of two from {smallest} to "
            f"{largest}, or name the grid, such as {kind}:{'x'.join('4' * chip.dimensions)}"
        )
    return Topology(name, chip, _shape(count // smallest, chip.dimensions))
