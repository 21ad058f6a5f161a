"""Scratch pads and their views: alignment, growth, ids, and who may write where."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from memojax import ScratchPad, ScratchPadView
from memojax.errors import InputShapeError
from memojax.rows.scratch import aligned_empty

from ..helpers import model_api, rows

API = model_api({"a": (2,), "b": (3, 2)}, {"out": (2,)})


def view_of(n: int, **options: Any) -> ScratchPadView:
    inputs = [
        np.arange(n * np.prod(spec.shape), dtype=np.float32).reshape(n, *spec.shape) for spec in API.inputs
    ]
    return ScratchPadView(API.inputs, API.outputs, inputs, n, **options)


@pytest.mark.parametrize("shape", [(), (0,), (3,), (5, 7), (2, 0, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.bool_, np.complex128, ml_dtypes.bfloat16])
def test_aligned_arrays_start_on_a_cache_line(shape: tuple[int, ...], dtype: Any) -> None:
    array = aligned_empty(shape, dtype)
    assert array.shape == shape
    assert array.dtype == dtype
    assert array.flags.c_contiguous
    assert not array.size or array.ctypes.data % 64 == 0


def test_a_pad_keeps_its_rows_while_it_doubles() -> None:
    pad = ScratchPad(API.inputs, API.outputs, capacity=1)
    for agent in range(100):
        pad.next(agent)
        pad.push(0, np.full(2, agent, np.float32))
        pad.push(1, np.full((3, 2), -agent, np.float32))
    assert pad.batch_size == 100
    assert pad.capacity == 128
    view = pad.chunk(40, 10)
    assert view.ids == list(range(40, 50))
    assert not view.anonymous
    assert np.array_equal(view.input_slot(0)[:, 0], np.arange(40, 50))
    assert np.array_equal(view.input_slot(1)[:, 2, 1], -np.arange(40, 50))
    assert len(pad.chunk(95, 10)) == 5


def test_clear_keeps_the_memory() -> None:
    pad = ScratchPad(API.inputs, API.outputs, capacity=8)
    before = pad.rows(0, 0, 8).ctypes.data
    pad.next(1)
    pad.clear()
    assert (pad.batch_size, pad.rows(0, 0, 8).ctypes.data) == (0, before)


@pytest.mark.parametrize("data", [1.0, np.zeros(1), np.zeros(3), np.zeros((1, 2))], ids=str)
def test_pushed_data_is_not_broadcast(data: Any) -> None:
    pad = ScratchPad(API.inputs, API.outputs)
    pad.next(7)
    with pytest.raises(InputShapeError, match="'a'"):
        pad.push(0, data)


def test_a_push_needs_an_agent() -> None:
    with pytest.raises(InputShapeError, match="next"):
        ScratchPad(API.inputs, API.outputs).push(0, np.zeros(2))


def test_names_length_and_ids() -> None:
    view = view_of(3, ids=[5, 6, 9])
    assert [view.input_name(slot) for slot in range(2)] == ["a", "b"]
    assert view.output_name(0) == "out"
    assert len(view) == 3
    for ids, data in (
        view.input_slot_with_id(0),
        view.input_slot_mut_with_id(1),
        view.output_slot_with_id(0),
        view.output_slot_mut_with_id(0),
    ):
        assert ids == [5, 6, 9]
        assert len(data) == 3


def test_rows_without_names_are_agents_in_order_in_parts_too() -> None:
    view = view_of(5, dones=np.arange(5) > 2)
    part = view.part(2, 5)
    assert view.anonymous
    assert part.anonymous
    assert list(part.ids) == [2, 3, 4]
    assert part.dones is not None
    assert part.dones.tolist() == [False, True, True]
    assert np.array_equal(part.input_slot(1), view.input_slot(1)[2:])


def test_read_slots_cannot_be_written() -> None:
    view = view_of(2)
    for slot in (view.input_slot(0), view.output_slot(0)):
        with pytest.raises(ValueError, match="read-only"):
            slot[0] = 1


def test_write_slots_write_in_place() -> None:
    view = view_of(2)
    view.input_slot_mut(0)[:] = 7
    view.output_slot_mut(0)[:] = 8
    assert (view.input_slot(0) == 7).all()
    assert (view.output_slot(0) == 8).all()


def test_the_callers_rows_are_copied_before_a_write() -> None:
    theirs = rows(1, 2).repeat(2, axis=1)
    theirs.flags.writeable = False
    view = ScratchPadView(API.inputs, API.outputs, [theirs, None], 2)
    view.input_slot_mut(0)[:] = 9
    view.set_output(0, theirs)
    view.output_slot_mut(0)[:] = 9
    assert theirs.tolist() == [[1, 1], [2, 2]]
    assert (view.input_slot(0) == 9).all()
    assert (view.output_slot(0) == 9).all()


def test_slots_given_as_a_whole_are_checked() -> None:
    view = view_of(2)
    with pytest.raises(InputShapeError, match="'out'"):
        view.set_output(0, np.zeros((3, 2), np.float32))
    with pytest.raises(InputShapeError, match="'b'"):
        view.set_input(1, np.zeros((2, 2), np.float32))


def test_an_unfilled_output_is_zeros() -> None:
    assert not view_of(2).output_slot(0).any()


def test_rows_on_a_device_can_be_read_as_numpy() -> None:
    data = jnp.ones((2, 2))
    view = ScratchPadView(API.inputs, API.outputs, [data, None], 2, device=next(iter(data.devices())))
    assert view.inputs[0] is data
    assert view.input_slot(0).tolist() == [[1, 1], [1, 1]]
    view.input_slot_mut(0)[:] = 3
    assert np.asarray(view.inputs[0]).tolist() == [[3, 3], [3, 3]]
    assert np.asarray(data).tolist() == [[1, 1], [1, 1]]
