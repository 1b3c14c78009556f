// Launching a kernel by its name, with the arguments of cuLaunchKernel: what the host calls.
#pragma once
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#include <type_traits>
#include <utility>

#include "emulator/blocks.h"

namespace emulator {

enum Result { DONE = 0, FAILED = 1, NO_KERNEL = 2, BAD_ARGUMENTS = 3, BAD_CONFIGURATION = 4 };

// ---- Kernels by name

struct Kernel {
  const char* name;
  void (*call)(void** params);
  int count;  // of parameters
  const unsigned* sizes;
  Kernel* next;
};
inline Kernel* kernels = nullptr;

template <class... A>
struct Sizes {
  static constexpr unsigned values[sizeof...(A) + 1] = {static_cast<unsigned>(sizeof(A))..., 0};
};

template <class... A, size_t... I>
inline void call_with(void (*kernel)(A...), void** params, std::index_sequence<I...>) {
  kernel(*static_cast<std::decay_t<A>*>(params[I])...);
}
template <class... A>
inline void call_kernel(void (*kernel)(A...), void** params) {
  call_with(kernel, params, std::index_sequence_for<A...>{});
}

struct Export : Kernel {
  template <class... A>
  Export(const char* name, void (*)(A...), void (*call)(void**))
      : Kernel{name, call, static_cast<int>(sizeof...(A)), Sizes<A...>::values, kernels} {
    kernels = this;
  }
};

// Whether a kernel is wanted: EMULATOR_ONLY, if set, lists names between commas. Compiling few saves time.
#ifndef EMULATOR_ONLY
#define EMULATOR_ONLY ""
#endif
constexpr bool wanted(const char* name) {
  const char* list = EMULATOR_ONLY;
  if (*list == 0) return true;
  while (*list != 0) {
    const char* at = name;
    while (*at != 0 && *at == *list) at++, list++;
    if (*at == 0 && (*list == ',' || *list == 0)) return true;
    while (*list != 0 && *list++ != ',') {
    }
  }
  return false;
}

EMULATOR_UNSEEN const Kernel* kernel_named(const char* name) {
  for (const Kernel* kernel = kernels; kernel != nullptr; kernel = kernel->next)
    if (__builtin_strcmp(kernel->name, name) == 0) return kernel;
  return nullptr;
}

// ---- Faults of the CPU (an illegal address, a division by zero) end the launch like any other failure.

#if !defined(EMULATOR_ASAN) && !defined(EMULATOR_TSAN)
inline void on_fault(int signal, siginfo_t* info, void*) {
  if (current == nullptr) {  // not a kernel's
    ::signal(signal, SIG_DFL);
    return;
  }
  const Site* site = current->site;
  const char* file = site == nullptr ? "its start" : site->file;
  const int line = site == nullptr ? 0 : site->line;
  char* const fault = static_cast<char*>(info->si_addr);
  if (signal == SIGILL)
    fail("a trap, or code whose behaviour is undefined (after %s:%d)", file, line);
  else if (signal == SIGFPE)
    fail("integer division by zero (after %s:%d)", file, line);
  else if (fault >= current->stack - STACK_GUARD && fault < current->stack)
    fail("the thread's stack of %zu bytes overflowed (after %s:%d)", STACK, file, line);
  else
    fail("illegal or misaligned address %p (after %s:%d)", static_cast<void*>(fault), file, line);
}

class FaultHandlers {
 public:
  FaultHandlers() {
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < 4; i++) sigaction(SIGNALS[i], &action, &before_[i]);
    static_assert(sizeof stack_ >= 8192, "room for the handler");
    stack_t own = {};
    own.ss_sp = stack_;
    own.ss_size = sizeof stack_;
    sigaltstack(&own, &stack_before_);
  }
  ~FaultHandlers() {
    for (int i = 0; i < 4; i++) sigaction(SIGNALS[i], &before_[i], nullptr);
    sigaltstack(&stack_before_, nullptr);
  }

 private:
  static constexpr int SIGNALS[4] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
  struct sigaction before_[4];
  stack_t stack_before_;
  alignas(16) char stack_[16384];
};
#else
class FaultHandlers {};  // the sanitizer's own say more
#endif

// ---- Running

EMULATOR_UNSEEN int setting(const char* name, int otherwise, int most) {
  const char* text = getenv(name);
  if (text == nullptr || *text == 0) return otherwise;
  const int value = atoi(text);
  return value < 0 ? 0 : value > most ? most : value;
}

EMULATOR_UNSEEN bool any_polls(Block* const* blocks, int count) {
  for (int b = 0; b < count; b++)
    for (int i = 0; i < blocks[b]->threads; i++)
      if (blocks[b]->fibers[i]->wait_word == &runtime->spin_round) return true;
  return false;
}

// Starts blocks in the launch's order, at most `resident` at a time, until all have returned.
EMULATOR_UNSEEN void run_blocks(const unsigned* order, unsigned total, int resident) {
  Block* active[MAX_RESIDENT];
  Block* idle[MAX_RESIDENT];
  int running = 0, free_blocks = 0;
  for (int i = 0; i < resident; i++) idle[free_blocks++] = runtime->blocks[i];
  unsigned next = 0;
  long idle_rounds = 0;
  while ((next < total || running > 0) && !runtime->failed) {
    while (running < resident && next < total) {
      active[running] = idle[--free_blocks];
      if (!begin_block(active[running++], order[next++])) return fail("the emulator has no memory for another thread");
    }
    const uint64_t progress = runtime->progress;
    for (int i = 0; i < running && !runtime->failed;) {
      Block* block = active[i];
      swap_in(block);
      run_block(block);
      swap_out(block);
      if (block->alive != 0 || runtime->failed) {
        i++;
        continue;
      }
      for (int k = 0; k < block->threads; k++) give_fiber(block->fibers[k]);
      idle[free_blocks++] = block;
      active[i] = active[--running];
    }
    if (runtime->progress != progress) idle_rounds = 0;
    if (!runtime->failed && running > 0 && (!any_polls(active, running) || ++idle_rounds > MAX_IDLE_ROUNDS))
      fail_deadlock(active, running);
    runtime->spin_round++;
  }
}

EMULATOR_UNSEEN bool ready_runtime(int resident) {
  if (runtime == nullptr && (runtime = map_memory<Runtime>()) == nullptr) return false;
  runtime->always = 1;
#ifdef EMULATOR_TSAN
  runtime->main_tsan = __tsan_get_current_fiber();
#endif
  for (int i = 0; i < resident; i++)
    if (runtime->blocks[i] == nullptr && (runtime->blocks[i] = make_block(i > 0)) == nullptr) return false;
  // The first block keeps its static variables in place unless others are resident beside it.
  Block* first = runtime->blocks[0];
  if (resident > 1 && first->statics == nullptr) first->statics = map_memory<char>(static_bytes() + 1);
  if (resident == 1 && first->statics != nullptr) {
    munmap(first->statics, static_bytes() + 1);
    first->statics = nullptr;
  }
  return true;
}

EMULATOR_UNSEEN int refuse(Result code) {
  runtime->code = code;
  return code;
}

EMULATOR_UNSEEN int check_configuration(const Launch& launch) {
  const dim3 grid = launch.grid, block = launch.block;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  char* text = runtime->error;
  const size_t room = sizeof runtime->error;
  if (threads < 1 || threads > MAX_THREADS || block.z > 64)
    snprintf(text, room, "%s: a block of %ux%ux%u threads; 1 to %d, 64 at most in z", launch.kernel, block.x, block.y,
             block.z, MAX_THREADS);
  else if (uint64_t{grid.x} * grid.y * grid.z < 1 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
    snprintf(text, room, "%s: a grid of %ux%ux%u blocks; at least 1, 65535 at most in y and z", launch.kernel, grid.x,
             grid.y, grid.z);
  else if (launch.shared_bytes > MAX_SHARED)
    snprintf(text, room, "%s: %zu bytes of dynamic shared memory, %zu at most", launch.kernel, launch.shared_bytes,
             MAX_SHARED);
  else
    return DONE;
  return refuse(BAD_CONFIGURATION);
}

EMULATOR_UNSEEN int check_arguments(const Kernel& kernel, int count, const unsigned* sizes) {
  if (count != kernel.count) {
    snprintf(runtime->error, sizeof runtime->error, "%s: %d arguments given, the kernel takes %d", kernel.name, count,
             kernel.count);
    return refuse(BAD_ARGUMENTS);
  }
  for (int i = 0; i < count; i++)
    if (sizes[i] != kernel.sizes[i]) {
      snprintf(runtime->error, sizeof runtime->error, "%s: argument %d has %u bytes, the kernel takes %u", kernel.name,
               i, sizes[i], kernel.sizes[i]);
      return refuse(BAD_ARGUMENTS);
    }
  return DONE;
}

EMULATOR_UNSEEN int run(const Launch& launch) {
  const int seed = setting("EMULATOR_SEED", 0, 1 << 30);
  const int resident = setting("EMULATOR_RESIDENT", 1, MAX_RESIDENT);
  if (!ready_runtime(resident < 1 ? 1 : resident)) return FAILED;
  if (check_configuration(launch) != DONE) return runtime->code;
  runtime->launch = launch;
  runtime->failed = false;
  runtime->code = DONE;
  runtime->error[0] = 0;
  runtime->main_stack = nullptr;
  runtime->random = seed == 0 ? 0 : static_cast<uint64_t>(seed) * 0x9E3779B97F4A7C15ull;
  const unsigned total = launch.grid.x * launch.grid.y * launch.grid.z;
  unsigned* order = map_memory<unsigned>(total * sizeof(unsigned));
  if (order == nullptr) return FAILED;
  for (unsigned i = 0; i < total; i++) order[i] = i;
  shuffle_order(reinterpret_cast<int*>(order), static_cast<int>(total));
  {
    FaultHandlers handlers;
    run_blocks(order, total, resident < 1 ? 1 : resident);
  }
  acquire(&runtime->end_token);
  munmap(order, total * sizeof(unsigned));
  current = nullptr;
  return runtime->code;
}

inline pthread_mutex_t one_launch = PTHREAD_MUTEX_INITIALIZER;

}  // namespace emulator

#define EMULATOR_EXPORT(NAME)                                                                                     \
  __attribute__((constructor)) static void emulator_export_##NAME() {                                             \
    if constexpr (emulator::wanted(#NAME)) {                                                                      \
      static emulator::Export made __attribute__((section(".data")))(                                             \
          #NAME, NAME, [](void** params) { emulator::call_kernel(NAME, params); });                               \
    }                                                                                                             \
  }
#define EMULATOR_API extern "C" __attribute__((visibility("default")))

// What the last launch of this library refused or found; empty after one that succeeded.
EMULATOR_API const char* emulator_error() { return emulator::runtime == nullptr ? "" : emulator::runtime->error; }

// The number of a kernel's parameters, and their sizes, of which `capacity` are stored; -1 when it is not there.
EMULATOR_API int emulator_parameters(const char* name, unsigned* sizes, int capacity) {
  const emulator::Kernel* kernel = emulator::kernel_named(name);
  if (kernel == nullptr) return -1;
  for (int i = 0; i < kernel->count && i < capacity; i++) sizes[i] = kernel->sizes[i];
  return kernel->count;
}

// cuLaunchKernel, waiting for its end, with the number of arguments and their sizes in bytes, which have to be the
// kernel's. 0, or a `Result`; the text is in emulator_error.
EMULATOR_API int emulator_launch(const char* name, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                                 unsigned block_y, unsigned block_z, unsigned shared_bytes, void** params, int count,
                                 const unsigned* sizes) {
  pthread_mutex_lock(&emulator::one_launch);
  int code = emulator::ready_runtime(1) ? emulator::DONE : emulator::FAILED;
  const emulator::Kernel* kernel = emulator::kernel_named(name);
  if (code == emulator::DONE && kernel == nullptr) {
    snprintf(emulator::runtime->error, sizeof emulator::runtime->error, "no kernel is called %s", name);
    code = emulator::NO_KERNEL;
  }
  if (code == emulator::DONE) code = emulator::check_arguments(*kernel, count, sizes);
  if (code == emulator::DONE)
    code = emulator::run({kernel->name, dim3(grid_x, grid_y, grid_z), dim3(block_x, block_y, block_z), shared_bytes,
                          kernel->call, params});
  pthread_mutex_unlock(&emulator::one_launch);
  return code;
}
