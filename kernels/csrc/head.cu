// The LM head for 1..8 tokens: all logits, or of each tile of 16 rows what a sampler needs (HeadPartial in state.cuh).
//
// grid: tiles of 16 rows, block: 32 * warps, warps = 1..8 by K alone (kernels/launch/gemv.py). Rows are padded to whole
// tiles; those from V on neither win nor count.
#include "gemv_tile.cuh"
#include "state.cuh"

// logits[M][V].
template <typename T, int GROUP>
__device__ __forceinline__ void head_logits(const T* x, const T16Weights& w, float* logits, int M, int V, int K) {
  __shared__ GemvSums sums;
  gemv_tile<T, GROUP>(sums, x, w, blockIdx.x, M, K);
#pragma unroll 1
  for (int i = threadIdx.x; i < T16_ROWS * M; i += blockDim.x) {
    const int token = i / T16_ROWS, row = i % T16_ROWS, id = blockIdx.x * T16_ROWS + row;
    if (id < V) logits[static_cast<size_t>(token) * V + id] = gemv_sum(sums, token, row);
  }
}

// Sixteen lanes hold a token's logits of one tile, one each; all lanes of the warp come. The result is in each of them.
__device__ __forceinline__ HeadPartial reduce_logits(float logit, int id, bool exists) {
  constexpr unsigned ALL = 0xffffffffu;
  HeadPartial best = {exists ? logit : -infinity(), id, 0.f, 0};
  bool bad = exists && is_bad_logit(logit);
#pragma unroll
  for (int distance = 8; distance > 0; distance /= 2) {
    const float max = __shfl_xor_sync(ALL, best.max, distance);
    const int index = __shfl_xor_sync(ALL, best.index, distance);
    bad |= __shfl_xor_sync(ALL, static_cast<int>(bad), distance) != 0;
    if (max > best.max || (max == best.max && index < best.index)) {
      best.max = max;
      best.index = index;
    }
  }
  const bool counts = exists && best.max > -infinity();  // -inf everywhere: nothing to sum, and no NaN from inf - inf
  best.sum = counts ? expf(logit - best.max) : 0.f;
#pragma unroll
  for (int distance = 8; distance > 0; distance /= 2) best.sum += __shfl_xor_sync(ALL, best.sum, distance);
  if (bad) best = {0.f, -1, 0.f, 0};
  return best;
}

// partials[tiles][M]. The weight holds ids first_id .. first_id+V-1: a large head comes in several pieces.
template <typename T, int GROUP>
__device__ __forceinline__ void head_argmax(const T* x, const T16Weights& w, HeadPartial* partials, int first_id,
                                            int M, int V, int K) {
  __shared__ GemvSums sums;
  gemv_tile<T, GROUP>(sums, x, w, blockIdx.x, M, K);
  // Whole warps: lanes of a token beyond M reduce what gemv_tile left there and drop it.
#pragma unroll 1
  for (int i = threadIdx.x; i < T16_ROWS * GEMV_TOKENS; i += blockDim.x) {
    const int token = i / T16_ROWS, row = i % T16_ROWS, id = blockIdx.x * T16_ROWS + row;
    const HeadPartial best = reduce_logits(gemv_sum(sums, token, row), first_id + id, id < V);
    if (row == 0 && token < M) partials[static_cast<size_t>(blockIdx.x) * M + token] = best;
  }
}

#define HEAD_KERNEL extern "C" __global__ void __launch_bounds__(32 * GEMV_WARPS, 2)
#define HEAD_ENTRIES(GROUP, T, NAME)                                                                         \
  HEAD_KERNEL head_argmax_g##GROUP##_##NAME(const T* x, const uint4* qw, const half2* sc, const uint8_t* zp, \
                                            HeadPartial* partials, int first_id, int M, int V, int K) {      \
    head_argmax<T, GROUP>(x, {qw, sc, zp}, partials, first_id, M, V, K);                                     \
  }                                                                                                          \
  CUDA_KERNEL_EXPORT(head_argmax_g##GROUP##_##NAME)                                                          \
  HEAD_KERNEL head_logits_g##GROUP##_##NAME(const T* x, const uint4* qw, const half2* sc, const uint8_t* zp, \
                                            float* logits, int M, int V, int K) {                            \
    head_logits<T, GROUP>(x, {qw, sc, zp}, logits, M, V, K);                                                 \
  }                                                                                                          \
  CUDA_KERNEL_EXPORT(head_logits_g##GROUP##_##NAME)

HEAD_ENTRIES(32, half, f16)
HEAD_ENTRIES(64, half, f16)
HEAD_ENTRIES(128, half, f16)
HEAD_ENTRIES(32, __nv_bfloat16, bf16)
HEAD_ENTRIES(64, __nv_bfloat16, bf16)
HEAD_ENTRIES(128, __nv_bfloat16, bf16)
