"""Mutate model files by a seed: their bytes, and their protobuf messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor

import memojax

MODELS = tuple(
    sorted(
        [
            *Path(memojax.__file__).parent.glob("policies/*.onnx"),
            *(path for path in (Path(__file__).parents[1]).glob("*/*.onnx") if path.stat().st_size < 1 << 17),
        ]
    )
)
"""Small models of every exporter in the repository."""

_NUMBERS = (0, 1, -1, 2, 3, 7, 16, 127, 255, 1 << 20, 1 << 31, -(1 << 31), (1 << 63) - 1, -(1 << 63))
_TEXTS = (
    "",
    "x",
    "obs",
    "Relu",
    "If",
    "Loop",
    "Constant",
    "batch",
    "ai.onnx",
    "com.microsoft",
    "a" * 5000,
    "\x1b[31m",
    "\0",
    "ü",
)
_BYTES = (b"", b"\xff\xfe", b"\x00" * 64, b"\xc3\x28")


def mutant(seed: int) -> tuple[str, bytes]:
    """A mutated file and its original."""
    rng = np.random.default_rng(seed)
    source = MODELS[int(rng.integers(len(MODELS)))]
    raw = source.read_bytes()
    if rng.random() < 0.4:
        return f"{source.name}, bytes", _bytes_changed(rng, raw)
    model = onnx.ModelProto.FromString(raw)
    for _ in range(1 + int(rng.geometric(0.5))):
        _change(rng, model)
    try:
        return f"{source.name}, message", model.SerializeToString()
    except Exception:  # A mutation made it a message that cannot be serialized.
        return f"{source.name}, bytes", _bytes_changed(rng, raw)


def _bytes_changed(rng: np.random.Generator, raw: bytes) -> bytes:
    data = bytearray(raw)
    # Most bytes of a file are weights: half of the mutations go to its start and end, where the structure is.
    for _ in range(1 + int(rng.geometric(0.4))):
        if not data:
            break
        edge = min(len(data), 2000)
        place = int(rng.integers(len(data)) if rng.random() < 0.5 else rng.integers(edge))
        if rng.random() < 0.25:
            place = len(data) - 1 - int(rng.integers(edge))
        match int(rng.integers(5)):
            case 0:
                data[place] ^= 1 << int(rng.integers(8))
            case 1:
                data[place] = int(rng.integers(256))
            case 2:
                del data[place : place + int(rng.integers(1, 64))]
            case 3:
                data[place:place] = rng.bytes(int(rng.integers(1, 32)))
            case 4:
                end = place + int(rng.integers(1, 256))
                data[place:place] = data[place:end]
    if rng.random() < 0.1:
        del data[int(rng.integers(len(data) + 1)) :]
    return bytes(data)


def _change(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    """Change one field of one message, found by a walk from the root that prefers nodes to tensors."""
    message: Any = model
    for _ in range(int(rng.integers(1, 8))):
        inner = [
            (field, value)
            for field, value in message.ListFields()
            if field.type == FieldDescriptor.TYPE_MESSAGE
        ]
        inner = [(field, value) for field, value in inner if not _is_many(field) or len(value)]
        if not inner or (message is not model and rng.random() < 0.25):
            break
        field, value = inner[int(rng.integers(len(inner)))]
        message = value[int(rng.integers(len(value)))] if _is_many(field) else value
    fields = [*message.DESCRIPTOR.fields, *(field for field, _ in message.ListFields())]
    field = fields[int(rng.integers(len(fields)))]
    try:
        _change_field(rng, message, field, model)
    except (ValueError, TypeError, OverflowError, AttributeError):
        return  # The field does not take this value.


def _change_field(rng: np.random.Generator, message: Any, field: Any, model: onnx.ModelProto) -> None:
    name = field.name
    if _is_many(field):
        values = getattr(message, name)
        match int(rng.integers(5)):
            case 0 if len(values):
                del values[int(rng.integers(len(values)))]
            case 1 if len(values):
                _append(values, values[int(rng.integers(len(values)))], field)
            case 2 if len(values) > 1:
                kept = list(values)
                rng.shuffle(kept)  # pyright: ignore[reportArgumentType]
                del values[:]
                values.extend(kept)
            case 3:
                message.ClearField(name)
            case _:
                if field.type == FieldDescriptor.TYPE_MESSAGE:
                    values.add()
                elif len(values):
                    values[int(rng.integers(len(values)))] = _value(rng, field, model)
                else:
                    values.append(_value(rng, field, model))
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        if message.HasField(name) and rng.random() < 0.5:
            message.ClearField(name)
        else:
            getattr(message, name).SetInParent()
    elif rng.random() < 0.2:
        message.ClearField(name)
    else:
        setattr(message, name, _value(rng, field, model))


def _append(values: Any, item: Any, field: Any) -> None:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        values.add().CopyFrom(item)
    else:
        values.append(item)


def _value(rng: np.random.Generator, field: Any, model: onnx.ModelProto) -> Any:
    if field.type == FieldDescriptor.TYPE_STRING:
        names = [name for node in model.graph.node for name in (*node.output, *node.input)]
        known = [*names, *(node.op_type for node in model.graph.node)]
        pool = known if known and rng.random() < 0.6 else _TEXTS
        return pool[int(rng.integers(len(pool)))]
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _BYTES[int(rng.integers(len(_BYTES)))]
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return float(rng.choice([0.0, -1.0, 1e38, float("nan"), float("inf"), 1e-45]))
    if field.type == FieldDescriptor.TYPE_ENUM:
        return int(rng.integers(0, 24))
    number = _NUMBERS[int(rng.integers(len(_NUMBERS)))] if rng.random() < 0.7 else int(rng.integers(0, 32))
    wide = field.type in (FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_UINT64)
    return number if wide else max(-(1 << 31), min(number, (1 << 31) - 1))


def _is_many(field: Any) -> bool:
    repeated = getattr(field, "is_repeated", None)
    return bool(repeated) if repeated is not None else field.label == FieldDescriptor.LABEL_REPEATED
