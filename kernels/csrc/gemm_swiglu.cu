// gemm_swiglu: y[M][N/2] = silu(x * gate^T) * (x * up^T) for many tokens; a T16 tile of w is 8 gate rows and the same 8
// up rows (gemm_tile.cuh has the product).
#include "gemm_tile.cuh"

template <typename T, int GROUP, int TOKENS, int STAGES>
__device__ __forceinline__ void gemm_swiglu(const T* x, const T16Weights& w, T* y, const GemmShape& shape) {
  const GemmLane<TOKENS> lane;
  GemmSums<TOKENS> sums;
  gemm_tile<T, GROUP, TOKENS, STAGES>(sums, x, w, shape, lane);
  gemm_for_each<TOKENS>(
      sums, shape, lane, [&](int token) { return y + static_cast<size_t>(token) * (shape.N / 2); },
      [&](T* to, int row, float gate, float up) {
        if (row >= shape.N) return;
        to[row / T16_ROWS * 8 + lane.g] = Element<T>::from_float(gate / (1.f + __expf(-gate)) * up);
      });
}

#define SWIGLU_ENTRY(TOKENS, GROUP, T, NAME)                                                                          \
  extern "C" __global__ void __launch_bounds__(GEMM_THREADS, GEMM_BLOCKS_##TOKENS)                                    \
      gemm_swiglu_##TOKENS##_g##GROUP##_##NAME(const T* x, const uint4* qw, const half2* sc, const uint8_t* zp, T* y, \
                                               int M, int N, int K) {                                                 \
    gemm_swiglu<T, GROUP, TOKENS, GEMM_STAGES_##TOKENS>(x, {qw, sc, zp}, y, {M, N, K});                               \
  }                                                                                                                   \
  CUDA_KERNEL_EXPORT(gemm_swiglu_##TOKENS##_g##GROUP##_##NAME)

GEMM_ENTRIES(SWIGLU_ENTRY)
