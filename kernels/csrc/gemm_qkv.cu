// gemm_qkv_rope_kv: queries, keys and values of many tokens; rotary embedding and the cache behind the product
// (gemm_tile.cuh has the product, rope_kv.cuh what becomes of its rows).
#include "gemm_tile.cuh"
#include "rope_kv.cuh"

template <typename T, int GROUP, int TOKENS, int STAGES>
__device__ __forceinline__ void gemm_qkv_rope_kv(const T* x, const T16Weights& w, const QkvTarget& to,
                                                 const GemmShape& shape) {
  const GemmLane<TOKENS> lane;
  GemmSums<TOKENS> sums;
  gemm_tile<T, GROUP, TOKENS, STAGES>(sums, x, w, shape, lane);
  // A head is one block of 64 rows or two: the block's rows are of one head, and none is padding.
  const int block_rows = GEMM_TILES * T16_ROWS, row = blockIdx.x * block_rows;
  const int head = row / to.head_dim, first_row = row % to.head_dim - row;
  gemm_for_each<TOKENS>(
      sums, shape, lane, [&](int token) { return qkv_place<T>(to, token, head); },
      [&](const QkvPlace<T>& place, int n, float first, float second) {
        const float b = to.bias ? to.bias[n] : 0.f, b8 = to.bias ? to.bias[n + 8] : 0.f;
        qkv_store(place, to.head_dim, (n + first_row) / T16_ROWS, lane.g, first + b, second + b8);
      });
}

#define QKV_ENTRY(TOKENS, GROUP, T, NAME)                                                                       \
  extern "C" __global__ void __launch_bounds__(GEMM_THREADS, GEMM_BLOCKS_##TOKENS)                              \
      gemm_qkv_rope_kv_##TOKENS##_g##GROUP##_##NAME(                                                            \
          const T* x, const uint4* qw, const half2* sc, const uint8_t* zp, const float* bias, const float2* rope, \
          DecodeState* state, T* q, const unsigned long long* keys, const unsigned long long* values, int M,    \
          int K, int heads, int kv_heads, int head_dim, int capacity, int positions, int staged) {              \
    const QkvTarget to = {bias,  rope,     state,     q,          {keys, values, kv_heads, capacity},           \
                          heads, head_dim, positions, staged != 0};                                             \
    const GemmShape shape = {M, (heads + 2 * kv_heads) * head_dim, K};                                          \
    gemm_qkv_rope_kv<T, GROUP, TOKENS, GEMM_STAGES_##TOKENS>(x, {qw, sc, zp}, to, shape);                       \
  }                                                                                                             \
  CUDA_KERNEL_EXPORT(gemm_qkv_rope_kv_##TOKENS##_g##GROUP##_##NAME)

GEMM_ENTRIES(QKV_ENTRY)
