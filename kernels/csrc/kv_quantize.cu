// Keys and values of a step's tokens from 16-bit staging into the int8 cache: one scale per token and head, largest
// magnitude / 127. One warp per row of D values; a row's bytes depend on that row alone.
#include "element.cuh"
#include "kv.cuh"
#include "ptx.cuh"
#include "state.cuh"

constexpr int WARPS = 4;

// The scale of a row, the same in every lane. NaN, infinity, or a scale that f16 cannot hold stay visible: scale NaN.
template <int VALUES>
__device__ __forceinline__ float row_scale(const float (&v)[VALUES]) {
  float largest = 0.f;
  bool finite = true;
#pragma unroll
  for (int i = 0; i < VALUES; i++) {
    finite = finite && fabsf(v[i]) < infinity();
    largest = fmaxf(largest, fabsf(v[i]));
  }
#pragma unroll
  for (int x = 16; x > 0; x >>= 1) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, x));
  const float scale = __half2float(__float2half_rn(largest / 127.f));
  return __all_sync(0xffffffffu, finite) && scale < infinity() ? scale : __int_as_float(0x7fc00000);
}

// v / scale to the nearest integer, ties to even; 0 for a scale of 0 or NaN. The scale is rounded: 127.06 may come out,
// and more where it is subnormal.
__device__ __forceinline__ uint32_t quantized(float v, float scale) {
  if (!(scale > 0.f)) return 0;
  return static_cast<uint32_t>(static_cast<int>(fminf(fmaxf(rintf(v / scale), -127.f), 127.f))) & 0xffu;
}

// Grid (ceil(2 * tokens * kv_heads / WARPS)). Positions at or beyond the capacity: STATUS_FULL, nothing written.
template <typename T, int D>
__device__ __forceinline__ void quantize_body(const KvTables& staged, const KvTables& kv, DecodeState* state,
                                              int tokens) {
  constexpr int VALUES = D / 32;
  const int lane = threadIdx.x & 31, task = blockIdx.x * WARPS + (threadIdx.x >> 5);
  const int head = (task >> 1) % kv.kv_heads, m = (task >> 1) / kv.kv_heads;
  if (m >= tokens) return;
  const KvPlace from = kv_place(state, m, true), to = kv_place(state, m, false);
  if (to.row >= kv.capacity) {
    if (lane == 0) atomicOr(&state->status, STATUS_FULL);
    return;
  }
  const unsigned long long* source = task & 1 ? staged.values : staged.keys;
  const unsigned long long* target = task & 1 ? kv.values : kv.keys;
  const T* in = kv_base<const T>(source, from.slot) + kv_offset<D>(staged, head, from.row);
  float v[VALUES];
#pragma unroll
  for (int i = 0; i < VALUES; i += 2) {
    const float2 pair = Element<T>::unpack(reinterpret_cast<const uint32_t*>(in)[(lane * VALUES + i) / 2]);
    v[i] = pair.x;
    v[i + 1] = pair.y;
  }
  const float scale = row_scale(v);
  uint32_t bytes = 0;
#pragma unroll
  for (int i = 0; i < VALUES; i++) bytes |= quantized(v[i], scale) << (8 * i);
  int8_t* out = kv_base<int8_t>(target, to.slot) + kv_offset<D>(kv, head, to.row) + lane * VALUES;
  if constexpr (VALUES == 2)
    *reinterpret_cast<uint16_t*>(out) = static_cast<uint16_t>(bytes);
  else
    *reinterpret_cast<uint32_t*>(out) = bytes;
  if (lane == 0) kv_scales<D>(kv, target, to.slot)[kv_offset<1>(kv, head, to.row)] = __float2half_rn(scale);
}

#define KV_QUANTIZE(NAME, T, D)                                                                                       \
  extern "C" __global__ void __launch_bounds__(WARPS * 32)                                                            \
      NAME(const unsigned long long* staged_keys, const unsigned long long* staged_values, int staged_capacity,       \
           const unsigned long long* keys, const unsigned long long* values, int kv_heads, int capacity,              \
           DecodeState* state, int tokens) {                                                                          \
    quantize_body<T, D>({staged_keys, staged_values, kv_heads, staged_capacity}, {keys, values, kv_heads, capacity},  \
                        state, tokens);                                                                               \
  }                                                                                                                   \
  CUDA_KERNEL_EXPORT(NAME)

KV_QUANTIZE(kv_quantize_i8_d64_f16, half, 64)
KV_QUANTIZE(kv_quantize_i8_d128_f16, half, 128)
KV_QUANTIZE(kv_quantize_i8_d64_bf16, __nv_bfloat16, 64)
KV_QUANTIZE(kv_quantize_i8_d128_bf16, __nv_bfloat16, 128)
