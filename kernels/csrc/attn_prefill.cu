// Causal attention of a chunk of query tokens over the cache, which has the chunk's own rows already: token m, at
// position pos + m, sees positions 0..pos + m. A block has 64 query rows of one KV head (64 / ratio tokens with all the
// query heads that share it), a warp 16 of them; keys and values come in tiles of ATTN_KEYS positions, with a running
// maximum and sum per row. Source: Dao, "FlashAttention-2" (2023).
#include "attn.cuh"
#include "element.cuh"
#include "kv.cuh"
#include "ptx.cuh"
#include "state.cuh"

constexpr int ROWS = 64;  // query rows of a block

// Shared memory of a block: 16-bit caches have two stages of keys and values, int8 one and the scales of its keys.
template <int D>
struct PrefillTiles {
  static constexpr int TILE = ATTN_KEYS * (D / 8);
  uint4 *q, *stages;

  __device__ __forceinline__ explicit PrefillTiles(uint4* shared) : q(shared), stages(shared + ROWS * (D / 8)) {}
  __device__ __forceinline__ uint4* k(int stage) const { return stages + 2 * stage * TILE; }
  __device__ __forceinline__ uint4* v(int stage) const { return k(stage) + TILE; }
  __device__ __forceinline__ float* k_scales() const { return reinterpret_cast<float*>(stages + 2 * TILE); }
};

// What a lane has of its warp's rows lane / 4 and lane / 4 + 8: the positions they see, the running maximum of their
// scores, this lane's part of the sum of weights, and the weighted sum of values.
template <int D>
struct Running {
  int visible[2];
  float max[2], sum[2], acc[D / 8][4];

  __device__ __forceinline__ Running(const QueryRows& rows, int first, int pos, int limit) : acc{} {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      visible[i] = min(limit, pos + rows.token(first + ((threadIdx.x & 31) >> 2) + 8 * i) + 1);
      max[i] = -infinity();
      sum[i] = 0.f;
    }
  }
};

// Scores become weights: scaled to base 2, masked, 2^(s - maximum), rounded to T as the product with V takes them, in
// the layout of mma A operands, p[k] for keys 16 k to 16 k + 15. What was summed before is scaled to the new maximum.
template <typename T, int D, bool INT8>
__device__ __forceinline__ void weigh(uint32_t (&p)[4][4], float (&s)[8][4], Running<D>& run, int base,
                                      const float* k_scales) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int seen = run.visible[i] - base;
    float largest = run.max[i];
#pragma unroll
    for (int n = 0; n < 16; n++) {
      const int t = (n >> 1) * 8 + (lane & 3) * 2 + (n & 1);
      float& value = s[n >> 1][2 * i + (n & 1)];
      value *= score_scale<D>();
      if constexpr (INT8) value *= k_scales[t];
    }
    if (seen < ATTN_KEYS) {  // the last tiles alone
#pragma unroll
      for (int n = 0; n < 16; n++)
        if ((n >> 1) * 8 + (lane & 3) * 2 + (n & 1) >= seen) s[n >> 1][2 * i + (n & 1)] = -infinity();
    }
#pragma unroll
    for (int n = 0; n < 16; n++) largest = fmaxf(largest, s[n >> 1][2 * i + (n & 1)]);
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
    const float shrink = exp2_fast(run.max[i] - largest);
    run.max[i] = largest;
    run.sum[i] *= shrink;
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
      run.acc[n][2 * i] *= shrink;
      run.acc[n][2 * i + 1] *= shrink;
    }
#pragma unroll
    for (int n = 0; n < 8; n++) {
      const uint32_t pair = Element<T>::pack(exp2_fast(s[n][2 * i] - largest), exp2_fast(s[n][2 * i + 1] - largest));
      const float2 rounded = Element<T>::unpack(pair);
      run.sum[i] += rounded.x + rounded.y;
      p[n >> 1][2 * (n & 1) + i] = pair;
    }
  }
}

// One tile of positions from `base` on.
template <typename T, int D, bool INT8>
__device__ __forceinline__ void attend(Running<D>& run, const PrefillTiles<D>& tiles, int stage, int base) {
  float s[8][4] = {};
  uint32_t p[4][4];
  add_scores<T, D, 8>(s, tiles.q, (threadIdx.x >> 5) * 16, tiles.k(stage), 0);
  weigh<T, D, INT8>(p, s, run, base, tiles.k_scales());
#pragma unroll
  for (int k = 0; k < 4; k++) add_values<T, D, D / 8>(run.acc, p[k], tiles.v(stage), 16 * k, 0);
}

// 16-bit cache: while one stage is used, the next is on its way into the other.
template <typename T, int D>
__device__ __forceinline__ void attend_all(Running<D>& run, const PrefillTiles<D>& tiles, const KvTables& kv, int slot,
                                           int end) {
  const size_t head = kv_offset<D>(kv, blockIdx.y, 0);
  const T *keys = kv_base<const T>(kv.keys, slot) + head, *values = kv_base<const T>(kv.values, slot) + head;
  copy_tile<D>(tiles.k(0), keys, end);
  copy_tile<D>(tiles.v(0), values, end);
  cp_async_commit();
  for (int base = 0, stage = 0; base < end; base += ATTN_KEYS, stage ^= 1) {
    cp_async_wait<0>();
    __syncthreads();  // this stage is there for all, and nobody reads the other one any more
    const int next = base + ATTN_KEYS;
    if (next < end) {
      copy_tile<D>(tiles.k(stage ^ 1), keys + static_cast<size_t>(next) * D, end - next);
      copy_tile<D>(tiles.v(stage ^ 1), values + static_cast<size_t>(next) * D, end - next);
      cp_async_commit();
    }
    attend<T, D, false>(run, tiles, stage, base);
  }
}

// int8 cache: while one tile is used, the next waits in registers.
template <typename T, int D>
__device__ __forceinline__ void attend_all_i8(Running<D>& run, const PrefillTiles<D>& tiles, const KvTables& kv,
                                              int slot, int end) {
  Int8Positions<D> positions;
  positions.fetch(kv, slot, blockIdx.y, 0, end);
  cp_async_commit();
  cp_async_wait<0>();  // the queries
  for (int base = 0; base < end; base += ATTN_KEYS) {
    if (base > 0) __syncthreads();  // everybody has used the tile before
    positions.template store<T>(tiles.k(0), tiles.v(0), tiles.k_scales());
    const int next = base + ATTN_KEYS;
    if (next < end) positions.fetch(kv, slot, blockIdx.y, next, end - next);
    __syncthreads();
    attend<T, D, true>(run, tiles, 0, base);
  }
}

template <typename T, int D>
__device__ __forceinline__ void store_rows(const Running<D>& run, const QueryRows& rows, int first, T* o) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    float sum = run.sum[i];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    const int r = first + (lane >> 2) + 8 * i;
    if (r >= rows.count()) continue;
    uint32_t* out = reinterpret_cast<uint32_t*>(o + static_cast<size_t>(rows.index(r)) * D) + (lane & 3);
#pragma unroll
    for (int n = 0; n < D / 8; n++)
      out[n * 4] = Element<T>::pack(run.acc[n][2 * i] / sum, run.acc[n][2 * i + 1] / sum);
  }
}

// Grid (ceil(tokens * ratio / ROWS), kv_heads), the longest rows first. Positions at or beyond the capacity are not
// read: STATUS_FULL.
template <typename T, int D, bool INT8>
__device__ __forceinline__ void prefill_body(const T* q, const KvTables& kv, DecodeState* state, T* o, int tokens,
                                             int ratio) {
  DYN_SMEM(uint4, shared);
  const PrefillTiles<D> tiles(shared);
  const int pos = state->pos, limit = min(kv.capacity, pos + tokens);
  if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0 && limit < pos + tokens)
    atomicOr(&state->status, STATUS_FULL);
  const QueryRows rows(tokens, ratio, kv.kv_heads, blockIdx.y);
  const int first = static_cast<int>(gridDim.x - 1 - blockIdx.x) * ROWS, warp_first = first + (threadIdx.x >> 5) * 16;
  const int end = min(limit, pos + rows.token(min(first + ROWS, rows.count()) - 1) + 1);
  copy_queries<D>(tiles.q, q, rows, first, ROWS);
  Running<D> run(rows, warp_first, pos, limit);
  if constexpr (INT8)
    attend_all_i8<T>(run, tiles, kv, state->slot, end);
  else
    attend_all<T>(run, tiles, kv, state->slot, end);
  store_rows<T>(run, rows, warp_first, o);
}

#define ATTN_PREFILL(NAME, T, D, INT8)                                                                               \
  extern "C" __global__ void __launch_bounds__(ATTN_THREADS, D == 64 && !INT8 ? 3 : 2)                               \
      NAME(const T* q, const unsigned long long* keys, const unsigned long long* values, int kv_heads, int capacity, \
           DecodeState* state, T* o, int tokens, int ratio) {                                                        \
    prefill_body<T, D, INT8>(q, {keys, values, kv_heads, capacity}, state, o, tokens, ratio);                        \
  }                                                                                                                  \
  CUDA_KERNEL_EXPORT(NAME)

ATTN_PREFILL(attn_prefill_d64_f16, half, 64, false)
ATTN_PREFILL(attn_prefill_d128_f16, half, 128, false)
ATTN_PREFILL(attn_prefill_d64_bf16, __nv_bfloat16, 64, false)
ATTN_PREFILL(attn_prefill_d128_bf16, __nv_bfloat16, 128, false)
ATTN_PREFILL(attn_prefill_i8_d64_f16, half, 64, true)
ATTN_PREFILL(attn_prefill_i8_d128_f16, half, 128, true)
ATTN_PREFILL(attn_prefill_i8_d64_bf16, __nv_bfloat16, 64, true)
ATTN_PREFILL(attn_prefill_i8_d128_bf16, __nv_bfloat16, 128, true)
