// The part that all products of a few tokens with an int4 matrix share: a block sums one tile of 16 rows.
//
//   sums[m][r] = sum over k of x[m][k] * W[16 * tile + r][k],   M = 1..8 tokens
//
// Tensor cores do it at any M: the weights are the m16 operand and the tokens n8, so that eight tokens cost what one
// does. q - z goes into the mma exactly, sums are f32, and a group's scale multiplies the f32 sum of that group: a
// weight costs no multiplication for it.
//
// Each warp has a run of whole steps along K and takes UNROLL of them at a time: all their weights are asked for before
// any is used (4 KiB in flight per warp), and the inputs of a step AHEAD steps before they are. A step is 128 inputs
// for groups of 128 (two tiles, one scale), else 64 (one tile, one or two scales). The sums of the warps meet in shared
// memory and are added in the order of the warps. Nothing of this depends on M, so that a token's sums are the same
// bits in any company; columns without a token repeat the last one. With groups of 32 the last step may be half:
// activations beyond K are not read.
#pragma once
#include "t16.cuh"

constexpr int GEMV_TOKENS = 8;
constexpr int GEMV_WARPS = 8;
constexpr int GEMV_PITCH = 20;  // floats per token: rows of 8 tokens fall into different banks

using GemvSums = float[GEMV_WARPS][GEMV_TOKENS][GEMV_PITCH];

template <int GROUP>
struct GemvStep {
  static constexpr int TILES = GROUP == 128 ? 2 : 1;
  static constexpr int GROUPS = GROUP == 32 ? 2 : 1;
  static constexpr int INPUTS = TILES * T16_INPUTS;
  static constexpr int UNROLL = GROUP == 128 ? 4 : 8;
  static constexpr int RUNS = 2 * TILES;             // of 8 inputs per lane
  static constexpr int AHEAD = UNROLL / 2;           // steps whose inputs are asked for before they are needed
  static constexpr int GROUP_RUNS = RUNS / GROUPS;

  uint4 words[TILES];
  half2 scales[GROUPS];
  uint32_t zeros[GROUPS];

  // qw, sc, zp: this lane's place in the step; groups: how many of the step exist.
  __device__ __forceinline__ void load(const uint4* qw, const half2* sc, const uint8_t* zp, int groups) {
#pragma unroll
    for (int i = 0; i < TILES; i++) words[i] = ld_stream(qw + i * T16_TILE);
#pragma unroll
    for (int i = 0; i < GROUPS; i++) {
      if (i > 0 && i >= groups) break;
      scales[i] = __ldg(sc + i * 8);
      zeros[i] = __ldg(zp + i * 8);
    }
  }

  // x: this lane's first input of the step.
  template <typename T>
  static __device__ __forceinline__ void load_inputs(uint4 (&runs)[RUNS], const T* x, int groups) {
#pragma unroll
    for (int i = 0; i < RUNS; i++)
      if (i < GROUP_RUNS || i / GROUP_RUNS < groups) runs[i] = __ldg(reinterpret_cast<const uint4*>(x + 32 * i));
  }

  // sums += the step's part.
  template <typename T>
  __device__ __forceinline__ void add(float (&sums)[4], const uint4 (&runs)[RUNS], int groups) const {
#pragma unroll
    for (int i = 0; i < GROUPS; i++) {
      if (i > 0 && i >= groups) break;
      const T16Zeros<T> z = t16_zeros<T>(zeros[i]);
      float part[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
      for (int j = i * GROUP_RUNS; j < (i + 1) * GROUP_RUNS; j++) {
        const uint4& w = words[j / 2];
        add_word<T>(part, j % 2 ? w.z : w.x, runs[j], 0, z);
        add_word<T>(part, j % 2 ? w.w : w.y, runs[j], 1, z);
      }
      const float2 s = __half22float2(scales[i]);
      sums[0] = fmaf(part[0], s.x, sums[0]);
      sums[1] = fmaf(part[1], s.x, sums[1]);
      sums[2] = fmaf(part[2], s.y, sums[2]);
      sums[3] = fmaf(part[3], s.y, sums[3]);
    }
  }

  template <typename T>
  static __device__ __forceinline__ void add_word(float (&part)[4], uint32_t word, const uint4& run, int s,
                                                  const T16Zeros<T>& z) {
    uint32_t f[4], b[2];
    t16_dequantize(f, word, z);
    t16_inputs(b, run, s);
    Element<T>::mma(part, f, b);
  }
};

// All threads of the block together; `shared` may be read afterwards (gemv_sum). x [tokens][K], K a multiple of GROUP.
template <typename T, int GROUP>
__device__ __forceinline__ void gemv_tile(GemvSums& shared, const T* x, const T16Weights& w, int tile, int tokens,
                                          int K) {
  using Step = GemvStep<GROUP>;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5, g = lane >> 2, q = lane & 3;
  const int groups = K / GROUP, steps = (K + Step::INPUTS - 1) / Step::INPUTS;
  const int share = (steps + warps - 1) / warps, first = warp * share, end = min(first + share, steps);

  const uint4* qw = w.qw + (static_cast<size_t>(tile) * steps + first) * (Step::TILES * T16_TILE) + lane;
  const half2* sc = w.sc + (static_cast<size_t>(tile) * groups + first * Step::GROUPS) * 8 + g;
  const uint8_t* zp = w.zp + (static_cast<size_t>(tile) * groups + first * Step::GROUPS) * 8 + g;
  const T* token = x + static_cast<size_t>(min(g, tokens - 1)) * K + first * Step::INPUTS + q * 8;

  float sums[4] = {0.f, 0.f, 0.f, 0.f};
  for (int step = first; step < end; step += Step::UNROLL) {
    Step batch[Step::UNROLL];
    uint4 runs[Step::AHEAD][Step::RUNS];
    const int here = groups - step * Step::GROUPS;  // groups from the batch's first on
#pragma unroll
    for (int u = 0; u < Step::UNROLL; u++)
      if (step + u < end)
        batch[u].load(qw + u * Step::TILES * T16_TILE, sc + u * Step::GROUPS * 8, zp + u * Step::GROUPS * 8,
                      here - u * Step::GROUPS);
#pragma unroll
    for (int u = 0; u < Step::AHEAD; u++)
      if (step + u < end) Step::load_inputs(runs[u], token + u * Step::INPUTS, here - u * Step::GROUPS);
#pragma unroll
    for (int u = 0; u < Step::UNROLL; u++) {
      constexpr int AHEAD = Step::AHEAD;
      if (step + u < end) batch[u].template add<T>(sums, runs[u % AHEAD], here - u * Step::GROUPS);
      if (u + AHEAD < Step::UNROLL && step + u + AHEAD < end)
        Step::load_inputs(runs[u % AHEAD], token + (u + AHEAD) * Step::INPUTS, here - (u + AHEAD) * Step::GROUPS);
    }
    qw += Step::UNROLL * Step::TILES * T16_TILE;
    sc += Step::UNROLL * Step::GROUPS * 8;
    zp += Step::UNROLL * Step::GROUPS * 8;
    token += Step::UNROLL * Step::INPUTS;
  }

  shared[warp][2 * q][g] = sums[0];
  shared[warp][2 * q + 1][g] = sums[1];
  shared[warp][2 * q][g + 8] = sums[2];
  shared[warp][2 * q + 1][g + 8] = sums[3];
  __syncthreads();
}

__device__ __forceinline__ float gemv_sum(const GemvSums& shared, int token, int row) {
  float sum = shared[0][token][row];
  for (int warp = 1; warp < blockDim.x >> 5; warp++) sum += shared[warp][token][row];
  return sum;
}
