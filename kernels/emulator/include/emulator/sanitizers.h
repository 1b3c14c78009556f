// What the emulator tells AddressSanitizer and ThreadSanitizer, in builds that have one.
//
// Both know about fibers. To TSan each CUDA thread is a thread of its own, and only what orders memory in CUDA makes a
// happens-before edge: barriers, __syncwarp and fences. The emulator's own state must not be seen by either, so every
// function that touches it is EMULATOR_UNSEEN (not instrumented, and never inlined into code that is).
#pragma once
#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define EMULATOR_ASAN 1
#define EMULATOR_UNSEEN __attribute__((no_sanitize("address", "undefined"), noinline, unused))
#elif defined(__SANITIZE_THREAD__)
#define EMULATOR_TSAN 1
#define EMULATOR_UNSEEN __attribute__((no_sanitize("thread"), noinline, unused))
extern "C" {
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void* __tsan_get_current_fiber();
void __tsan_acquire(void* token);
void __tsan_release(void* token);
void __tsan_java_alloc(size_t address, size_t bytes);
void __tsan_java_free(size_t address, size_t bytes);
}
#else
#define EMULATOR_UNSEEN inline
#endif

namespace emulator {

// Everything before a release of a token happens before what follows an acquire of it.
EMULATOR_UNSEEN void acquire([[maybe_unused]] void* token) {
#ifdef EMULATOR_TSAN
  __tsan_acquire(token);
#endif
}
EMULATOR_UNSEEN void release([[maybe_unused]] void* token) {
#ifdef EMULATOR_TSAN
  __tsan_release(token);
#endif
}

// Memory (8-byte aligned) starts a new life: earlier accesses and releases of tokens in it are forgotten.
EMULATOR_UNSEEN void forget([[maybe_unused]] void* memory, [[maybe_unused]] size_t bytes) {
#ifdef EMULATOR_TSAN
  if (bytes == 0) return;
  __tsan_java_free(reinterpret_cast<size_t>(memory), bytes);
  __tsan_java_alloc(reinterpret_cast<size_t>(memory), bytes);
#endif
}

EMULATOR_UNSEEN void forbid([[maybe_unused]] void* memory, [[maybe_unused]] size_t bytes) {
#ifdef EMULATOR_ASAN
  __asan_poison_memory_region(memory, bytes);
#endif
}
EMULATOR_UNSEEN void allow([[maybe_unused]] void* memory, [[maybe_unused]] size_t bytes) {
#ifdef EMULATOR_ASAN
  __asan_unpoison_memory_region(memory, bytes);
#endif
}

// memset that no sanitizer intercepts.
EMULATOR_UNSEEN void fill(void* memory, int byte, size_t bytes) {
#if defined(EMULATOR_ASAN) || defined(EMULATOR_TSAN)
  volatile char* p = static_cast<volatile char*>(memory);
  for (size_t i = 0; i < bytes; i++) p[i] = static_cast<char>(byte);
#else
  __builtin_memset(memory, byte, bytes);
#endif
}

}  // namespace emulator
