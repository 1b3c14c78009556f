// cp.async: a copy from global to shared memory that lands at an unknown time between its issue and the wait for its
// group. Both ends are made visible: at issue the destination is overwritten with 0xFF, at the wait the bytes arrive.
#pragma once
#include "emulator/scheduler.h"

namespace emulator {

extern "C" __attribute__((visibility("hidden"))) char emulator_shared_begin[], emulator_shared_end[];

EMULATOR_UNSEEN bool in_shared_memory(const void* address, size_t bytes) {
  const char* p = static_cast<const char*>(address);
  const char* dynamic = current->block->dynamic;
  return (p >= dynamic && p + bytes <= dynamic + runtime->launch.shared_bytes) ||
         (p >= emulator_shared_begin && p + bytes <= emulator_shared_end);
}

EMULATOR_UNSEEN void check_copy(void* target, const void* source, int bytes, const char* file, int line) {
  if (reinterpret_cast<uintptr_t>(target) % bytes || reinterpret_cast<uintptr_t>(source) % bytes)
    fail("cp.async at %s:%d: misaligned (to %p, from %p, %d bytes)", file, line, target, source, bytes);
  if (!in_shared_memory(target, static_cast<size_t>(bytes)))
    fail("cp.async at %s:%d: the destination %p is not in the block's shared memory", file, line, target);
  if (in_shared_memory(source, static_cast<size_t>(bytes)))
    fail("cp.async at %s:%d: the source %p is shared memory", file, line, source);
  if (current->copies_count == MAX_COPIES)
    fail("cp.async at %s:%d: more than %d copies under way", file, line, MAX_COPIES);
}

EMULATOR_UNSEEN void record_copy(void* target, const void* source, int bytes, int source_bytes) {
  Fiber* self = current;
  self->copies[(self->copies_first + self->copies_count++) % MAX_COPIES] = {target, source, bytes, source_bytes,
                                                                            self->copy_group};
}

// Takes the oldest copy of all groups but the `keep` youngest.
EMULATOR_UNSEEN bool take_copy(int keep, AsyncCopy* copy) {
  Fiber* self = current;
  if (self->copies_count == 0) return false;
  *copy = self->copies[self->copies_first];
  if (copy->group >= self->copy_group - keep) return false;
  self->copies_first = (self->copies_first + 1) % MAX_COPIES;
  self->copies_count--;
  return true;
}

EMULATOR_UNSEEN void async_commit() { current->copy_group++; }

// The two functions below access memory in the kernel's name: the sanitizers see them.

inline void async_copy(void* target, const void* source, int bytes, int source_bytes, const char* file, int line) {
  check_copy(target, source, bytes, file, line);
  __builtin_memset(target, 0xFF, static_cast<size_t>(bytes));
  record_copy(target, source, bytes, source_bytes);
}

inline void async_wait(int keep) {
  AsyncCopy copy;
  while (take_copy(keep, &copy)) {
    char* target = static_cast<char*>(copy.target);
    __builtin_memcpy(target, copy.source, static_cast<size_t>(copy.source_bytes));
    __builtin_memset(target + copy.source_bytes, 0, static_cast<size_t>(copy.bytes - copy.source_bytes));
  }
}

}  // namespace emulator
