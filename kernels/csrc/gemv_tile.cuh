// The part that all products of a few tokens with an int4 matrix share: a block sums one tile of 16 rows.
//
//   sums[m][r] = sum over k of x[m][k] * W[16 * tile + r][k],   M = 1..8 tokens
//
// Tensor cores do it at any M: the weights are the m16 operand and the tokens n8, so that eight tokens cost what one
// does. q - z goes into the mma exactly, sums are f32, and a group's scale multiplies the f32 sum of that group: a
// weight costs no multiplication for it.
//
// Each warp has a run of steps of 128 inputs (two tiles) along K and takes UNROLL of them at a time: all their weights
// are asked for before any is used (1 KiB each), and the inputs of a step AHEAD steps before they are. What K leaves
// beyond whole steps is the last warp's. The sums of the warps meet in shared memory and are added in the order of the
// warps. Nothing of this depends on M, so that a token's sums are the same bits in any company; columns without a token
// repeat the last one. Inputs beyond K are not read.
#pragma once
#include "t16.cuh"

constexpr int GEMV_TOKENS = 8;
constexpr int GEMV_WARPS = 8;
constexpr int GEMV_SHARE = 4;   // steps that a warp takes at least: a block has a warp per 512 inputs, up to eight
constexpr int GEMV_PITCH = 20;  // floats per token: rows of 8 tokens fall into different banks

using GemvSums = float[GEMV_WARPS][GEMV_TOKENS][GEMV_PITCH];

// sums += x * (q - z) over two words, which are the 32 inputs that `run` has 8 of.
template <typename T>
__device__ __forceinline__ void gemv_add(float (&sums)[4], uint32_t word0, uint32_t word1, const uint4& run,
                                         const T16Zeros<T>& zeros) {
  uint32_t f[4], b[2];
  t16_dequantize(f, word0, zeros);
  t16_inputs(b, run, 0);
  Element<T>::mma(sums, f, b);
  t16_dequantize(f, word1, zeros);
  t16_inputs(b, run, 1);
  Element<T>::mma(sums, f, b);
}

// sums += part * the scales of rows g and g+8.
__device__ __forceinline__ void gemv_scale(float (&sums)[4], const float (&part)[4], half2 scales) {
  const float2 s = __half22float2(scales);
  sums[0] = fmaf(part[0], s.x, sums[0]);
  sums[1] = fmaf(part[1], s.x, sums[1]);
  sums[2] = fmaf(part[2], s.y, sums[2]);
  sums[3] = fmaf(part[3], s.y, sums[3]);
}

constexpr int RUN_INPUTS = 32;  // two words of every lane

template <typename T, int GROUP>
struct GemvStep {
  static constexpr int TILES = 2;
  static constexpr int INPUTS = TILES * T16_INPUTS;
  static constexpr int GROUPS = INPUTS / GROUP;
  static constexpr int RUNS = INPUTS / RUN_INPUTS;
  static constexpr int UNROLL = GROUP == 32 ? 2 : 4;  // groups of 32 have four times the scales to hold
  static constexpr int AHEAD = 2;

  uint4 words[TILES];
  half2 scales[GROUPS];
  uint32_t zeros[GROUPS];

  // qw, sc, zp: this lane's place in the step.
  __device__ __forceinline__ void load(const uint4* qw, const half2* sc, const uint8_t* zp) {
#pragma unroll
    for (int i = 0; i < TILES; i++) words[i] = ld_stream(qw + i * T16_TILE);
#pragma unroll
    for (int i = 0; i < GROUPS; i++) {
      scales[i] = __ldg(sc + i * 8);
      zeros[i] = __ldg(zp + i * 8);
    }
  }

  // x: this lane's first input of the step.
  static __device__ __forceinline__ void load_inputs(uint4 (&runs)[RUNS], const T* x) {
#pragma unroll
    for (int i = 0; i < RUNS; i++) runs[i] = __ldg(reinterpret_cast<const uint4*>(x + i * RUN_INPUTS));
  }

  __device__ __forceinline__ void add(float (&sums)[4], const uint4 (&runs)[RUNS]) const {
#pragma unroll
    for (int i = 0; i < GROUPS; i++) {
      const T16Zeros<T> z = t16_zeros<T>(zeros[i]);
      float part[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
      for (int j = i * RUNS / GROUPS; j < (i + 1) * RUNS / GROUPS; j++) {
        const uint4& w = words[j / 2];
        gemv_add<T>(part, j % 2 ? w.z : w.x, j % 2 ? w.w : w.y, runs[j], z);
      }
      gemv_scale(sums, part, scales[i]);
    }
  }
};

// This lane's places in a row of tiles; x is that of token g in the mma's columns.
template <typename T>
struct GemvLane {
  const uint4* qw;
  const half2* sc;
  const uint8_t* zp;
  const T* x;
};

// sums += steps first .. end - 1.
template <typename T, int GROUP>
__device__ __forceinline__ void gemv_steps(float (&sums)[4], const GemvLane<T>& lane, int first, int end) {
  using Step = GemvStep<T, GROUP>;
  const uint4* qw = lane.qw + static_cast<size_t>(first) * (Step::TILES * T16_TILE);
  const half2* sc = lane.sc + first * (Step::GROUPS * 8);
  const uint8_t* zp = lane.zp + first * (Step::GROUPS * 8);
  const T* x = lane.x + first * Step::INPUTS;
  for (int left = end - first; left > 0; left -= Step::UNROLL) {
    Step batch[Step::UNROLL];
    uint4 runs[Step::AHEAD][Step::RUNS];
#pragma unroll
    for (int u = 0; u < Step::UNROLL; u++)
      if (u < left)
        batch[u].load(qw + u * Step::TILES * T16_TILE, sc + u * Step::GROUPS * 8, zp + u * Step::GROUPS * 8);
#pragma unroll
    for (int u = 0; u < Step::AHEAD; u++)
      if (u < left) Step::load_inputs(runs[u], x + u * Step::INPUTS);
#pragma unroll
    for (int u = 0; u < Step::UNROLL; u++) {
      if (u < left) batch[u].add(sums, runs[u % Step::AHEAD]);
      if (u + Step::AHEAD < Step::UNROLL && u + Step::AHEAD < left)
        Step::load_inputs(runs[u % Step::AHEAD], x + (u + Step::AHEAD) * Step::INPUTS);
    }
    qw += Step::UNROLL * Step::TILES * T16_TILE;
    sc += Step::UNROLL * Step::GROUPS * 8;
    zp += Step::UNROLL * Step::GROUPS * 8;
    x += Step::UNROLL * Step::INPUTS;
  }
}

// sums += groups first .. end - 1, one at a time.
template <typename T, int GROUP>
__device__ __forceinline__ void gemv_groups(float (&sums)[4], const GemvLane<T>& lane, int first, int end) {
#pragma unroll 1
  for (int group = first; group < end; group++) {
    const T16Zeros<T> z = t16_zeros<T>(__ldg(lane.zp + group * 8));
    float part[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll 1
    for (int run = group * (GROUP / RUN_INPUTS); run < (group + 1) * (GROUP / RUN_INPUTS); run++) {
      const uint4 w = ld_stream(lane.qw + run / 2 * T16_TILE);
      const uint4 inputs = __ldg(reinterpret_cast<const uint4*>(lane.x + run * RUN_INPUTS));
      gemv_add<T>(part, run % 2 ? w.z : w.x, run % 2 ? w.w : w.y, inputs, z);
    }
    gemv_scale(sums, part, __ldg(lane.sc + group * 8));
  }
}

// All threads of the block together; `shared` may be read afterwards (gemv_sum). x [tokens][K], K a multiple of GROUP.
template <typename T, int GROUP>
__device__ __forceinline__ void gemv_tile(GemvSums& shared, const T* x, const T16Weights& w, int tile, int tokens,
                                          int K) {
  using Step = GemvStep<T, GROUP>;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, q = lane & 3;
  const int groups = K / GROUP, steps = K / Step::INPUTS, tiles = (K + T16_INPUTS - 1) / T16_INPUTS;
  const int share = max(GEMV_SHARE, (steps + GEMV_WARPS - 1) / GEMV_WARPS), first = warp * share;
  const GemvLane<T> at = {w.qw + static_cast<size_t>(tile) * tiles * T16_TILE + lane,
                          w.sc + static_cast<size_t>(tile) * groups * 8 + g,
                          w.zp + static_cast<size_t>(tile) * groups * 8 + g,
                          x + static_cast<size_t>(min(g, tokens - 1)) * K + q * 8};

  float sums[4] = {0.f, 0.f, 0.f, 0.f};
  gemv_steps<T, GROUP>(sums, at, first, min(first + share, steps));
  const bool last = threadIdx.x + 32 >= blockDim.x;
  if (GROUP < Step::INPUTS && last) gemv_groups<T, GROUP>(sums, at, steps * Step::GROUPS, groups);

  shared[warp][2 * q][g] = sums[0];
  shared[warp][2 * q + 1][g] = sums[1];
  shared[warp][2 * q][g + 8] = sums[2];
  shared[warp][2 * q + 1][g + 8] = sums[3];
  __syncthreads();
}

// In the order of the warps.
__device__ __forceinline__ float gemv_sum(const GemvSums& shared, int token, int row) {
  const int warps = blockDim.x >> 5;
  float sum = shared[0][token][row];
#pragma unroll
  for (int warp = 1; warp < GEMV_WARPS; warp++)
    if (warp < warps) sum += shared[warp][token][row];
  return sum;
}
