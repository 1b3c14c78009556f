// dequantize: out[N][K] = (q - z) * s of a T16 weight, each product rounded once to T.
//
// grid: T16 tiles, ceil(K / 256); block: 4 warps, each one tile of 16 rows x 64 inputs. q - z has 5 bits and s 11, so
// their product in f32 is exact.
#include "t16.cuh"

constexpr int DEQUANTIZE_WARPS = 4;

// Eight inputs of one row: `words` are two words of a tile after t16_dequantize, `side` 0 for row g, 1 for row g + 8.
template <typename T>
__device__ __forceinline__ uint4 scaled(const uint32_t (&words)[2][4], int side, float scale) {
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float2 steps = Element<T>::unpack(words[i / 2][side + 2 * (i % 2)]);
    pairs[i] = Element<T>::pack(steps.x * scale, steps.y * scale);
  }
  return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

template <typename T, int GROUP>
__device__ __forceinline__ void dequantize(const T16Weights& w, T* out, int N, int K) {
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, tile = blockIdx.x, groups = K / GROUP;
  const int steps = (K + T16_INPUTS - 1) / T16_INPUTS, step = blockIdx.y * DEQUANTIZE_WARPS + threadIdx.x / 32;
  if (step >= steps) return;
  const uint4 word = ld_stream(w.qw + (static_cast<size_t>(tile) * steps + step) * T16_TILE + lane);
#pragma unroll
  for (int run = 0; run < 2; run++) {
    const int input = step * T16_INPUTS + 32 * run + 8 * q;
    if (input >= K) return;  // half a tile, with groups of 32
    const size_t at = (static_cast<size_t>(tile) * groups + input / GROUP) * 8 + g;
    const T16Zeros<T> zeros = t16_zeros<T>(w.zp[at]);
    const float2 scale = __half22float2(w.sc[at]);
    uint32_t words[2][4];
    t16_dequantize(words[0], run ? word.z : word.x, zeros);
    t16_dequantize(words[1], run ? word.w : word.y, zeros);
#pragma unroll
    for (int side = 0; side < 2; side++) {
      const int row = tile * T16_ROWS + g + 8 * side;
      if (row >= N) continue;
      const uint4 values = scaled<T>(words, side, side ? scale.y : scale.x);
      *reinterpret_cast<uint4*>(out + static_cast<size_t>(row) * K + input) = values;
    }
  }
}

#define DEQUANTIZE_ENTRY(GROUP, T, NAME)                                                                     \
  extern "C" __global__ void __launch_bounds__(32 * DEQUANTIZE_WARPS) dequantize_g##GROUP##_##NAME(          \
      const uint4* qw, const half2* sc, const uint8_t* zp, T* out, int N, int K) {                           \
    dequantize<T, GROUP>({qw, sc, zp}, out, N, K);                                                           \
  }                                                                                                          \
  CUDA_KERNEL_EXPORT(dequantize_g##GROUP##_##NAME)

DEQUANTIZE_ENTRY(32, half, f16)
DEQUANTIZE_ENTRY(64, half, f16)
DEQUANTIZE_ENTRY(128, half, f16)
DEQUANTIZE_ENTRY(32, __nv_bfloat16, bf16)
DEQUANTIZE_ENTRY(64, __nv_bfloat16, bf16)
DEQUANTIZE_ENTRY(128, __nv_bfloat16, bf16)
