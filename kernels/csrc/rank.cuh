// Finding a token by its place in a sum, without sorting: in the order of ids, or from the best score down.
//
// A score is kept as its depth: the bits of its distance below the best one, a float of at least 0, so that bits
// compare as distances do and the best token has depth 0. Sums are integers (probabilities in steps of 2^-44 of the
// best token's), so that they come out the same in whatever order threads add.
#pragma once
#include "element.cuh"

constexpr int RANK_THREADS = 1024, RANK_WARPS = RANK_THREADS / 32;
constexpr int BINS = 2048, BIN_BITS = 11, BINS_PER_UNIT = 64;
constexpr uint32_t DEEPEST = 0x7f800000u;  // of a score of -inf
constexpr float FIXED_ONE = 17592186044416.f;  // 2^44

struct Place {
  int index;                        // the first at which the sum exceeds the target
  uint64_t before, inside, target;  // sum before it, its own part, and what was looked for
};

struct RankScratch {
  uint64_t bins[BINS];
  uint64_t of_warp[RANK_WARPS];
  Place found;
};

struct Keep {  // the tokens that may come
  uint32_t deepest;                    // kept are depths up to this one,
  uint32_t edge_depth; int edge_last;  // of those at edge_depth only ids up to edge_last
  __device__ __forceinline__ bool has(uint32_t depth, int id) const {
    return depth <= deepest && (depth != edge_depth || id <= edge_last);
  }
};

// e^-distance in steps of 2^-44. Below e^-16 fp32 is precise enough: an error of 2^-22 of it is below 2^-45.
__device__ __forceinline__ uint64_t weight_of(uint32_t depth) {
  const float score = -__uint_as_float(depth);
  if (score < -16.f) return static_cast<uint64_t>(expf(score) * FIXED_ONE + 0.5f);
  return static_cast<uint64_t>(exp(static_cast<double>(score)) * static_cast<double>(FIXED_ONE) + 0.5);
}

__device__ __forceinline__ uint64_t warp_total(uint64_t value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance >>= 1) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

// In lane l the sum over lanes 0 .. l.
__device__ __forceinline__ uint64_t warp_prefix(uint64_t value) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int distance = 1; distance < 32; distance <<= 1) {
    const uint64_t other = __shfl_up_sync(0xffffffffu, value, distance);
    if (lane >= distance) value += other;
  }
  return value;
}

// One warp: the first index in first .. last-1 at which `before` plus the values up to it exceed the target; it exists.
template <typename Value>
__device__ __forceinline__ void walk(int first, int last, uint64_t before, uint64_t target, Place* found, Value value) {
  const int lane = threadIdx.x & 31;
  for (int start = first; start < last; start += 32) {
    const int index = start + lane;
    const uint64_t own = index < last ? value(index) : 0, upto = before + warp_prefix(own);
    const unsigned beyond = __ballot_sync(0xffffffffu, upto > target);
    if (beyond) {
      if (lane == __ffs(beyond) - 1) *found = Place{index, upto - own, own, target};
      return;
    }
    before += warp_total(own);
  }
}

// The first index at which the sum of value(0), value(1), ... exceeds target_of(sum of all), which is below that sum.
// The whole block of RANK_THREADS calls it and gets the same answer. Values that the block wrote lie behind a barrier.
template <typename Value, typename Target>
__device__ __forceinline__ Place locate(int count, RankScratch& scratch, Value value, Target target_of) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int length = (count + RANK_THREADS - 1) / RANK_THREADS * 32;  // of a warp's part
  const int first = min(warp * length, count), last = min(first + length, count);
  uint64_t sum = 0;
  for (int index = first + lane; index < last; index += 32) sum += value(index);
  sum = warp_total(sum);
  if (lane == 0) scratch.of_warp[warp] = sum;
  __syncthreads();
  const uint64_t of_lane = scratch.of_warp[lane];
  const uint64_t target = target_of(warp_total(of_lane)), before = warp_total(lane < warp ? of_lane : 0);
  if (before <= target && target < before + sum) walk(first, last, before, target, &scratch.found, value);
  __syncthreads();
  return scratch.found;
}

// The bin of a depth: by distance on the first level (1/64 each, the last for 31.98 and more), then by bits.
__device__ __forceinline__ int distance_bin(uint32_t depth) {
  const float distance = __uint_as_float(depth) * BINS_PER_UNIT;
  return distance < BINS - 1 ? static_cast<int>(distance) : BINS - 1;
}

__device__ __forceinline__ uint32_t distance_of_bin(int bin) {  // the least depth in it
  return bin < BINS ? __float_as_uint(static_cast<float>(bin) / BINS_PER_UNIT) : DEEPEST + 1;
}

struct Found {
  uint32_t depth;
  Place place;  // in the sum over all depths; `inside` counts all tokens of this depth
};

// The depth at which the sum of measure(depth) over kept tokens, best first, first exceeds target_of(sum of all).
// depths u32 [count]. Each level looks at the tokens of one bin of the last and sorts them into 2048 finer ones.
template <typename Measure, typename Target>
__device__ __forceinline__ Found descend(const uint32_t* depths, int count, const Keep& keep, RankScratch& scratch,
                                         Measure measure, Target target_of) {
  uint32_t low = 0, high = DEEPEST;  // both included
  uint64_t before = 0, target = 0;
  for (int level = 0;; level++) {
    const int bits = 32 - __clz(static_cast<int>(high - low)), shift = max(bits - BIN_BITS, 0);
    for (int bin = threadIdx.x; bin < BINS; bin += RANK_THREADS) scratch.bins[bin] = 0;
    __syncthreads();
    for (int id = threadIdx.x; id < count; id += RANK_THREADS) {
      const uint32_t depth = depths[id];
      if (depth < low || depth > high || !keep.has(depth, id)) continue;
      const int bin = level == 0 ? distance_bin(depth) : static_cast<int>((depth - low) >> shift);
      atomicAdd(reinterpret_cast<unsigned long long*>(&scratch.bins[bin]),
                static_cast<unsigned long long>(measure(depth)));
    }
    __syncthreads();
    Place place = locate(
        BINS, scratch, [&](int bin) { return scratch.bins[bin]; },
        [&](uint64_t total) { return level == 0 ? target_of(total) : target - before; });
    if (level == 0) target = place.target;
    before += place.before;
    if (level == 0) {
      low = distance_of_bin(place.index);
      high = distance_of_bin(place.index + 1) - 1;
    } else {
      low += static_cast<uint32_t>(place.index) << shift;
      high = low + (1u << shift) - 1;
    }
    if (low == high) return {low, {place.index, before, place.inside, target}};
  }
}
