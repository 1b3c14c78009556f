// Conversions of fp16 and bf16 under CUDA's names.
#pragma once
#include "emulator/float16.h"

static inline half __float2half(float f) { return half(f); }
static inline half __float2half_rn(float f) { return half(f); }
static inline half __double2half(double d) { return half(d); }
static inline float __half2float(half h) { return h; }
static inline half __int2half_rn(int i) { return half(i); }
static inline half __uint2half_rn(unsigned u) { return half(u); }
static inline half __ushort2half_rn(ushort u) { return half(static_cast<float>(u)); }
static inline half __short2half_rn(short s) { return half(static_cast<float>(s)); }
static inline int __half2int_rn(half h) { return static_cast<int>(rintf(h)); }
static inline half2 __half2half2(half h) { return {h, h}; }
static inline half2 __halves2half2(half a, half b) { return {a, b}; }
static inline half2 make_half2(half a, half b) { return {a, b}; }
static inline half2 __float2half2_rn(float f) { return {half(f), half(f)}; }
static inline half2 __floats2half2_rn(float a, float b) { return {half(a), half(b)}; }
static inline half2 __float22half2_rn(float2 f) { return {half(f.x), half(f.y)}; }
static inline float2 __half22float2(half2 h) {
#if defined(__F16C__)
  const __m128 wide = emulator::widen2(h);
  return {_mm_cvtss_f32(wide), _mm_cvtss_f32(_mm_movehdup_ps(wide))};
#else
  return {float(h.x), float(h.y)};
#endif
}
static inline half __low2half(half2 h) { return h.x; }
static inline half __high2half(half2 h) { return h.y; }
static inline half2 __low2half2(half2 h) { return {h.x, h.x}; }
static inline half2 __high2half2(half2 h) { return {h.y, h.y}; }
static inline half2 __lows2half2(half2 a, half2 b) { return {a.x, b.x}; }
static inline half2 __highs2half2(half2 a, half2 b) { return {a.y, b.y}; }
static inline half2 __lowhigh2highlow(half2 h) { return {h.y, h.x}; }
static inline float __low2float(half2 h) { return h.x; }
static inline float __high2float(half2 h) { return h.y; }
static inline half __ushort_as_half(ushort u) { return half::raw(u); }
static inline half __short_as_half(short s) { return half::raw(static_cast<uint16_t>(s)); }
static inline ushort __half_as_ushort(half h) { return h.bits; }
static inline short __half_as_short(half h) { return static_cast<short>(h.bits); }

static inline nv_bfloat16 __float2bfloat16(float f) { return nv_bfloat16(f); }
static inline nv_bfloat16 __float2bfloat16_rn(float f) { return nv_bfloat16(f); }
static inline nv_bfloat16 __double2bfloat16(double d) { return nv_bfloat16(d); }
static inline float __bfloat162float(nv_bfloat16 h) { return h; }
static inline nv_bfloat16 __int2bfloat16_rn(int i) { return nv_bfloat16(i); }
static inline nv_bfloat16 __uint2bfloat16_rn(unsigned u) { return nv_bfloat16(u); }
static inline nv_bfloat16 __ushort2bfloat16_rn(ushort u) { return nv_bfloat16(static_cast<float>(u)); }
static inline int __bfloat162int_rn(nv_bfloat16 h) { return static_cast<int>(rintf(h)); }
static inline nv_bfloat162 __bfloat162bfloat162(nv_bfloat16 h) { return {h, h}; }
static inline nv_bfloat162 __halves2bfloat162(nv_bfloat16 a, nv_bfloat16 b) { return {a, b}; }
static inline nv_bfloat162 make_bfloat162(nv_bfloat16 a, nv_bfloat16 b) { return {a, b}; }
static inline nv_bfloat162 __float2bfloat162_rn(float f) { return {nv_bfloat16(f), nv_bfloat16(f)}; }
static inline nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {nv_bfloat16(a), nv_bfloat16(b)}; }
static inline nv_bfloat162 __float22bfloat162_rn(float2 f) { return {nv_bfloat16(f.x), nv_bfloat16(f.y)}; }
static inline float2 __bfloat1622float2(nv_bfloat162 h) { return {float(h.x), float(h.y)}; }
static inline nv_bfloat16 __low2bfloat16(nv_bfloat162 h) { return h.x; }
static inline nv_bfloat16 __high2bfloat16(nv_bfloat162 h) { return h.y; }
static inline nv_bfloat162 __low2bfloat162(nv_bfloat162 h) { return {h.x, h.x}; }
static inline nv_bfloat162 __high2bfloat162(nv_bfloat162 h) { return {h.y, h.y}; }
static inline float __low2float(nv_bfloat162 h) { return h.x; }
static inline float __high2float(nv_bfloat162 h) { return h.y; }
static inline nv_bfloat16 __ushort_as_bfloat16(ushort u) { return nv_bfloat16::raw(u); }
static inline nv_bfloat16 __short_as_bfloat16(short s) { return nv_bfloat16::raw(static_cast<uint16_t>(s)); }
static inline ushort __bfloat16_as_ushort(nv_bfloat16 h) { return h.bits; }
static inline short __bfloat16_as_short(nv_bfloat16 h) { return static_cast<short>(h.bits); }
