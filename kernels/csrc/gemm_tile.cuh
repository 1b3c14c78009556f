// Products of many tokens with an int4 matrix in layout T16: y[M][N] = x[M][K] * W[N][K]^T, one block per tile of
// TOKENS tokens and 64 rows of W. The epilogues are in gemm.cu, gemm_swiglu.cu and gemm_qkv.cu.
//
//   grid   ceil(N / 64), ceil(M / TOKENS)     block   128 threads
//   dynamic shared memory                     STAGES * (TOKENS * 8 + 128) * 16 bytes
//
// A warp has 32 tokens by 64 rows of W (TOKENS = 128), or by 32 of them (TOKENS = 64). As in the GEMV, weights are the
// m16 operand of the mma and tokens n8: both arrive in the registers that the mma takes, and in the end a lane has rows
// g and g + 8 of a T16 tile, which is what SwiGLU and rotary pairs need.
//
// In shared memory a stage holds 64 inputs: TOKENS x 8 chunks of x (16 bytes, 8 inputs), then four T16 tiles as they
// are. A lane reads chunks q and q + 4 of its token (t16.cuh), so chunk c of token t lies at place c ^ (t odd ? 4 : 0):
// the eight lanes of one phase of a 16-byte load, chunks q = 0..3 of an even and the next odd token, then touch every
// bank once, and so do the eight lanes that copy one token's chunks in.
//
// Weights enter the mma as q - z, exact in f16 and in bf16. The f32 sums of every 32 inputs are scaled and added: no
// weight is rounded, and one order of additions serves groups of 32, 64 and 128, both tile heights and every M.
#pragma once
#include "t16.cuh"

constexpr int GEMM_THREADS = 128;
constexpr int GEMM_TILES = 4;   // T16 tiles per block
constexpr int GEMM_CHUNKS = 8;  // of 16 bytes, in 64 inputs
constexpr int GEMM_EIGHTS = 4;  // eights of tokens per warp

template <int TOKENS>
constexpr int GEMM_STAGE = TOKENS * GEMM_CHUNKS + GEMM_TILES * T16_TILE;  // uint4
template <int TOKENS>
constexpr int GEMM_WARP_TILES = TOKENS / 32;  // T16 tiles per warp: four warps are TOKENS / 32 by 128 / TOKENS

// Sums of a thread, per T16 tile and eight of tokens: rows g, g + 8 (2r) of tokens 2q, 2q + 1.
template <int TOKENS>
using GemmSums = float[GEMM_WARP_TILES<TOKENS>][GEMM_EIGHTS][4];

struct GemmShape {
  int M, N, K;

  __device__ __forceinline__ int tiles() const { return (N + T16_ROWS - 1) / T16_ROWS; }
  __device__ __forceinline__ int steps() const { return (K + T16_INPUTS - 1) / T16_INPUTS; }
};

// What a thread is in its block: g and q as in t16.cuh; its warp's first token and T16 tile, counted in the block.
template <int TOKENS>
struct GemmLane {
  int g, q, token, tile;

  __device__ __forceinline__ GemmLane() {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    g = lane / 4;
    q = lane % 4;
    token = warp % (TOKENS / 32) * 32;
    tile = warp / (TOKENS / 32) * GEMM_WARP_TILES<TOKENS>;
  }
};

// Begins to copy inputs 64 * step .. + 63 into a stage; zeros beyond M, N and K.
template <typename T, int TOKENS>
__device__ __forceinline__ void gemm_copy(uint4* stage, const T* x, const uint4* qw, const GemmShape& shape, int step) {
  constexpr int AT_ONCE = GEMM_THREADS / GEMM_CHUNKS;  // tokens; an even number, so that the place is one for all
  const int row = threadIdx.x / GEMM_CHUNKS, chunk = threadIdx.x % GEMM_CHUNKS;
  const int token = blockIdx.y * TOKENS + row, input = step * T16_INPUTS + chunk * 8;
  const T* from = x + static_cast<size_t>(token) * shape.K + input;
  uint4* to = stage + row * GEMM_CHUNKS + (chunk ^ (row % 2 * 4));
#pragma unroll
  for (int i = 0; i < TOKENS / AT_ONCE; i++) {
    cp_async16(to + i * AT_ONCE * GEMM_CHUNKS, from, token + i * AT_ONCE < shape.M && input < shape.K);
    from += AT_ONCE * shape.K;
  }
  const int tile = blockIdx.x * GEMM_TILES + threadIdx.x / T16_TILE;
  const size_t at = (static_cast<size_t>(tile) * shape.steps() + step) * T16_TILE + threadIdx.x % T16_TILE;
  cp_async16(stage + TOKENS * GEMM_CHUNKS + threadIdx.x, qw + at, tile < shape.tiles());
}

// Scales and zero points of rows g and g + 8 of the warp's tiles, in one group. Tiles and groups that do not exist get
// those of the last one: their sums are of zeros, or are never stored.
template <int TOKENS>
struct GemmScales {
  half2 sc[GEMM_WARP_TILES<TOKENS>];
  uint32_t zp[GEMM_WARP_TILES<TOKENS>];

  __device__ __forceinline__ void load(const T16Weights& w, const GemmShape& shape, const GemmLane<TOKENS>& lane,
                                       int group, int groups) {
    const int first = blockIdx.x * GEMM_TILES + lane.tile;
#pragma unroll
    for (int j = 0; j < GEMM_WARP_TILES<TOKENS>; j++) {
      const int tile = min(first + j, shape.tiles() - 1);
      const int at = (tile * groups + min(group, groups - 1)) * 8 + lane.g;
      sc[j] = w.sc[at];
      zp[j] = w.zp[at];
    }
  }
};

// sums += scale * (q - z) * x over 32 inputs: two words of a T16 tile, and the runs of 8 inputs of the tokens.
template <typename T>
__device__ __forceinline__ void gemm_multiply(float (&sums)[GEMM_EIGHTS][4], uint32_t first, uint32_t second,
                                              const uint4 (&x)[GEMM_EIGHTS], half2 sc, uint32_t zp) {
  const T16Zeros<T> zeros = t16_zeros<T>(zp);
  uint32_t weights[2][4];
  t16_dequantize(weights[0], first, zeros);
  t16_dequantize(weights[1], second, zeros);
  float part[GEMM_EIGHTS][4];
#pragma unroll
  for (int i = 0; i < GEMM_EIGHTS; i++) {
    part[i][0] = part[i][1] = part[i][2] = part[i][3] = 0.f;
#pragma unroll
    for (int s = 0; s < 2; s++) {
      uint32_t inputs[2];
      t16_inputs(inputs, x[i], s);
      Element<T>::mma(part[i], weights[s], inputs);
    }
  }
  const float2 scale = __half22float2(sc);
#pragma unroll
  for (int i = 0; i < GEMM_EIGHTS; i++) {
    sums[i][0] = fmaf(part[i][0], scale.x, sums[i][0]);
    sums[i][1] = fmaf(part[i][1], scale.x, sums[i][1]);
    sums[i][2] = fmaf(part[i][2], scale.y, sums[i][2]);
    sums[i][3] = fmaf(part[i][3], scale.y, sums[i][3]);
  }
}

// Adds inputs 32 * run .. + 31 of a stage.
template <typename T, int TOKENS>
__device__ __forceinline__ void gemm_run(GemmSums<TOKENS>& sums, const uint4* stage, const GemmScales<TOKENS>& scales,
                                         const GemmLane<TOKENS>& lane, int run) {
  const uint4* tokens = stage + (lane.token + lane.g) * GEMM_CHUNKS + ((lane.q + 4 * run) ^ (lane.g % 2 * 4));
  const uint4* tiles = stage + TOKENS * GEMM_CHUNKS + lane.tile * T16_TILE + threadIdx.x % 32;
  uint4 x[GEMM_EIGHTS];
#pragma unroll
  for (int i = 0; i < GEMM_EIGHTS; i++) x[i] = tokens[i * 8 * GEMM_CHUNKS];
#pragma unroll
  for (int j = 0; j < GEMM_WARP_TILES<TOKENS>; j++) {
    const uint4 words = tiles[j * T16_TILE];
    gemm_multiply<T>(sums[j], run ? words.z : words.x, run ? words.w : words.y, x, scales.sc[j], scales.zp[j]);
  }
}

// The whole product of this block's tile. STAGES is a power of two.
template <typename T, int GROUP, int TOKENS, int STAGES>
__device__ __forceinline__ void gemm_tile(GemmSums<TOKENS>& sums, const T* x, const T16Weights& w,
                                          const GemmShape& shape, const GemmLane<TOKENS>& lane) {
  DYN_SMEM(uint4, stages);
#pragma unroll
  for (int j = 0; j < GEMM_WARP_TILES<TOKENS>; j++)
#pragma unroll
    for (int i = 0; i < GEMM_EIGHTS; i++) sums[j][i][0] = sums[j][i][1] = sums[j][i][2] = sums[j][i][3] = 0.f;
  const int steps = shape.steps();
#pragma unroll
  for (int s = 0; s < STAGES - 1; s++) {
    if (s < steps) gemm_copy<T, TOKENS>(stages + s * GEMM_STAGE<TOKENS>, x, w.qw, shape, s);
    cp_async_commit();
  }
  for (int step = 0; step < steps; step++) {
    GemmScales<TOKENS> scales;
    // Under way while this thread waits.
    if (GROUP > 32) scales.load(w, shape, lane, step * T16_INPUTS / GROUP, shape.K / GROUP);
    cp_async_wait<STAGES - 2>();
    __syncthreads();  // this stage has landed for all threads, and all are done with the one that is filled next
    const int ahead = step + STAGES - 1;
    if (ahead < steps) gemm_copy<T, TOKENS>(stages + ahead % STAGES * GEMM_STAGE<TOKENS>, x, w.qw, shape, ahead);
    cp_async_commit();
#pragma unroll 1  // both at once take too many registers
    for (int run = 0; run < 2; run++) {
      if (GROUP == 32) scales.load(w, shape, lane, step * 2 + run, shape.K / GROUP);
      gemm_run<T, TOKENS>(sums, stages + step % STAGES * GEMM_STAGE<TOKENS>, scales, lane, run);
    }
  }
}

// For every token of this thread below M: at = begin(token), then store(at, row, first, second) for its pairs of weight
// rows: `first` is the sum of `row`, the g-th of its T16 tile, `second` of row + 8. Rows may lie beyond N.
template <int TOKENS, typename Begin, typename Store>
__device__ __forceinline__ void gemm_for_each(const GemmSums<TOKENS>& sums, const GemmShape& shape,
                                              const GemmLane<TOKENS>& lane, const Begin& begin, const Store& store) {
#pragma unroll
  for (int i = 0; i < GEMM_EIGHTS; i++)
#pragma unroll
    for (int t = 0; t < 2; t++) {
      const int token = blockIdx.y * TOKENS + lane.token + 8 * i + 2 * lane.q + t;
      if (token >= shape.M) continue;
      const auto at = begin(token);
#pragma unroll
      for (int j = 0; j < GEMM_WARP_TILES<TOKENS>; j++) {
        const int row = (blockIdx.x * GEMM_TILES + lane.tile + j) * T16_ROWS + lane.g;
        store(at, row, sums[j][i][t], sums[j][i][2 + t]);
      }
    }
}

// Stages and, for the register allocation, blocks per SM, by tile height.
constexpr int GEMM_STAGES_64 = 4;
constexpr int GEMM_BLOCKS_64 = 4;
constexpr int GEMM_STAGES_128 = 2;
constexpr int GEMM_BLOCKS_128 = 3;

// ENTRY(tokens per tile, group size, type, its name) for all of them.
#define GEMM_ENTRIES(ENTRY)             \
  ENTRY(64, 32, half, f16)              \
  ENTRY(64, 64, half, f16)              \
  ENTRY(64, 128, half, f16)             \
  ENTRY(64, 32, __nv_bfloat16, bf16)    \
  ENTRY(64, 64, __nv_bfloat16, bf16)    \
  ENTRY(64, 128, __nv_bfloat16, bf16)   \
  ENTRY(128, 32, half, f16)             \
  ENTRY(128, 64, half, f16)             \
  ENTRY(128, 128, half, f16)            \
  ENTRY(128, 32, __nv_bfloat16, bf16)   \
  ENTRY(128, 64, __nv_bfloat16, bf16)   \
  ENTRY(128, 128, __nv_bfloat16, bf16)
