// __syncthreads and its variants: all threads of the block that have not returned meet at one place.
#pragma once
#include "emulator/scheduler.h"

namespace emulator {

EMULATOR_UNSEEN const Barrier& block_barrier(const Site* site, int vote = 0) {
  Fiber* self = current;
  Barrier& barrier = self->block->barrier;
  uint64_t* token = &barrier.tokens[barrier.generation & 1];
  release(token);
  if (barrier.site == nullptr)
    barrier.site = site;
  else if (barrier.site != site)
    fail("divergent barrier: a thread is at %s:%d (%s) while another waits at %s:%d (%s)", site->file, site->line,
         site->op, barrier.site->file, barrier.site->line, barrier.site->op);
  barrier.any |= vote;
  barrier.all &= vote;
  barrier.count += vote;
  runtime->progress++;
  if (++barrier.arrived == self->block->alive)
    complete(barrier);
  else
    wait_for_change(&barrier.generation, barrier.generation, site);
  acquire(token);
  return barrier;
}

EMULATOR_UNSEEN int barrier_or(const Site* site, int vote) { return block_barrier(site, vote != 0).last_any; }
EMULATOR_UNSEEN int barrier_and(const Site* site, int vote) { return block_barrier(site, vote != 0).last_all; }
EMULATOR_UNSEEN int barrier_count(const Site* site, int vote) { return block_barrier(site, vote != 0).last_count; }

// A fence makes what was written before it visible to whoever passes a fence afterwards: to TSan one global order.
EMULATOR_UNSEEN void fence() {
  acquire(&runtime->fence_token);
  release(&runtime->fence_token);
}

}  // namespace emulator

#define __syncthreads() ((void)emulator::block_barrier(EMULATOR_SITE("__syncthreads")))
#define __syncthreads_or(vote) (emulator::barrier_or(EMULATOR_SITE("__syncthreads_or"), (vote)))
#define __syncthreads_and(vote) (emulator::barrier_and(EMULATOR_SITE("__syncthreads_and"), (vote)))
#define __syncthreads_count(vote) (emulator::barrier_count(EMULATOR_SITE("__syncthreads_count"), (vote)))

static inline void __threadfence() { emulator::fence(); }
static inline void __threadfence_block() { emulator::fence(); }
static inline void __threadfence_system() { emulator::fence(); }
#define __nanosleep(nanoseconds) emulator::wait_for_others(EMULATOR_SITE("__nanosleep"))
#define __trap() emulator::fail("__trap at %s:%d", __FILE__, __LINE__)
