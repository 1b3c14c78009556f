// Choosing the next token on the device, so that a decode step needs no word from the host: the best one from the LM
// head's partial results, or a draw from all logits in the order of runtime/sampling.py. One block each.
#include "philox.cuh"
#include "rank.cuh"
#include "state.cuh"

constexpr int NOBODY = -1;

// A number that compares as (value, then the lower id). -0 counts as 0, and NaN as +inf: whoever finds that best has no
// probabilities to choose by.
__device__ __forceinline__ uint64_t rank_key(float value, int id) {
  const uint32_t bits = __float_as_uint(is_bad_logit(value) ? infinity() : value + 0.f);
  const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(ordered) << 32 | static_cast<uint32_t>(~id);
}

__device__ __forceinline__ float key_value(uint64_t key) {
  const uint32_t ordered = static_cast<uint32_t>(key >> 32);
  return __uint_as_float(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}

__device__ __forceinline__ bool is_usable(float best) { return best > -infinity() && best < infinity(); }

__device__ __forceinline__ int key_id(uint64_t key) { return static_cast<int>(~static_cast<uint32_t>(key)); }

// Largest key, or sum, over the block, in every thread. Two barriers: of_warp may be used again at once.
__device__ __forceinline__ uint64_t block_best(uint64_t key, uint64_t* of_warp) {
#pragma unroll
  for (int distance = 16; distance > 0; distance >>= 1) {
    const uint64_t other = __shfl_xor_sync(0xffffffffu, key, distance);
    key = max(key, other);
  }
  if ((threadIdx.x & 31) == 0) of_warp[threadIdx.x >> 5] = key;
  __syncthreads();
  for (int warp = 0; warp < static_cast<int>(blockDim.x >> 5); warp++) key = max(key, of_warp[warp]);
  __syncthreads();
  return key;
}

__device__ __forceinline__ uint64_t block_total(uint64_t value, uint64_t* of_warp) {
  value = warp_total(value);
  if ((threadIdx.x & 31) == 0) of_warp[threadIdx.x >> 5] = value;
  __syncthreads();
  uint64_t total = 0;
  for (int warp = 0; warp < static_cast<int>(blockDim.x >> 5); warp++) total += of_warp[warp];
  __syncthreads();
  return total;
}

__device__ __forceinline__ uint64_t fixed(float value) { return static_cast<uint64_t>(value * FIXED_ONE + 0.5f); }

// log(total / 2^44)
__device__ __forceinline__ float log_of_fixed(uint64_t total) {
  return static_cast<float>(log(static_cast<double>(total) / static_cast<double>(FIXED_ONE)));
}

// One thread: the result of place `offset` of this step, for a host that polls `sequence`.
__device__ __forceinline__ void publish(DecodeState* state, RingEntry* ring, int capacity, int offset, int token,
                                        float logprob) {
  const int step = state->step + offset, status = state->status | (token < 0 ? STATUS_BAD_LOGITS : 0);
  state->status = status;  // this thread alone writes the state now
  volatile RingEntry* entry = ring + step % capacity;
  entry->token = token;
  entry->logprob = logprob;
  entry->status = status;
  __threadfence_system();
  entry->sequence = step + 1;
}

// One thread: the state after the step.
__device__ __forceinline__ void advance_state(DecodeState* state, int token, int steps, int positions) {
  state->token[0] = token;
  state->step += steps;
  state->pos += positions;
}

//   partials HeadPartial [tiles][tokens]      ring RingEntry [capacity]
// Each of the step's tokens gets its own entry; the last one's choice is the next token.
extern "C" __global__ void __launch_bounds__(RANK_THREADS, 1)
    sample_greedy(const HeadPartial* partials, int tiles, int tokens, DecodeState* state, RingEntry* ring, int capacity,
                  int positions) {
  __shared__ uint64_t of_warp[RANK_WARPS];
  int token = NOBODY;
  for (int m = 0; m < tokens; m++) {
    uint64_t best = rank_key(-infinity(), 0x7fffffff);
    for (int tile = threadIdx.x; tile < tiles; tile += blockDim.x) {
      const HeadPartial part = partials[static_cast<size_t>(tile) * tokens + m];
      best = max(best, rank_key(part.index < 0 ? infinity() : part.max, part.index));
    }
    best = block_best(best, of_warp);
    const float peak = key_value(best);
    const bool bad = !is_usable(peak);
    uint64_t sum = 0;
    for (int tile = threadIdx.x; tile < tiles && !bad; tile += blockDim.x) {
      const HeadPartial part = partials[static_cast<size_t>(tile) * tokens + m];
      if (part.max > -infinity()) sum += fixed(part.sum * expf(part.max - peak));
    }
    sum = block_total(sum, of_warp);
    token = bad ? NOBODY : key_id(best);
    if (threadIdx.x == 0) publish(state, ring, capacity, m, token, bad ? nanf("") : -log_of_fixed(sum));
  }
  if (threadIdx.x == 0) advance_state(state, token, tokens, positions);
}
CUDA_KERNEL_EXPORT(sample_greedy)

struct Row {
  const float* logits;
  const uint32_t* seen;  // one bit per id
  uint32_t* depths;
  int vocab;
};

// The logit after the repetition penalty. The product is rounded by itself: it must not merge with a later subtraction.
__device__ __forceinline__ float penalised(const Row& row, int id, float penalty) {
  const float logit = row.logits[id];
  if (penalty == 1.f || !(row.seen[id >> 5] >> (id & 31) & 1)) return logit;
  return logit < 0.f ? __fmaf_rn(logit, penalty, 0.f) : logit / penalty;
}

struct Best {
  float peak;     // largest logit
  uint64_t next;  // best after the penalty
  bool bad;       // no probabilities follow from these logits
};

__device__ __forceinline__ Best best_of(const Row& row, float penalty, uint64_t* of_warp) {
  uint64_t best = rank_key(-infinity(), 0x7fffffff), next = best;
  for (int id = threadIdx.x; id < row.vocab; id += RANK_THREADS) {
    best = max(best, rank_key(row.logits[id], id));
    next = max(next, rank_key(penalised(row, id, penalty), id));
  }
  best = block_best(best, of_warp);
  next = block_best(next, of_warp);
  return {key_value(best), next, !is_usable(key_value(next))};  // a bad logit is no better after the penalty
}

// Writes the depths; returns the sum of e^(logit - peak) under the model itself, in steps of 2^-44.
__device__ __forceinline__ uint64_t score_row(const Row& row, const Best& best, const SampleParams& params,
                                              uint64_t* of_warp) {
  const float top = key_value(best.next);
  uint64_t sum = 0;
  for (int id = threadIdx.x; id < row.vocab; id += RANK_THREADS) {
    sum += fixed(expf(row.logits[id] - best.peak));
    const float score = (penalised(row, id, params.repetition_penalty) - top) / params.temperature;
    row.depths[id] = __float_as_uint(score) & 0x7fffffffu;
  }
  return block_total(sum, of_warp);
}

// Tokens of the nucleus: those before which less than top_p of the mass lies; of equal scores the lower ids.
__device__ __forceinline__ void keep_top_p(const Row& row, double top_p, Keep& keep, RankScratch& scratch) {
  const Found found = descend(row.depths, row.vocab, keep, scratch, weight_of, [&](uint64_t total) {
    const double mass = ceil(top_p * static_cast<double>(total));  // at least 1
    return min(static_cast<uint64_t>(mass), total) - 1;
  });
  const uint64_t each = weight_of(found.depth), room = (found.place.target - found.place.before) / each;  // beside one
  keep.deepest = found.depth;
  if ((room + 1) * each >= found.place.inside) return;  // all of this depth
  keep.edge_depth = found.depth;
  const Place last = locate(
      row.vocab, scratch, [&](int id) { return static_cast<uint64_t>(row.depths[id] == found.depth); },
      [&](uint64_t) { return room; });
  keep.edge_last = last.index;
}

__device__ __forceinline__ int draw(const Row& row, const SampleParams& params, int step, RankScratch& scratch) {
  Keep keep = {DEEPEST, 0xffffffffu, 0};
  if (params.top_k > 0 && params.top_k < row.vocab) {
    const uint64_t place = params.top_k - 1;
    keep.deepest = descend(row.depths, row.vocab, keep, scratch, [](uint32_t) { return uint64_t(1); },
                           [&](uint64_t) { return place; }).depth;
  }
  if (params.top_p < 1.0) keep_top_p(row, params.top_p, keep, scratch);
  if (params.min_p > 0.0) {
    const float least = static_cast<float>(log(params.min_p));
    keep.deepest = min(keep.deepest, __float_as_uint(least) & 0x7fffffffu);
  }
  const double uniform = philox_uniform(params.seed, step);
  const Place drawn = locate(
      row.vocab, scratch,
      [&](int id) { return keep.has(row.depths[id], id) ? weight_of(row.depths[id]) : uint64_t(0); },
      [&](uint64_t total) { return min(static_cast<uint64_t>(uniform * static_cast<double>(total)), total - 1); });
  return drawn.index;
}

//   logits f32 [vocab]      seen u32 [ceil(vocab / 32)], the chosen token's bit is set      depths u32 [vocab]: scratch
// Order: repetition penalty, temperature (0: the best token), top-k, top-p, min-p, draw with counter state->step.
extern "C" __global__ void __launch_bounds__(RANK_THREADS, 1)
    sample_filtered(const float* logits, int vocab, const SampleParams* parameters, uint32_t* seen, DecodeState* state,
                    RingEntry* ring, int capacity, uint32_t* depths, int positions) {
  __shared__ RankScratch scratch;
  const SampleParams params = *parameters;
  const Row row = {logits, seen, depths, vocab};
  const Best best = best_of(row, params.repetition_penalty, scratch.of_warp);
  int token = NOBODY;
  uint64_t sum = 0;
  if (!best.bad) {
    sum = score_row(row, best, params, scratch.of_warp);
    token = params.temperature > 0.f ? draw(row, params, state->step, scratch) : key_id(best.next);
  }
  if (threadIdx.x != 0) return;  // the last barrier lies behind every read of state and seen
  const float logprob = best.bad ? nanf("") : logits[token] - best.peak - log_of_fixed(sum);
  if (token >= 0) seen[token >> 5] |= 1u << (token & 31);
  publish(state, ring, capacity, 0, token, logprob);
  advance_state(state, token, 1, positions);
}
CUDA_KERNEL_EXPORT(sample_filtered)
