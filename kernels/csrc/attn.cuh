// What decode and prefill attention share: query rows, tiles of keys and values in shared memory, and the two products.
#pragma once
#include "element.cuh"
#include "kv.cuh"
#include "ptx.cuh"

constexpr int ATTN_KEYS = 64;      // positions in one tile of keys or values
constexpr int ATTN_THREADS = 128;  // four warps

// Query rows of one KV head, so that keys and values are read once for all query heads that share them:
// row r is token r / ratio, query head first_head + r % ratio.
struct QueryRows {
  int tokens, heads, ratio, first_head;
  uint32_t inverse;  // ceil(2^31 / ratio): r / ratio is r * inverse / 2^31, exactly while r * ratio < 2^31

  __device__ __forceinline__ QueryRows(int tokens, int ratio, int kv_heads, int kv_head)
      : tokens(tokens),
        heads(ratio * kv_heads),
        ratio(ratio),
        first_head(ratio * kv_head),
        inverse((0x80000000u + ratio - 1) / ratio) {}
  __device__ __forceinline__ int count() const { return tokens * ratio; }
  __device__ __forceinline__ int token(int r) const {
    return static_cast<int>((static_cast<uint64_t>(r) * inverse) >> 31);
  }
  // Index in [tokens][heads].
  __device__ __forceinline__ int index(int r) const {
    const int m = token(r);
    return m * heads + first_head + (r - m * ratio);
  }
};

// log2(e) / sqrt(D): scores are kept in base 2.
template <int D>
__device__ __forceinline__ constexpr float score_scale() {
  static_assert(D == 64 || D == 128, "heads of 64 or 128");
  return D == 64 ? 0.18033688f : 0.12751741f;
}

// Tiles hold rows of D 16-bit elements in chunks of 16 bytes. Chunk c of row r lies at c ^ (r & 7): the same chunk of
// eight neighbouring rows, which ldmatrix reads at once, lies in eight different groups of banks.
template <int D>
__device__ __forceinline__ int tile_chunk(int row, int c) {
  return row * (D / 8) + (c ^ (row & 7));
}

// The chunks of a tile that a thread copies: one in every ROWS rows, always in the same place of its row, since ROWS is
// a multiple of 8.
template <int D>
struct TileCopy {
  static constexpr int ROWS = ATTN_THREADS / (D / 8);
  static_assert(ROWS % 8 == 0, "a thread's chunks lie at the same place of their rows");
  const int row = threadIdx.x / (D / 8), c = threadIdx.x % (D / 8);
};

// Starts copying ATTN_KEYS rows; rows from `valid` (at least 1) on become zero and are not read: what lies behind the
// last position may be anything, and 0 * NaN would reach the sum.
template <int D, typename T>
__device__ __forceinline__ void copy_tile(uint4* tile, const T* source, int valid) {
  const TileCopy<D> copy;
  uint4* to = tile + tile_chunk<D>(copy.row, copy.c);
  const T* from = source + threadIdx.x * 8;
#pragma unroll
  for (int row = 0; row < ATTN_KEYS; row += copy.ROWS)
    cp_async16(to + row * (D / 8), from + row * D, copy.row + row < valid);
}

// Starts copying `count` query rows (a multiple of 16) from row `first` on; rows beyond the last become zero.
template <int D, typename T>
__device__ __forceinline__ void copy_queries(uint4* tile, const T* q, const QueryRows& rows, int first, int count) {
  const TileCopy<D> copy;
  uint4* to = tile + tile_chunk<D>(copy.row, copy.c);
#pragma unroll 1
  for (int row = 0; row < count; row += copy.ROWS) {
    const int r = first + copy.row + row;
    const bool valid = r < rows.count();
    cp_async16(to + row * (D / 8), q + (valid ? static_cast<size_t>(rows.index(r)) * D + copy.c * 8 : 0), valid);
  }
}

// Four int8 values, each plus 128 as an unsigned byte, times scale: two pairs of T. A byte below the exponent of 2^23
// (or of 2^10 in f16) is that power plus the byte, so that a subtraction makes the integer, exactly; times the scale it
// is rounded once.
template <typename T>
__device__ __forceinline__ uint2 widen(uint32_t bytes, float scale) {
  float v[4];
#pragma unroll
  for (int i = 0; i < 4; i++)
    v[i] = (__uint_as_float(__byte_perm(bytes, 0x4B000000u, 0x7650 + i)) - (8388608.f + 128.f)) * scale;
  return make_uint2(Element<T>::pack(v[0], v[1]), Element<T>::pack(v[2], v[3]));
}

template <>
__device__ __forceinline__ uint2 widen<half>(uint32_t bytes, float scale) {
  const half2 offset = __float2half2_rn(1024.f + 128.f), factor = __float2half2_rn(scale);
  const half2 low = __hsub2(bits_as<half2>(__byte_perm(bytes, 0x64646464u, 0x4140)), offset);
  const half2 high = __hsub2(bits_as<half2>(__byte_perm(bytes, 0x64646464u, 0x4342)), offset);
  return make_uint2(bits_as<uint32_t>(__hmul2(low, factor)), bits_as<uint32_t>(__hmul2(high, factor)));
}

// 16 int8 values times scale, rounded to T.
template <typename T>
__device__ __forceinline__ void widen_chunk(uint4 (&out)[2], const uint4& raw, float scale) {
  const uint2 a = widen<T>(raw.x ^ 0x80808080u, scale), b = widen<T>(raw.y ^ 0x80808080u, scale);
  const uint2 c = widen<T>(raw.z ^ 0x80808080u, scale), d = widen<T>(raw.w ^ 0x80808080u, scale);
  out[0] = make_uint4(a.x, a.y, b.x, b.y);
  out[1] = make_uint4(c.x, c.y, d.x, d.y);
}

// A tile of int8 rows on its way through registers: fetched early, stored (widened) when the shared tile is free.
template <int D>
struct Int8Tile {
  static constexpr int ROWS = ATTN_THREADS / (D / 16);  // a thread has 16 values in every ROWS rows
  static constexpr int CHUNKS = ATTN_KEYS / ROWS;
  uint4 raw[CHUNKS];
  float scale[CHUNKS];

  // Row r is to be times scales[r]; without scales it stays integers. Rows from `valid` on are zero and not read.
  __device__ __forceinline__ void fetch(const int8_t* rows, const half* scales, int valid) {
    const int row = threadIdx.x / (D / 16);
    const uint4* from = reinterpret_cast<const uint4*>(rows) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
      const bool inside = row + i * ROWS < valid;
      raw[i] = inside ? __ldg(from + i * ATTN_THREADS) : make_uint4(0, 0, 0, 0);
      scale[i] = scales && inside ? __half2float(scales[row + i * ROWS]) : 1.f;
    }
  }

  template <typename T>
  __device__ __forceinline__ void store(uint4* tile) const {
    const int row = threadIdx.x / (D / 16), c = threadIdx.x % (D / 16) * 2;
    uint4 *to = tile + tile_chunk<D>(row, c), *beside = tile + tile_chunk<D>(row, c + 1);
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
      uint4 wide[2];
      widen_chunk<T>(wide, raw[i], scale[i]);
      to[i * ROWS * (D / 8)] = wide[0];
      beside[i * ROWS * (D / 8)] = wide[1];
    }
  }
};

// Keys, their scales (which go to the scores) and values of ATTN_KEYS positions of an int8 cache.
template <int D>
struct Int8Positions {
  Int8Tile<D> k, v;
  float k_scale;  // of the thread's own position

  __device__ __forceinline__ void fetch(const KvTables& kv, int slot, int head, int base, int valid) {
    const size_t at = kv_offset<D>(kv, head, base), scale_at = kv_offset<1>(kv, head, base);
    const half* k_scales = kv_scales<D>(kv, kv.keys, slot) + scale_at;
    k.fetch(kv_base<const int8_t>(kv.keys, slot) + at, nullptr, valid);
    v.fetch(kv_base<const int8_t>(kv.values, slot) + at, kv_scales<D>(kv, kv.values, slot) + scale_at, valid);
    k_scale = threadIdx.x < min(valid, ATTN_KEYS) ? __half2float(k_scales[threadIdx.x]) : 0.f;
  }

  template <typename T>
  __device__ __forceinline__ void store(uint4* k_tile, uint4* v_tile, float* k_scales) const {
    k.template store<T>(k_tile);
    v.template store<T>(v_tile);
    if (threadIdx.x < ATTN_KEYS) k_scales[threadIdx.x] = k_scale;
  }
};

// Scores of 16 query rows from `row` on against 8 * N keys from `key` on: s += Q K^T, in the mma's accumulator layout.
template <typename T, int D, int N>
__device__ __forceinline__ void add_scores(float (&s)[N][4], const uint4* q_tile, int row, const uint4* k_tile,
                                           int key) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int d = 0; d < D / 8; d += 2) {
    uint32_t a[4], b[4];
    ldmatrix_x4(a, q_tile + tile_chunk<D>(row + (lane & 15), d + (lane >> 4)));
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      ldmatrix_x4(b, k_tile + tile_chunk<D>(key + 8 * n + (lane & 7) + (lane >> 4) * 8, d + ((lane >> 3) & 1)));
      Element<T>::mma(s[n], a, {b[0], b[1]});
      Element<T>::mma(s[n + 1], a, {b[2], b[3]});
    }
  }
}

// acc += P V for 16 keys from `key` on and 8 * N dimensions from chunk `c` on; p is an mma A operand.
template <typename T, int D, int N>
__device__ __forceinline__ void add_values(float (&acc)[N][4], const uint32_t (&p)[4], const uint4* v_tile, int key,
                                           int c) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int n = 0; n < N; n += 2) {
    uint32_t b[4];
    ldmatrix_x4_trans(b, v_tile + tile_chunk<D>(key + (lane & 15), c + n + (lane >> 4)));
    Element<T>::mma(acc[n], p, {b[0], b[1]});
    Element<T>::mma(acc[n + 1], p, {b[2], b[3]});
  }
}
