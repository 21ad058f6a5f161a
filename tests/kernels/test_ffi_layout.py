"""The handler's structs have XLA's layout, by comparison with the header of the installed jaxlib."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import jax
import pytest

from memojax.kernels.build import NATIVE, system_compiler
from memojax.kernels.library import Library, api_version

HEADER = Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
# JAX 0.12 renamed this struct; its fields kept their places.
EXTENSION = next(
    name for name in ("XLA_FFI_Extension_Base", "XLA_FFI_InternalExtension") if name in HEADER.read_text()
)
FIELDS = {
    "Extension": (EXTENSION, {"struct_size": "struct_size", "type": "type", "next": "next"}),
    "Version": ("XLA_FFI_Api_Version", {"major": "major_version", "minor": "minor_version"}),
    "ErrorArgs": (
        "XLA_FFI_Error_Create_Args",
        {"struct_size": "struct_size", "message": "message", "code": "errc"},
    ),
    "Api": ("XLA_FFI_Api", {"version": "api_version", "create_error": "XLA_FFI_Error_Create"}),
    "Metadata": (
        "XLA_FFI_Metadata",
        {
            "struct_size": "struct_size",
            "version": "api_version",
            "traits": "traits",
            "state_type": "state_type_id",
        },
    ),
    "MetadataExtension": ("XLA_FFI_Metadata_Extension", {"metadata": "metadata"}),
    "Buffer": ("XLA_FFI_Buffer", {"dtype": "dtype", "data": "data", "rank": "rank", "dims": "dims"}),
    "Array": ("XLA_FFI_Array", {"dtype": "dtype", "size": "size", "data": "data"}),
    "Attributes": ("XLA_FFI_Attrs", {"size": "size", "types": "types", "names": "names", "items": "attrs"}),
    "CallFrame": (
        "XLA_FFI_CallFrame",
        {
            "extensions": "extension_start",
            "api": "api",
            "context": "ctx",
            "stage": "stage",
            "arguments": "args",
            "results": "rets",
            "attributes": "attrs",
        },
    ),
}
CONSTANTS = {
    "kMetadataExtension": "XLA_FFI_Extension_Metadata",
    "kInvalidArgument": "XLA_FFI_Error_Code_INVALID_ARGUMENT",
    "kArrayAttribute": "XLA_FFI_AttrType_ARRAY",
    "kInt64": "XLA_FFI_DataType_S64",
    "kExecute": "XLA_FFI_ExecutionStage_EXECUTE",
}


def test_structs_lie_as_in_the_installed_jaxlib(tmp_path: Path) -> None:
    compiler = system_compiler()
    if compiler is None:
        pytest.skip("no C++ compiler")
    lines = ['#include "xla_ffi.h"', '#include "xla/ffi/api/c_api.h"', "namespace f = memojax::ffi;"]
    for ours, (theirs, fields) in FIELDS.items():
        lines += [
            f'static_assert(offsetof(f::{ours}, {a}) == offsetof({theirs}, {b}), "{ours}.{a}");'
            for a, b in fields.items()
        ]
    for theirs, items in (("XLA_FFI_Args", "args"), ("XLA_FFI_Rets", "rets")):
        lines += [f"static_assert(sizeof(f::List) == sizeof({theirs}));"]
        lines += [f"static_assert(offsetof(f::List, items) == offsetof({theirs}, {items}));"]
        lines += [f"static_assert(offsetof(f::List, size) == offsetof({theirs}, size));"]
    lines += [f"static_assert(f::{a} == static_cast<int>({b}));" for a, b in CONSTANTS.items()]
    source = tmp_path / "layout.cc"
    source.write_text("\n".join(lines))
    command = [
        *compiler.compile,
        "-std=c++17",
        "-fsyntax-only",
        f"-I{NATIVE}",
        f"-I{jax.ffi.include_dir()}",
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Extension(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("type", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("metadata", ctypes.c_void_p),
    )


class Metadata(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("version_size", ctypes.c_size_t),
        ("version_extensions", ctypes.c_void_p),
        ("major", ctypes.c_int),
        ("minor", ctypes.c_int),
        ("traits", ctypes.c_uint32),
        ("state_type", ctypes.c_int64),
    )


def test_an_xla_that_asks_without_its_api_gets_the_version_of_its_header(native: Library) -> None:
    asked = Metadata(major=-1, minor=-1, traits=7, state_type=7)
    extension = Extension(type=1, metadata=ctypes.addressof(asked))
    frame = (ctypes.c_void_p * 40)()  # all of it 0, the api too, as in JAX 0.8
    frame[1] = ctypes.addressof(extension)
    native._handle.memojax_use_api(*api_version())
    assert not native._handle.memojax_program(frame)
    assert (asked.major, asked.minor, asked.traits, asked.state_type) == (*api_version(), 0, 0)
