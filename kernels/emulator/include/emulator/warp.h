// Warp collectives: the lanes that a mask names meet at one place, exchange words, and go on. They order no memory,
// except __syncwarp.
#pragma once
#include "emulator/scheduler.h"

namespace emulator {

constexpr uint32_t ALL_LANES = 0xffffffffu;

// Finds the meeting of `mask` in the lane's warp, and refuses what CUDA leaves undefined.
EMULATOR_UNSEEN Gather& gather_of(uint32_t mask, const Site* site) {
  const Fiber* self = current;
  Warp& warp = *self->warp;
  if (!(mask >> self->lane & 1))
    fail("%s at %s:%d: lane %d is not in its own mask 0x%x", site->op, site->file, site->line, self->lane, mask);
  mask &= warp.lanes;  // a last warp of fewer lanes: full masks are common there, and harmless
  if (mask & ~warp.alive)
    fail("%s at %s:%d: mask 0x%x names lanes that have returned (alive 0x%x)", site->op, site->file, site->line, mask,
         warp.alive);
  Gather* found = nullptr;
  for (int i = 0; i < warp.gathers; i++) {
    Gather& other = warp.gather[i];
    if (other.mask == mask)
      found = &other;
    else if (other.arrived & mask)
      fail("%s at %s:%d: mask 0x%x overlaps a collective under way with mask 0x%x (%s at %s:%d)", site->op, site->file,
           site->line, mask, other.mask, other.site->op, other.site->file, other.site->line);
  }
  if (found == nullptr) {
    if (warp.gathers == MAX_GATHERS) fail("%s at %s:%d: too many different masks", site->op, site->file, site->line);
    found = &warp.gather[warp.gathers++];
    found->mask = mask;
  }
  if (found->arrived == 0)
    found->site = site;
  else if (found->site != site)
    fail("warp collective mismatch: lane %d runs %s at %s:%d, others %s at %s:%d", self->lane, site->op, site->file,
         site->line, found->site->op, found->site->file, found->site->line);
  return *found;
}

EMULATOR_UNSEEN Gather::Slots& slots_of(Gather& gather) { return gather.slots[gather.generation & 1]; }

// Marks the lane as arrived; true for the last one, which completes the meeting and calls `finish`.
EMULATOR_UNSEEN bool arrive(Gather& gather) {
  runtime->progress++;
  gather.arrived |= 1u << current->lane;
  return gather.arrived == gather.mask;
}
EMULATOR_UNSEEN void finish(Gather& gather) {
  gather.arrived = 0;
  gather.generation++;
}
EMULATOR_UNSEEN void await(Gather& gather) { wait_for_change(&gather.generation, gather.generation, gather.site); }

EMULATOR_UNSEEN void meet(Gather& gather) {
  if (arrive(gather))
    finish(gather);
  else
    await(gather);
}

EMULATOR_UNSEEN int lane() { return current->lane; }

EMULATOR_UNSEEN void sync_warp(const Site* site, uint32_t mask = ALL_LANES) {
  Gather& gather = gather_of(mask, site);
  uint64_t* token = &gather.tokens[gather.generation & 1];
  release(token);
  meet(gather);
  acquire(token);
}

enum class Shuffle { INDEX, XOR, DOWN, UP };

EMULATOR_UNSEEN uint64_t shuffle_word(Shuffle kind, const Site* site, uint32_t mask, uint64_t word, int by, int width) {
  const int self = current->lane, base = self & ~(width - 1);
  int from = self + by;
  if (kind == Shuffle::INDEX) from = base + (by & (width - 1));
  if (kind == Shuffle::XOR) from = self ^ by;
  if (kind == Shuffle::UP) from = self - by;
  const bool outside = kind == Shuffle::XOR ? from >= base + width : from < base || from >= base + width;
  if (outside) from = self;
  Gather& gather = gather_of(mask, site);
  Gather::Slots& slots = slots_of(gather);
  slots.words[self] = word;
  meet(gather);
  if (!(gather.mask >> from & 1))
    fail("%s at %s:%d: lane %d reads lane %d, which is not in mask 0x%x", site->op, site->file, site->line, self, from,
         gather.mask);
  return slots.words[from];
}

template <class T>
inline T shuffle(Shuffle kind, const Site* site, uint32_t mask, T value, int by, int width = WARP) {
  static_assert(sizeof(T) <= 8, "a shuffle moves 8 bytes at most");
  uint64_t word = 0;
  __builtin_memcpy(&word, &value, sizeof(T));
  word = shuffle_word(kind, site, mask, word, by, width);
  __builtin_memcpy(&value, &word, sizeof(T));
  return value;
}

EMULATOR_UNSEEN uint32_t ballot(const Site* site, uint32_t mask, int vote) {
  Gather& gather = gather_of(mask, site);
  Gather::Slots& slots = slots_of(gather);
  slots.words[current->lane] = vote != 0;
  meet(gather);
  uint32_t votes = 0;
  for (int i = 0; i < WARP; i++)
    if (gather.mask >> i & 1) votes |= static_cast<uint32_t>(slots.words[i]) << i;
  return votes;
}

// Bitwise and arithmetic reductions of 32-bit words (sm_80 and later).
template <class T, class Operation>
EMULATOR_UNSEEN T reduce(const Site* site, uint32_t mask, T value, Operation operation) {
  Gather& gather = gather_of(mask, site);
  Gather::Slots& slots = slots_of(gather);
  slots.words[current->lane] = static_cast<uint32_t>(value);
  meet(gather);
  T total = value;
  for (int i = 0; i < WARP; i++)
    if (gather.mask >> i & 1 && i != current->lane) total = operation(total, static_cast<T>(slots.words[i]));
  return total;
}

}  // namespace emulator

#define __syncwarp(...) emulator::sync_warp(EMULATOR_SITE("__syncwarp"), ##__VA_ARGS__)
#define __shfl_sync(mask, value, ...) \
  emulator::shuffle(emulator::Shuffle::INDEX, EMULATOR_SITE("__shfl_sync"), mask, value, __VA_ARGS__)
#define __shfl_xor_sync(mask, value, ...) \
  emulator::shuffle(emulator::Shuffle::XOR, EMULATOR_SITE("__shfl_xor_sync"), mask, value, __VA_ARGS__)
#define __shfl_down_sync(mask, value, ...) \
  emulator::shuffle(emulator::Shuffle::DOWN, EMULATOR_SITE("__shfl_down_sync"), mask, value, __VA_ARGS__)
#define __shfl_up_sync(mask, value, ...) \
  emulator::shuffle(emulator::Shuffle::UP, EMULATOR_SITE("__shfl_up_sync"), mask, value, __VA_ARGS__)
#define __ballot_sync(mask, vote) emulator::ballot(EMULATOR_SITE("__ballot_sync"), mask, (vote) ? 1 : 0)
#define __any_sync(mask, vote) (emulator::ballot(EMULATOR_SITE("__any_sync"), mask, (vote) ? 1 : 0) != 0)
#define __all_sync(mask, vote) (emulator::ballot(EMULATOR_SITE("__all_sync"), mask, (vote) ? 0 : 1) == 0)
#define EMULATOR_REDUCE(NAME, mask, value, expression) \
  emulator::reduce(EMULATOR_SITE(NAME), mask, value, [](auto a, auto b) { return expression; })
#define __reduce_add_sync(mask, value) EMULATOR_REDUCE("__reduce_add_sync", mask, value, a + b)
#define __reduce_min_sync(mask, value) EMULATOR_REDUCE("__reduce_min_sync", mask, value, a < b ? a : b)
#define __reduce_max_sync(mask, value) EMULATOR_REDUCE("__reduce_max_sync", mask, value, a > b ? a : b)
#define __reduce_or_sync(mask, value) EMULATOR_REDUCE("__reduce_or_sync", mask, value, a | b)
#define __reduce_and_sync(mask, value) EMULATOR_REDUCE("__reduce_and_sync", mask, value, a & b)
