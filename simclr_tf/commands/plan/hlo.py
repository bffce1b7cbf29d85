"""Reads a program's signature and collectives from a serialized HLO module.

TensorFlow returns XLA programs as serialized `xla.HloModuleProto`s, but has no class that reads them on both stacks.
This module therefore reads the few fields it needs from the wire format (protobuf.dev, "Encoding"; field numbers from
xla/service/hlo.proto and xla/xla_data.proto).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5

# xla.PrimitiveType -> (name in NumPy and ml_dtypes, bytes per value).
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

# Modules, computations and instructions all have their name in this field.
_NAME = 1
# Other fields of xla.HloModuleProto, of HloComputationProto and of HloInstructionProto.
_ENTRY_NAME, _COMPUTATIONS, _PROGRAM_SHAPE, _MODULE_ID, _ENTRY_ID, _ALIASES = 2, 3, 4, 5, 6, 8
_INSTRUCTIONS, _COMPUTATION_ID = 2, 5
_OPCODE, _SHAPE, _METADATA, _ATTRIBUTES = 2, 3, 7, 68

_COLLECTIVES = (b"all-reduce", b"all-gather", b"reduce-scatter", b"all-to-all", b"collective-permute")


class Array(NamedTuple):
    """An array's type and shape; `dtype` is its name in NumPy and ml_dtypes."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of its values, without padding."""
        size = next(size for name, size in _TYPES.values() if name == self.dtype)
        return size * math.prod(self.shape)


class Signature(NamedTuple):
    """A program's inputs and outputs.

    Attributes:
      parameters: The inputs, in order.
      outputs: The outputs, in order.
      updates: Number of a parameter -> number of the output that holds its new value.
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
    """Yields each field's number, wire type, value and encoded bytes."""
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
                raise ValueError(f"field {number} has wire type {kind}, which protocol buffers do not use")
            value, at = data[at : at + size], at + size
        yield number, kind, value, data[start:at]


def _all(data: bytes, number: int) -> list:
    return [value for found, _, value, _ in _fields(data) if found == number]


def _first(data: bytes, number: int, default=0):
    return next(iter(_all(data, number)), default)


def _numbers(data: bytes, number: int) -> list[int]:
    """Returns a repeated integer field, packed or not."""
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
    """Returns the arrays of a shape; a tuple's elements in order."""
    kind = _first(shape, 2)
    if kind == _TUPLE:
        return [array for part in _all(shape, 4) for array in _arrays(part)]
    if kind not in _TYPES:
        raise ValueError(f"a training step should not have XLA's primitive type {kind}")
    return [Array(_TYPES[kind][0], tuple(_numbers(shape, 3)))]


def signature(module: bytes) -> Signature:
    """Returns the signature of a serialized xla.HloModuleProto, whose outputs are one array or a flat tuple."""
    program = _first(module, _PROGRAM_SHAPE, b"")
    parameters = [_arrays(shape) for shape in _all(program, 1)]
    assert all(len(arrays) == 1 for arrays in parameters), "a parameter is a tuple"
    updates = {}
    for entry in _all(_first(module, _ALIASES, b""), 1):
        index = _numbers(entry, 1)
        updates[_first(entry, 2)] = index[0] if index else 0
    return Signature([arrays[0] for arrays in parameters], _arrays(_first(program, 2, b"")), updates)


def collectives(module: bytes) -> dict[str, tuple[int, int]]:
    """Returns the collectives of a program: operation -> (count, total bytes of their results)."""
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
    """Renames a module, its computations and its instructions, and drops metadata about source files.

    The result depends only on the computation, not on earlier traces or the path of the code. References use numbers,
    so renaming is safe.
    """
    count = itertools.count()

    def instruction(data: bytes) -> bytes:
        parts = []
        for number, _, value, raw in _fields(data):
            if number == _METADATA:
                continue
            if number == _NAME:
                raw = _field(_NAME, b"i%d" % next(count))
            elif number == _ATTRIBUTES:  # A map, whose order in the file is arbitrary.
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
        if number == _MODULE_ID:  # Counts the modules that this process has lowered.
            continue
        if number == _NAME:
            raw = _field(_NAME, name.encode())
        elif number == _ENTRY_NAME:
            raw = _field(_ENTRY_NAME, b"c%d" % entry)
        elif number == _COMPUTATIONS and kind == _BYTES:
            raw = _field(_COMPUTATIONS, computation(value, _first(value, _COMPUTATION_ID)))
        parts.append(raw)
    return b"".join(parts)
