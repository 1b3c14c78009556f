// Decode attention for 1..8 query tokens: the context in splits of ATTN_KEYS positions, one block per split and KV
// head, then a combine. Split i covers positions [64 i, 64 (i + 1)) whatever the context, the number of splits launched
// and the number of tokens, and every row is computed alike wherever it lies in its tile: n tokens together give what
// n single steps give, bit for bit.
//
// partials f32 [tokens][heads][splits][D + 4]: sum of 2^(s - max) v, then max, sum of 2^(s - max), two unused.
// A split that a token does not see has max = -inf and sum = 0, and its values mean nothing.
#include "attn.cuh"
#include "element.cuh"
#include "kv.cuh"
#include "ptx.cuh"
#include "state.cuh"

constexpr int ROWS = 16;  // query rows of one pass: the m16 of the mma
constexpr int WARPS = ATTN_THREADS / 32;
constexpr int WARP_KEYS = ATTN_KEYS / WARPS;

// Shared memory of a block.
template <int D>
struct SplitTiles {
  uint4 *q, *k, *v, *p;  // p: [ROWS][ATTN_KEYS] weights, laid out as a tile of 64 columns
  float *max, *sum;      // [WARPS][ROWS]
  float* k_scales;       // [ATTN_KEYS], for int8 alone

  __device__ __forceinline__ SplitTiles(uint4* shared, int query_rows) {
    q = shared;
    k = q + query_rows * (D / 8);
    v = k + ATTN_KEYS * (D / 8);
    p = v + ATTN_KEYS * (D / 8);
    max = reinterpret_cast<float*>(p + ROWS * (ATTN_KEYS / 8));
    sum = max + WARPS * ROWS;
    k_scales = sum + WARPS * ROWS;
  }
};

// The positions of a block and where its results go.
template <int D>
struct Split {
  QueryRows rows;
  int pos, limit, base;  // of token 0; positions that there are; the first of this split
  float* partials;

  // Positions of this split that query row r sees; 0 or less when none.
  __device__ __forceinline__ int visible(int r) const { return min(limit, pos + rows.token(r) + 1) - base; }

  __device__ __forceinline__ float* partial(int r) const {
    return partials + static_cast<size_t>(rows.index(r) * static_cast<int>(gridDim.x) + blockIdx.x) * (D + 4);
  }
};

// Maximum and sum of no position at all.
__device__ __forceinline__ float2 unseen() { return make_float2(-infinity(), 0.f); }

// Keys and values of the split on their way into shared memory: two groups of copies, the queries in the first.
// int8 rows go through registers and are there after the next barrier.
template <typename T, int D, bool INT8>
__device__ __forceinline__ void load_split(const SplitTiles<D>& tiles, const KvTables& kv, int slot, int base,
                                           int valid) {
  const int head = blockIdx.y;
  if constexpr (INT8) {
    cp_async_commit();
    Int8Positions<D> positions;
    positions.fetch(kv, slot, head, base, valid);
    positions.template store<T>(tiles.k, tiles.v, tiles.k_scales);
  } else {
    const size_t at = kv_offset<D>(kv, head, base);
    copy_tile<D>(tiles.k, kv_base<const T>(kv.keys, slot) + at, valid);
    cp_async_commit();
    copy_tile<D>(tiles.v, kv_base<const T>(kv.values, slot) + at, valid);
  }
  cp_async_commit();
}

// This warp's scores of 16 rows against 16 keys, in base 2; -inf where a row does not see the key. Each row's largest
// goes to tiles.max.
template <typename T, int D, bool INT8>
__device__ __forceinline__ void split_scores(float (&s)[2][4], const SplitTiles<D>& tiles, const Split<D>& split,
                                             int first) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, key = warp * WARP_KEYS + (lane & 3) * 2;
  add_scores<T, D, 2>(s, tiles.q, first, tiles.k, warp * WARP_KEYS);
#pragma unroll
  for (int i = 0; i < 2; i++) {  // rows lane / 4 and lane / 4 + 8
    if (first + 8 * i >= split.rows.count()) break;
    const int row = (lane >> 2) + 8 * i, seen = split.visible(first + row);
    float largest = -infinity();
#pragma unroll
    for (int n = 0; n < 4; n++) {
      const int t = key + 8 * (n >> 1) + (n & 1);
      float& value = s[n >> 1][2 * i + (n & 1)];
      value *= score_scale<D>();
      if constexpr (INT8) value *= tiles.k_scales[t];
      if (t >= seen) value = -infinity();
      largest = fmaxf(largest, value);
    }
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
    if ((lane & 3) == 0) tiles.max[warp * ROWS + row] = largest;
  }
}

// Weights 2^(s - max), rounded to T as the product with V takes them, into tiles.p; their sums into tiles.sum. The sum
// is that of the rounded weights, so that rounding moves the weights against each other and never their total. Eight
// rows that there are not have no weights: what the product makes of them is not stored.
template <typename T, int D>
__device__ __forceinline__ void split_weights(const float (&s)[2][4], const SplitTiles<D>& tiles,
                                              const Split<D>& split, int first) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    if (first + 8 * i >= split.rows.count()) break;
    const int row = (lane >> 2) + 8 * i;
    float largest = tiles.max[row], sum = 0.f;
#pragma unroll
    for (int w = 1; w < WARPS; w++) largest = fmaxf(largest, tiles.max[w * ROWS + row]);
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const uint32_t pair =
          Element<T>::pack(exp2_fast(s[n][2 * i] - largest), exp2_fast(s[n][2 * i + 1] - largest));
      reinterpret_cast<uint32_t*>(tiles.p + tile_chunk<ATTN_KEYS>(row, warp * 2 + n))[lane & 3] = pair;
      const float2 rounded = Element<T>::unpack(pair);
      sum += rounded.x + rounded.y;
    }
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    if ((lane & 3) == 0) tiles.sum[warp * ROWS + row] = sum;
  }
}

// This warp's quarter of the dimensions: weights times values, and with the first warp the maxima and sums.
template <typename T, int D>
__device__ __forceinline__ void split_values(const SplitTiles<D>& tiles, const Split<D>& split, int first) {
  constexpr int TILES = D / 8 / WARPS;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  float acc[TILES][4] = {};
#pragma unroll
  for (int key = 0; key < ATTN_KEYS; key += 16) {
    uint32_t p[4];
    ldmatrix_x4(p, tiles.p + tile_chunk<ATTN_KEYS>(lane & 15, key / 8 + (lane >> 4)));
    add_values<T, D, TILES>(acc, p, tiles.v, key, warp * TILES);
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int row = (lane >> 2) + 8 * i, r = first + row;
    if (r >= split.rows.count()) continue;
    float* out = split.partial(r);
    for (int n = 0; n < TILES; n++)
      *reinterpret_cast<float2*>(out + (warp * TILES + n) * 8 + (lane & 3) * 2) =
          make_float2(acc[n][2 * i], acc[n][2 * i + 1]);
    if (warp == 0 && (lane & 3) == 0) {
      float largest = tiles.max[row], sum = tiles.sum[row];
      for (int w = 1; w < WARPS; w++) {
        largest = fmaxf(largest, tiles.max[w * ROWS + row]);
        sum += tiles.sum[w * ROWS + row];
      }
      *reinterpret_cast<float2*>(out + D) = split.visible(r) > 0 ? make_float2(largest, sum) : unseen();
    }
  }
}

// Grid (splits, kv_heads). Positions at or beyond the capacity or the splits launched are not read: STATUS_FULL.
template <typename T, int D, bool INT8>
__device__ __forceinline__ void split_body(const T* q, const KvTables& kv, DecodeState* state, float* partials,
                                           int tokens, int ratio) {
  DYN_SMEM(uint4, shared);
  const int pos = state->pos, slot = state->slot;
  const QueryRows rows(tokens, ratio, kv.kv_heads, blockIdx.y);
  const int limit = min(min(kv.capacity, static_cast<int>(gridDim.x) * ATTN_KEYS), pos + tokens);
  const Split<D> split = {rows, pos, limit, static_cast<int>(blockIdx.x) * ATTN_KEYS, partials};
  if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0 && limit < pos + tokens)
    atomicOr(&state->status, STATUS_FULL);
  if (split.base >= limit) {
#pragma unroll 1
    for (int r = threadIdx.x; r < rows.count(); r += ATTN_THREADS)
      *reinterpret_cast<float2*>(split.partial(r) + D) = unseen();
    return;
  }
  const int query_rows = (rows.count() + ROWS - 1) / ROWS * ROWS;
  const SplitTiles<D> tiles(shared, query_rows);
  copy_queries<D>(tiles.q, q, rows, 0, query_rows);
  load_split<T, D, INT8>(tiles, kv, slot, split.base, limit - split.base);
  cp_async_wait<1>();
  __syncthreads();
#pragma unroll 1
  for (int first = 0; first < rows.count(); first += ROWS) {
    if (first > 0) __syncthreads();  // the last pass has read its weights and sums
    float s[2][4] = {};
    split_scores<T, D, INT8>(s, tiles, split, first);
    __syncthreads();
    split_weights<T, D>(s, tiles, split, first);
    cp_async_wait<0>();
    __syncthreads();
    split_values<T, D>(tiles, split, first);
  }
}

// o = sum over splits of 2^(max_i - max) values_i / sum over splits of 2^(max_i - max) sum_i. Grid (heads, tokens).
// A row's dimensions take D / 4 threads; as many groups of them as fit share the splits.
template <typename T, int D>
__device__ __forceinline__ void combine_body(const float* partials, T* o, int splits) {
  constexpr int LANES = D / 4, GROUPS = ATTN_THREADS / LANES;
  __shared__ float4 values[GROUPS][LANES];
  __shared__ float sums[GROUPS];
  const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
  const size_t row = static_cast<size_t>(blockIdx.y) * gridDim.x + blockIdx.x;
  const float* in = partials + row * splits * (D + 4);
  float largest = -infinity();
  for (int i = threadIdx.x & 31; i < splits; i += 32) largest = fmaxf(largest, in[i * (D + 4) + D]);
#pragma unroll
  for (int x = 16; x > 0; x >>= 1) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, x));
  float4 acc = make_float4(0.f, 0.f, 0.f, 0.f);
  float sum = 0.f;
  for (int i = group; i < splits; i += GROUPS) {
    const float2 stats = *reinterpret_cast<const float2*>(in + i * (D + 4) + D);
    if (stats.y == 0.f) continue;  // a split that this token does not see: its values may be anything
    const float4 v = *reinterpret_cast<const float4*>(in + i * (D + 4) + lane * 4);
    const float c = exp2_fast(stats.x - largest);
    sum += c * stats.y;
    acc = make_float4(acc.x + c * v.x, acc.y + c * v.y, acc.z + c * v.z, acc.w + c * v.w);
  }
  values[group][lane] = acc;
  if (lane == 0) sums[group] = sum;
  __syncthreads();
  if (group > 0) return;
  for (int g = 1; g < GROUPS; g++) {
    const float4 v = values[g][lane];
    sum += sums[g];
    acc = make_float4(acc.x + v.x, acc.y + v.y, acc.z + v.z, acc.w + v.w);
  }
  const uint2 out = make_uint2(Element<T>::pack(acc.x / sum, acc.y / sum), Element<T>::pack(acc.z / sum, acc.w / sum));
  reinterpret_cast<uint2*>(o + row * D)[lane] = out;
}

#define ATTN_SPLIT(NAME, T, D, INT8)                                                                                 \
  extern "C" __global__ void __launch_bounds__(ATTN_THREADS)                                                         \
      NAME(const T* q, const unsigned long long* keys, const unsigned long long* values, int kv_heads, int capacity, \
           DecodeState* state, float* partials, int tokens, int ratio) {                                             \
    split_body<T, D, INT8>(q, {keys, values, kv_heads, capacity}, state, partials, tokens, ratio);                   \
  }                                                                                                                  \
  CUDA_KERNEL_EXPORT(NAME)
#define ATTN_COMBINE(NAME, T, D)                                                                                     \
  extern "C" __global__ void __launch_bounds__(ATTN_THREADS) NAME(const float* partials, T* o, int splits) {         \
    combine_body<T, D>(partials, o, splits);                                                                         \
  }                                                                                                                  \
  CUDA_KERNEL_EXPORT(NAME)

ATTN_SPLIT(attn_decode_split_d64_f16, half, 64, false)
ATTN_SPLIT(attn_decode_split_d128_f16, half, 128, false)
ATTN_SPLIT(attn_decode_split_d64_bf16, __nv_bfloat16, 64, false)
ATTN_SPLIT(attn_decode_split_d128_bf16, __nv_bfloat16, 128, false)
ATTN_SPLIT(attn_decode_split_i8_d64_f16, half, 64, true)
ATTN_SPLIT(attn_decode_split_i8_d128_f16, half, 128, true)
ATTN_SPLIT(attn_decode_split_i8_d64_bf16, __nv_bfloat16, 64, true)
ATTN_SPLIT(attn_decode_split_i8_d128_bf16, __nv_bfloat16, 128, true)
ATTN_COMBINE(attn_decode_combine_d64_f16, half, 64)
ATTN_COMBINE(attn_decode_combine_d128_f16, half, 128)
ATTN_COMBINE(attn_decode_combine_d64_bf16, __nv_bfloat16, 64)
ATTN_COMBINE(attn_decode_combine_d128_bf16, __nv_bfloat16, 128)
