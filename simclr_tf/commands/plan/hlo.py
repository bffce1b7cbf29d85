"""What an HLO module says of itself, read from its protocol buffer.

TensorFlow hands out XLA programs as serialized `xla.HloModuleProto`s and ships no class that reads them on both stacks,
so the few fields that are needed are read from the wire format here (protobuf.dev, "Encoding"; xla/service/hlo.proto
and xla/xla_data.proto for the fields' numbers).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5

# xla.PrimitiveType -> (name as NumPy and ml_dtypes know it, bytes of a value).
_TYPES = {
    1: ("bool", 1),
    2: ("int8", 1),
    3: ("int16", 2),
    4: ("int32", 4),
    5: ("int64", 8),
    6: ("uint8", 1),
    7: ("uint16", 2),
    8: ("uint32", 4),
    9: ("uint64", 8),
    10: ("float16", 2),
    11: ("float32", 4),
    12: ("float64", 8),
    16: ("bfloat16", 2),
}
_TUPLE = 13

# Modules, computations and instructions have their names in the same field.
_NAME = 1
# Other fields of xla.HloModuleProto, of HloComputationProto and of HloInstructionProto.
_ENTRY_NAME, _COMPUTATIONS, _PROGRAM_SHAPE, _MODULE_ID, _ENTRY_ID, _ALIASES = 2, 3, 4, 5, 6, 8
_INSTRUCTIONS, _COMPUTATION_ID = 2, 5
_OPCODE, _SHAPE, _METADATA, _ATTRIBUTES = 2, 3, 7, 68

_COLLECTIVES = (b"all-reduce", b"all-gather", b"reduce-scatter", b"all-to-all", b"collective-permute")


class Array(NamedTuple):
    """An array's type and shape; `dtype` as NumPy and ml_dtypes name it."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """How many bytes its values take, without padding."""
        size = next(size for name, size in _TYPES.values() if name == self.dtype)
        return size * math.prod(self.shape)


class Signature(NamedTuple):
    """What goes into a program and comes out.

    Attributes:
      parameters: in order.
      outputs: in order.
      updates: parameter number -> number of the output that holds its new value.
    """

    parameters: list[Array]
    outputs: list[Array]
    updates: dict[int, int]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: bytes) -> Iterator[tuple[int, int, int | bytes, bytes]]:
    """Yields each field's number, wire type, value, and the bytes that it was written as."""
    at = 0
    while at < len(data):
        start = at
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
        else:
            if kind == _BYTES:
                size, at = _varint(data, at)
            elif kind in (_FIXED_64, _FIXED_32):
                size = 8 if kind == _FIXED_64 else 4
            else:
                raise ValueError(f"wire type {kind} of field {number} is none that protocol buffers use")
            value, at = data[at : at + size], at + size
        yield number, kind, value, data[start:at]


def _all(data: bytes, number: int) -> list:
    return [value for found, _, value, _ in _fields(data) if found == number]


def _first(data: bytes, number: int, default=0):
    return next(iter(_all(data, number)), default)


def _numbers(data: bytes, number: int) -> list[int]:
    """A repeated integer, packed or not."""
    found = []
    for field, kind, value, _ in _fields(data):
        if field == number and kind == _VARINT:
            found.append(value)
        elif field == number:
            at = 0
            while at < len(value):
                item, at = _varint(value, at)
                found.append(item)
    return found


def _arrays(shape: bytes) -> list[Array]:
    """A shape as arrays; a tuple's elements in order."""
    kind = _first(shape, 2)
    if kind == _TUPLE:
        return [array for part in _all(shape, 4) for array in _arrays(part)]
    if kind not in _TYPES:
        raise ValueError(f"XLA's primitive type {kind} is none that a training step should have")
    return [Array(_TYPES[kind][0], tuple(_numbers(shape, 3)))]


def signature(module: bytes) -> Signature:
    """Returns what a serialized xla.HloModuleProto takes and gives; outputs are one array or a flat tuple."""
    program = _first(module, _PROGRAM_SHAPE, b"")
    parameters = [_arrays(shape) for shape in _all(program, 1)]
    assert all(len(arrays) == 1 for arrays in parameters), "a parameter is a tuple"
    updates = {}
    for entry in _all(_first(module, _ALIASES, b""), 1):
        index = _numbers(entry, 1)
        updates[_first(entry, 2)] = index[0] if index else 0
    return Signature([arrays[0] for arrays in parameters], _arrays(_first(program, 2, b"")), updates)


def collectives(module: bytes) -> dict[str, tuple[int, int]]:
    """Returns what replicas exchange: operation -> (how many there are, bytes of their results together)."""
    found: dict[str, tuple[int, int]] = {}
    for computation in _all(module, _COMPUTATIONS):
        for instruction in _all(computation, _INSTRUCTIONS):
            opcode = _first(instruction, _OPCODE, b"")
            if opcode in _COLLECTIVES:
                count, nbytes = found.get(opcode.decode(), (0, 0))
                size = sum(array.nbytes for array in _arrays(_first(instruction, _SHAPE, b"")))
                found[opcode.decode()] = count + 1, nbytes + size
    return found


def _field(number: int, value: bytes) -> bytes:
    def varint(value: int) -> bytes:
        encoded = bytearray()
        while value >= 0x80:
            encoded.append(value & 0x7F | 0x80)
            value >>= 7
        return bytes((*encoded, value))

    return varint(number << 3 | _BYTES) + varint(len(value)) + value


def canonical(module: bytes, name: str) -> bytes:
    """Names a module, its computations and its instructions anew, and drops what tells of source files.

    What is left depends on what is computed, not on what was traced before or where the code lies. References go by
    numbers, so that names are free.
    """
    count = itertools.count()

    def instruction(data: bytes) -> bytes:
        parts = []
        for number, _, value, raw in _fields(data):
            if number == _METADATA:
                continue
            if number == _NAME:
                raw = _field(_NAME, b"i%d" % next(count))
            elif number == _ATTRIBUTES:  # A map, written in whatever order it has in memory.
                raw = _field(_ATTRIBUTES, b"".join(sorted(entry for _, _, _, entry in _fields(value))))
            parts.append(raw)
        return b"".join(parts)

    def computation(data: bytes, number: int) -> bytes:
        parts = []
        for field, kind, value, raw in _fields(data):
            if field == _NAME:
                raw = _field(_NAME, b"c%d" % number)
            elif field == _INSTRUCTIONS and kind == _BYTES:
                raw = _field(_INSTRUCTIONS, instruction(value))
            parts.append(raw)
        return b"".join(parts)

    entry = _first(module, _ENTRY_ID)
    parts = []
    for number, kind, value, raw in _fields(module):
        if number == _MODULE_ID:  # Counts what this process has lowered.
            continue
        if number == _NAME:
            raw = _field(_NAME, name.encode())
        elif number == _ENTRY_NAME:
            raw = _field(_ENTRY_NAME, b"c%d" % entry)
        elif number == _COMPUTATIONS and kind == _BYTES:
            raw = _field(_COMPUTATIONS, computation(value, _first(value, _COMPUTATION_ID)))
        parts.append(raw)
    return b"".join(parts)
