// What a launch consists of while it runs: blocks, warps, and one fiber per thread, all on one thread of the CPU.
#pragma once
#include <cstddef>
#include <cstdint>

#include "emulator/qualifiers.h"
#include "emulator/sanitizers.h"

namespace emulator {

constexpr int WARP = 32;
constexpr int MAX_THREADS = 1024;
constexpr int MAX_RESIDENT = 64;
constexpr size_t MAX_SHARED = 163 << 10;  // what one block may have on sm_87 (Orin)
constexpr int MAX_COPIES = 256;           // cp.async of one thread that are under way
constexpr int MAX_GATHERS = 8;            // different masks of one warp
constexpr size_t STACK_GUARD = 4096;
#if defined(EMULATOR_ASAN) || defined(EMULATOR_TSAN)
constexpr size_t STACK = 256 << 10;
#else
constexpr size_t STACK = 64 << 10;
#endif

// A place in a kernel where threads meet.
struct Site {
  const char* op;
  const char* file;
  int line;
};
#define EMULATOR_SITE(OP)                                               \
  (__extension__({                                                      \
    static constexpr emulator::Site emulator_site{OP, __FILE__, __LINE__}; \
    &emulator_site;                                                     \
  }))

// Operands and results of one mma in fp32.
struct alignas(64) Matrices {
  float a[16][16], b[16][8], c[16][8];
};

// A meeting of lanes of one warp: all of `mask` deposit, the last one completes it. Two sets of slots, because lanes of
// the next meeting may deposit before all of this one have fetched.
struct Gather {
  uint32_t mask, arrived, generation;
  const Site* site;
  uint64_t tokens[2];  // of even and odd generations, as a barrier's
  union alignas(64) Slots {
    uint64_t words[WARP];
    Matrices matrices;
  } slots[2];
};

// __syncthreads and its variants.
struct Barrier {
  uint32_t generation;
  int arrived;
  const Site* site;
  int any, all, count;              // votes of those who have arrived
  int last_any, last_all, last_count;  // of the last meeting
  // What orders accesses for TSan, of even and odd generations: with one for all, a thread that is late from a meeting
  // would also see ordered what others did between it and the next one, and races there would stay hidden.
  uint64_t tokens[2];
};

struct AsyncCopy {
  void* target;
  const void* source;
  int bytes, source_bytes, group;
};

struct Block;
struct Fiber;

struct Warp {
  Block* block;
  uint32_t lanes;  // that exist
  uint32_t alive;  // that have not returned
  int gathers;
  Gather gather[MAX_GATHERS];  // [0] is that of all lanes
};

struct Fiber {
  void* stack_pointer;
  const uint32_t* wait_word;  // the fiber can run when *wait_word != wait_value
  uint32_t wait_value;
  int lane;
  Fiber* next;  // lane of the same warp, in a ring
  Warp* warp;
  Block* block;
  uint3 thread;
  const Site* site;  // where it met others last
  int copies_first, copies_count, copy_group;
  int idle_atomics;
  bool done;
  char* stack;
  void *tsan_fiber, *asan_stack;
  Fiber* pooled;
  AsyncCopy copies[MAX_COPIES];
};

struct Block {
  uint3 index;
  int threads, alive;
  Barrier barrier;
  char* dynamic;  // MAX_SHARED bytes between two margins
  char* statics;  // the block's static shared variables while another block runs
  int warps;
  int warp_order[MAX_THREADS / WARP];
  Fiber* fibers[MAX_THREADS];
  Warp warp[MAX_THREADS / WARP];
};

struct Launch {
  const char* kernel;
  dim3 grid, block;
  size_t shared_bytes;
  void (*call)(void** params);
  void** params;
};

// All state of one loaded library. Mapped, not a variable: variables are what kernels share.
struct Runtime {
  Launch launch;
  bool failed;
  int code;
  uint64_t random;       // 0: everything in order
  uint32_t spin_round;   // fibers that poll wait for the next round
  uint64_t progress;     // arrivals and returns so far
  uint32_t never, always;  // wait words of fibers that are done, and that have not begun
  void* main_stack_pointer;
  void *main_tsan, *main_asan_stack;
  const void* main_stack;
  size_t main_stack_bytes;
  uint64_t start_token, end_token, fence_token;
  Fiber* pool_first;
  Fiber* pool_last;
  int pool_size, fibers_made;
  Block* blocks[MAX_RESIDENT];
  char error[2048];
};

inline Runtime* runtime = nullptr;
inline Fiber* current = nullptr;

}  // namespace emulator
