// The part of XLA's FFI that the handler reads, as XLA lays it out in memory.
//
// XLA keeps this interface binary compatible: structs grow at their ends and say their size. We declare what we read
// instead of including jaxlib's headers, so that the build needs no jaxlib and one binary serves every JAX.
// tests/kernels/test_ffi_layout.py compares each offset with the header of the installed jaxlib.
#pragma once
#include <cstddef>
#include <cstdint>

namespace memojax::ffi {

struct Extension {
  size_t struct_size;
  int type;
  Extension* next;
};
constexpr int kMetadataExtension = 1;

struct Version {
  size_t struct_size;
  Extension* extensions;
  int major, minor;
};

struct Error;
struct ErrorArgs {
  size_t struct_size;
  Extension* extensions;
  const char* message;
  int code;
};
constexpr int kInvalidArgument = 3;

struct Api {
  size_t struct_size;
  Extension* extensions;
  Version version;
  const void* internal;
  Error* (*create_error)(ErrorArgs*);
};

struct Metadata {
  size_t struct_size;
  Version version;
  uint32_t traits;
  int64_t state_type;
};

struct MetadataExtension {
  Extension base;
  Metadata* metadata;
};

struct Buffer {
  size_t struct_size;
  Extension* extensions;
  int dtype;
  void* data;
  int64_t rank;
  int64_t* dims;
};

struct Array {
  int dtype;
  size_t size;
  void* data;
};

struct List {  // of arguments or of results
  size_t struct_size;
  Extension* extensions;
  int64_t size;
  int* types;
  void** items;
};

struct Attributes {
  size_t struct_size;
  Extension* extensions;
  int64_t size;
  int* types;
  void** names;
  void** items;
};
constexpr int kArrayAttribute = 1;
constexpr int kInt64 = 5;

struct CallFrame {
  size_t struct_size;
  Extension* extensions;
  const Api* api;
  void* context;
  int stage;
  List arguments;
  List results;
  Attributes attributes;
};
constexpr int kExecute = 3;

}  // namespace memojax::ffi
