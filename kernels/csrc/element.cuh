// What differs between f16 and bf16 activations: conversions, alone and in pairs of one 32-bit word, and the mma.
#pragma once
#include "ptx.cuh"

// The bits of one type as another of the same size.
template <typename To, typename From>
__device__ __forceinline__ To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits_as needs types of one size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

template <typename T>
struct Element;

template <>
struct Element<half> {
  using Pair = half2;
  static __device__ __forceinline__ float to_float(half v) { return __half2float(v); }
  static __device__ __forceinline__ half from_float(float v) { return __float2half_rn(v); }
  // The low 16 bits of a word are the first of the two.
  static __device__ __forceinline__ float2 unpack(uint32_t pair) { return __half22float2(bits_as<half2>(pair)); }
  static __device__ __forceinline__ uint32_t pack(float first, float second) {
    return bits_as<uint32_t>(__floats2half2_rn(first, second));
  }
  static __device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_f16(c, a, b);
  }
};

template <>
struct Element<__nv_bfloat16> {
  using Pair = __nv_bfloat162;
  static __device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
  static __device__ __forceinline__ __nv_bfloat16 from_float(float v) { return __float2bfloat16_rn(v); }
  static __device__ __forceinline__ float2 unpack(uint32_t pair) {
    return __bfloat1622float2(bits_as<__nv_bfloat162>(pair));
  }
  static __device__ __forceinline__ uint32_t pack(float first, float second) {
    return bits_as<uint32_t>(__floats2bfloat162_rn(first, second));
  }
  static __device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_bf16(c, a, b);
  }
};

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }

// A logit that no probability follows from: NaN or +inf.
__device__ __forceinline__ bool is_bad_logit(float v) { return !(v < infinity()); }
