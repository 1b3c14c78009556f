// gemm_64, gemm_128: y[M][N] = x * W^T + bias, or residual[M][N] += x * W^T + bias (gemm_tile.cuh has the product).
#include "gemm_tile.cuh"

// Where the sums go: exactly one of y and residual is given; bias may be null.
template <typename T>
struct GemmOutput {
  const float* bias;
  T* y;
  float* residual;
  int N;

  // `at`: of the token's first value.
  __device__ __forceinline__ void store(size_t at, int row, float sum) const {
    if (row >= N) return;
    const float v = bias ? sum + bias[row] : sum;
    if (residual)
      residual[at + row] += v;
    else
      y[at + row] = Element<T>::from_float(v);
  }
};

template <typename T, int GROUP, int TOKENS, int STAGES>
__device__ __forceinline__ void gemm(const T* x, const T16Weights& w, const GemmOutput<T>& out,
                                     const GemmShape& shape) {
  const GemmLane<TOKENS> lane;
  GemmSums<TOKENS> sums;
  gemm_tile<T, GROUP, TOKENS, STAGES>(sums, x, w, shape, lane);
  gemm_for_each<TOKENS>(
      sums, shape, lane, [&](int token) { return static_cast<size_t>(token) * shape.N; },
      [&](size_t at, int row, float first, float second) {
        out.store(at, row, first);
        out.store(at, row + 8, second);
      });
}

#define GEMM_ENTRY(TOKENS, GROUP, T, NAME)                                                                            \
  extern "C" __global__ void __launch_bounds__(GEMM_THREADS, GEMM_BLOCKS_##TOKENS)                                    \
      gemm_##TOKENS##_g##GROUP##_##NAME(const T* x, const uint4* qw, const half2* sc, const uint8_t* zp,              \
                                        const float* bias, T* y, float* residual, int M, int N, int K) {              \
    gemm<T, GROUP, TOKENS, GEMM_STAGES_##TOKENS>(x, {qw, sc, zp}, {bias, y, residual, N}, {M, N, K});                 \
  }                                                                                                                   \
  CUDA_KERNEL_EXPORT(gemm_##TOKENS##_g##GROUP##_##NAME)

GEMM_ENTRIES(GEMM_ENTRY)
