// Copies arrays out of many dictionaries into rows. It is compiled without Python's and NumPy's headers, so
// one file serves all versions. It gets the functions that it calls as pointers, and `native_rows.py` checks
// the layouts below before the first use.
#include <stdint.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef struct {
  intptr_t references;
  const void *type;
} Object;

typedef struct {
  Object head;
  const char *data;
  int32_t rank;
  const intptr_t *shape;
  const intptr_t *strides;
  const void *base;
  const void *dtype;
  int32_t flags;
} Array;

typedef struct {
  Object *(*item_of_list)(Object *, intptr_t);        // borrowed
  Object *(*item_of_dict)(Object *, const void *);    // borrowed; may set an error
  intptr_t (*size_of_dict)(Object *);
  void (*clear_error)(void);
  const void *dict_types[2];
  const void *array_type;
} Python;

typedef struct {
  const void *name;
  const void *dtype;
  int64_t bytes;
  int64_t rank;
  int64_t shape[8];
} Field;

enum { C_CONTIGUOUS = 1 };

static int fits(const Array *array, const Field *field, const Python *python) {
  if (array->head.type != python->array_type || array->dtype != field->dtype || array->rank != field->rank ||
      !(array->flags & C_CONTIGUOUS))
    return 0;
  for (int64_t i = 0; i < field->rank; ++i)
    if (array->shape[i] != field->shape[i]) return 0;
  return 1;
}

typedef struct {
  const Python *python;
  const Field *fields;
  int64_t count;
  char *const *rows;
} Aim;

static int take(const Aim *aim, Object *state, int64_t at) {
  const Python *python = aim->python;
  if (!state || (state->type != python->dict_types[0] && state->type != python->dict_types[1]) ||
      python->size_of_dict(state) != aim->count)
    return 0;
  for (int64_t f = 0; f < aim->count; ++f) {
    const Field *field = &aim->fields[f];
    const Array *array = (const Array *)python->item_of_dict(state, field->name);
    if (!array || !fits(array, field, python)) return 0;
    memcpy(aim->rows[f] + at * field->bytes, array->data, (size_t)field->bytes);
  }
  return 1;
}

// Copies the arrays of a list of `count` states into the rows of each field, from `first` on. A negative
// count means a single state. Returns whether every state has exactly these fields, with exactly their dtypes
// and shapes. If not, some rows may have been written.
EXPORT int64_t memojax_gather(const Aim *aim, Object *states, int64_t count, int64_t first) {
  const Python *python = aim->python;
  int done = count >= 0 || take(aim, states, first);
  for (int64_t i = 0; done && i < count; ++i) done = take(aim, python->item_of_list(states, i), first + i);
  if (!done) python->clear_error();
  return done;
}
