// Blocks of a launch: making them ready, running them, and saying why they cannot go on.
#pragma once
#include "emulator/async_copy.h"
#include "emulator/barrier.h"
#include "emulator/scheduler.h"

namespace emulator {

constexpr int POISON = 0xFF;            // uninitialised shared memory: NaN as f16, bf16 and f32
constexpr size_t MARGIN = 4096;         // around dynamic shared memory: not to be touched
constexpr long MAX_IDLE_ROUNDS = 10000;  // of polling threads and nothing else before it is a deadlock
#ifdef EMULATOR_TSAN
constexpr int SETS_OF_FIBERS = 2;  // used in turn: the threads of neighbouring blocks are different ones to TSan
#else
constexpr int SETS_OF_FIBERS = 1;
#endif

EMULATOR_UNSEEN size_t static_bytes() { return static_cast<size_t>(emulator_shared_end - emulator_shared_begin); }

EMULATOR_UNSEEN uint64_t random_below(uint64_t limit) {  // xorshift64*
  uint64_t& state = runtime->random;
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return (state * 0x2545F4914F6CDD1Dull >> 32) % limit;
}

EMULATOR_UNSEEN void shuffle_order(int* order, int count) {
  if (runtime->random == 0) return;
  for (int k = count - 1; k > 0; k--) {
    const int other = static_cast<int>(random_below(static_cast<uint64_t>(k) + 1)), kept = order[k];
    order[k] = order[other];
    order[other] = kept;
  }
}

// ---- Fibers

EMULATOR_UNSEEN Fiber* make_fiber() {
  Fiber* fiber = map_memory<Fiber>();
  char* stack = map_memory<char>(STACK + STACK_GUARD);
  if (fiber == nullptr || stack == nullptr) return nullptr;
  mprotect(stack, STACK_GUARD, PROT_NONE);
  fiber->stack = stack + STACK_GUARD;
#ifdef EMULATOR_TSAN
  fiber->tsan_fiber = __tsan_create_fiber(0);
#endif
  runtime->fibers_made++;
  return fiber;
}

EMULATOR_UNSEEN Fiber* take_fiber(int threads) {
  if (runtime->pool_first == nullptr || runtime->fibers_made < SETS_OF_FIBERS * threads) return make_fiber();
  Fiber* fiber = runtime->pool_first;
  runtime->pool_first = fiber->pooled;
  return fiber;
}

EMULATOR_UNSEEN void give_fiber(Fiber* fiber) {  // to the end of the queue
  fiber->pooled = nullptr;
  if (runtime->pool_first == nullptr)
    runtime->pool_first = fiber;
  else
    runtime->pool_last->pooled = fiber;
  runtime->pool_last = fiber;
}

EMULATOR_UNSEEN bool place_thread(Block* block, int i) {
  Fiber* fiber = take_fiber(block->threads);
  if (fiber == nullptr) return false;
  allow(fiber->stack, STACK);
  const dim3 size = runtime->launch.block;
  const unsigned n = static_cast<unsigned>(i);
  // Stacks begin at different places of their pages, or the tops of all would compete for the same lines of the cache.
  const size_t colour = n * 11 % 61 * 64;
  fiber->stack_pointer = fresh_stack(fiber->stack + STACK - colour, thread_main);
  fiber->asan_stack = nullptr;
  fiber->wait_word = &runtime->always;
  fiber->wait_value = 0;
  fiber->site = nullptr;
  fiber->copies_first = fiber->copies_count = fiber->copy_group = fiber->idle_atomics = 0;
  fiber->done = false;
  fiber->thread = {n % size.x, n / size.x % size.y, n / size.x / size.y};
  fiber->lane = i % WARP;
  fiber->block = block;
  fiber->warp = &block->warp[i / WARP];
  block->fibers[i] = fiber;
  return true;
}

// ---- Blocks

EMULATOR_UNSEEN void place_warp(Block* block, int index) {
  Warp& warp = block->warp[index];
  const int first = index * WARP, lanes = block->threads - first < WARP ? block->threads - first : WARP;
  warp.block = block;
  warp.lanes = warp.alive = lanes == WARP ? 0xffffffffu : (1u << lanes) - 1;
  warp.gathers = 1;
  for (Gather& gather : warp.gather) {
    gather.arrived = gather.generation = 0;
    forget(gather.tokens, sizeof gather.tokens);
  }
  warp.gather[0].mask = warp.lanes;
  int order[WARP];
  for (int i = 0; i < lanes; i++) order[i] = first + i;
  shuffle_order(order, lanes);
  for (int i = 0; i < lanes; i++) block->fibers[order[i]]->next = block->fibers[order[(i + 1) % lanes]];
}

EMULATOR_UNSEEN void poison_shared(Block* block) {
  const size_t dynamic = runtime->launch.shared_bytes;
  allow(block->dynamic, MAX_SHARED);
  forget(block->dynamic, (dynamic + 7) / 8 * 8);
  fill(block->dynamic, POISON, dynamic);
  forbid(block->dynamic + dynamic, MAX_SHARED - dynamic);
  char* statics = block->statics == nullptr ? emulator_shared_begin : block->statics;
  fill(statics, POISON, static_bytes());
}

EMULATOR_UNSEEN Block* make_block(bool shares_statics) {
  Block* block = map_memory<Block>();
  char* dynamic = map_memory<char>(MAX_SHARED + 2 * MARGIN);
  if (block == nullptr || dynamic == nullptr) return nullptr;
  block->dynamic = dynamic + MARGIN;
  forbid(dynamic, MARGIN);
  forbid(block->dynamic + MAX_SHARED, MARGIN);
  if (shares_statics) block->statics = map_memory<char>(static_bytes() + 1);
  return block;
}

// Readies `block` as the block of this linear index.
EMULATOR_UNSEEN bool begin_block(Block* block, unsigned linear) {
  const Launch& launch = runtime->launch;
  block->index = {linear % launch.grid.x, linear / launch.grid.x % launch.grid.y,
                  linear / launch.grid.x / launch.grid.y};
  block->threads = block->alive = static_cast<int>(launch.block.x * launch.block.y * launch.block.z);
  block->warps = (block->threads + WARP - 1) / WARP;
  Barrier& barrier = block->barrier;
  barrier.arrived = barrier.any = barrier.count = 0;
  barrier.all = 1;
  barrier.site = nullptr;
  forget(barrier.tokens, sizeof barrier.tokens);
  for (int i = 0; i < block->threads; i++)
    if (!place_thread(block, i)) return false;
  for (int i = 0; i < block->warps; i++) {
    place_warp(block, i);
    block->warp_order[i] = i;
  }
  shuffle_order(block->warp_order, block->warps);
  if (block->statics == nullptr) forget(emulator_shared_begin, static_bytes());
  poison_shared(block);
  release(&runtime->start_token);
  return true;
}

// Runs the block until no thread of it can go on; true when any did.
EMULATOR_UNSEEN bool run_block(Block* block) {
  bool ran = false, again = true;
  while (again && !runtime->failed) {
    again = false;
    for (int i = 0; i < block->warps && !runtime->failed; i++) {
      const int first = block->warp_order[i] * WARP;
      const int end = first + WARP < block->threads ? first + WARP : block->threads;
      for (int k = first; k < end && !runtime->failed; k++)
        if (can_run(block->fibers[k])) {
          switch_to(block->fibers[k]);
          ran = again = true;
        }
    }
  }
  return ran;
}

// The static shared variables are one set: they change hands when several blocks are resident.
EMULATOR_UNSEEN void copy_bytes(char* to, const char* from, size_t bytes) {
  for (size_t i = 0; i < bytes; i++) static_cast<volatile char*>(to)[i] = from[i];
}
EMULATOR_UNSEEN void swap_in(const Block* block) {
  if (block->statics == nullptr) return;
  forget(emulator_shared_begin, static_bytes());
  copy_bytes(emulator_shared_begin, block->statics, static_bytes());
}
EMULATOR_UNSEEN void swap_out(const Block* block) {
  if (block->statics != nullptr) copy_bytes(block->statics, emulator_shared_begin, static_bytes());
}

// ---- Deadlock

// Writes who waits where, threads of the same place together.
EMULATOR_UNSEEN void fail_deadlock(Block** blocks, int count) {
  char text[1400] = "";
  size_t used = 0;
  for (int b = 0; b < count; b++) {
    const Block* block = blocks[b];
    for (int i = 0; i < block->threads && used < sizeof text - 160; i++) {
      const Fiber* fiber = block->fibers[i];
      if (fiber->done) continue;
      int same = 0;
      bool told = false;
      for (int k = 0; k < block->threads; k++) {
        if (block->fibers[k]->done || block->fibers[k]->site != fiber->site) continue;
        told |= k < i;
        same++;
      }
      if (told || fiber->site == nullptr) continue;
      used += static_cast<size_t>(snprintf(
          text + used, sizeof text - used, "; block (%u,%u,%u): %d threads, the first is (%u,%u,%u), at %s (%s:%d)",
          block->index.x, block->index.y, block->index.z, same, fiber->thread.x, fiber->thread.y, fiber->thread.z,
          fiber->site->op, fiber->site->file, fiber->site->line));
    }
  }
  fail("deadlock: no thread can go on%s", text);
}

}  // namespace emulator
