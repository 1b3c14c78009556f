// Products of 1..8 tokens with an int4 matrix, y[M][N] = x[M][K] * W[N][K]^T, and what is fused behind them.
//
// grid: tiles of 16 rows, block: 32 * warps, warps = 1..8 by K alone (kernels/launch/gemv.py); 5 KiB of static shared
// memory. gemv_tile.cuh has the product; here are the epilogues, each thread with one row, or two rows 8 apart, of one
// token. Rows are padded to whole tiles; those from N on are not stored.
#include "gemv_tile.cuh"
#include "rope_kv.cuh"

// At least two blocks on a multiprocessor: 128 registers.
#define GEMV_KERNEL extern "C" __global__ void __launch_bounds__(32 * GEMV_WARPS, 2)

template <typename T, int GROUP>
__device__ __forceinline__ void gemv(const T* x, const T16Weights& w, const float* bias, T* y, int M, int N, int K) {
  __shared__ GemvSums sums;
  gemv_tile<T, GROUP>(sums, x, w, blockIdx.x, M, K);
#pragma unroll 1
  for (int i = threadIdx.x; i < T16_ROWS * M; i += blockDim.x) {
    const int token = i / T16_ROWS, row = i % T16_ROWS, n = blockIdx.x * T16_ROWS + row;
    if (n >= N) continue;
    const float v = gemv_sum(sums, token, row) + (bias ? bias[n] : 0.f);
    y[static_cast<size_t>(token) * N + n] = Element<T>::from_float(v);
  }
}

// residual[M][N] += x * W^T.
template <typename T, int GROUP>
__device__ __forceinline__ void gemv_residual(const T* x, const T16Weights& w, const float* bias, float* residual,
                                              int M, int N, int K) {
  __shared__ GemvSums sums;
  gemv_tile<T, GROUP>(sums, x, w, blockIdx.x, M, K);
#pragma unroll 1
  for (int i = threadIdx.x; i < T16_ROWS * M; i += blockDim.x) {
    const int token = i / T16_ROWS, row = i % T16_ROWS, n = blockIdx.x * T16_ROWS + row;
    if (n >= N) continue;
    residual[static_cast<size_t>(token) * N + n] += gemv_sum(sums, token, row) + (bias ? bias[n] : 0.f);
  }
}

// y[M][N/2] = silu(gate) * up; rows r and r+8 of a tile are gate and up of channel 8 * tile + r.
template <typename T, int GROUP>
__device__ __forceinline__ void gemv_swiglu(const T* x, const T16Weights& w, T* y, int M, int N, int K) {
  __shared__ GemvSums sums;
  gemv_tile<T, GROUP>(sums, x, w, blockIdx.x, M, K);
#pragma unroll 1
  for (int i = threadIdx.x; i < 8 * M; i += blockDim.x) {
    const int token = i / 8, row = i % 8;
    const float gate = gemv_sum(sums, token, row), up = gemv_sum(sums, token, row + 8);
    y[static_cast<size_t>(token) * (N / 2) + blockIdx.x * 8 + row] =
        Element<T>::from_float(gate / (1.f + __expf(-gate)) * up);
  }
}

// q, k and v of the tokens, in the row order of qkv_order (kernels/packing/t16.py); see rope_kv.cuh.
// A head is a whole number of tiles. The tokens' places are looked up before the product, whose barrier publishes them.
template <typename T, int GROUP>
__device__ __forceinline__ void gemv_qkv_rope_kv(const T* x, const T16Weights& w, const QkvTarget& to, int M, int K) {
  __shared__ GemvSums sums;
  __shared__ QkvPlace<T> places[GEMV_TOKENS];
  const int first_row = blockIdx.x * T16_ROWS, head = first_row / to.head_dim;
  if (threadIdx.x < M) places[threadIdx.x] = qkv_place<T>(to, threadIdx.x, head);
  gemv_tile<T, GROUP>(sums, x, w, blockIdx.x, M, K);
#pragma unroll 1
  for (int i = threadIdx.x; i < 8 * M; i += blockDim.x) {
    const int token = i / 8, row = i % 8, n = first_row + row;
    const float first = gemv_sum(sums, token, row) + (to.bias ? to.bias[n] : 0.f);
    const float second = gemv_sum(sums, token, row + 8) + (to.bias ? to.bias[n + 8] : 0.f);
    qkv_store(places[token], to.head_dim, (first_row - head * to.head_dim) / T16_ROWS, row, first, second);
  }
}

#define GEMV_ENTRIES(GROUP, T, NAME)                                                                           \
  GEMV_KERNEL gemv_g##GROUP##_##NAME(const T* x, const uint4* qw, const half2* sc, const uint8_t* zp,           \
                                     const float* bias, T* y, int M, int N, int K) {                            \
    gemv<T, GROUP>(x, {qw, sc, zp}, bias, y, M, N, K);                                                          \
  }                                                                                                             \
  CUDA_KERNEL_EXPORT(gemv_g##GROUP##_##NAME)                                                                    \
  GEMV_KERNEL gemv_residual_g##GROUP##_##NAME(const T* x, const uint4* qw, const half2* sc, const uint8_t* zp,  \
                                              const float* bias, float* residual, int M, int N, int K) {        \
    gemv_residual<T, GROUP>(x, {qw, sc, zp}, bias, residual, M, N, K);                                          \
  }                                                                                                             \
  CUDA_KERNEL_EXPORT(gemv_residual_g##GROUP##_##NAME)                                                           \
  GEMV_KERNEL gemv_swiglu_g##GROUP##_##NAME(const T* x, const uint4* qw, const half2* sc, const uint8_t* zp,    \
                                            T* y, int M, int N, int K) {                                        \
    gemv_swiglu<T, GROUP>(x, {qw, sc, zp}, y, M, N, K);                                                         \
  }                                                                                                             \
  CUDA_KERNEL_EXPORT(gemv_swiglu_g##GROUP##_##NAME)                                                             \
  GEMV_KERNEL gemv_qkv_rope_kv_g##GROUP##_##NAME(                                                               \
      const T* x, const uint4* qw, const half2* sc, const uint8_t* zp, const float* bias, const float2* rope,   \
      DecodeState* state, T* q, const unsigned long long* keys, const unsigned long long* values, int M, int K, \
      int heads, int kv_heads, int head_dim, int capacity, int positions, int staged) {                         \
    const KvTables kv = {keys, values, kv_heads, capacity};                                                     \
    const QkvTarget to = {bias, rope, state, q, kv, heads, head_dim, positions, staged != 0};                   \
    gemv_qkv_rope_kv<T, GROUP>(x, {qw, sc, zp}, to, M, K);                                                      \
  }                                                                                                             \
  CUDA_KERNEL_EXPORT(gemv_qkv_rope_kv_g##GROUP##_##NAME)

GEMV_ENTRIES(32, half, f16)
GEMV_ENTRIES(64, half, f16)
GEMV_ENTRIES(128, half, f16)
GEMV_ENTRIES(32, __nv_bfloat16, bf16)
GEMV_ENTRIES(64, __nv_bfloat16, bf16)
GEMV_ENTRIES(128, __nv_bfloat16, bf16)
