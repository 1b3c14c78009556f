// Mathematical functions, integer intrinsics, bit casts and cached loads under CUDA's names. What a GPU approximates
// (__expf, rsqrtf, ...) is exact to an ulp or so here.
#pragma once
#include <math.h>

#include <limits>
#include <type_traits>

#include "emulator/float16.h"

// ---- Bits

static inline unsigned __float_as_uint(float f) { return emulator::same_bits<unsigned>(f); }
static inline float __uint_as_float(unsigned u) { return emulator::same_bits<float>(u); }
static inline int __float_as_int(float f) { return emulator::same_bits<int>(f); }
static inline float __int_as_float(int i) { return emulator::same_bits<float>(i); }
static inline long long __double_as_longlong(double d) { return emulator::same_bits<long long>(d); }
static inline double __longlong_as_double(long long i) { return emulator::same_bits<double>(i); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
static inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; i++) reversed |= (x >> i & 1) << (31 - i);
  return reversed;
}
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((((static_cast<uint64_t>(high) << 32) | low) << (shift & 31)) >> 32);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>(((static_cast<uint64_t>(high) << 32) | low) >> (shift & 31));
}
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = x | static_cast<uint64_t>(y) << 32;
  unsigned result = 0;
  for (int i = 0; i < 4; i++) {
    const unsigned which = selector >> (4 * i) & 0xf;
    unsigned byte = static_cast<unsigned>(bytes >> (8 * (which & 7))) & 0xff;
    if (which & 8) byte = byte & 0x80 ? 0xff : 0;  // the sign, repeated
    result |= byte << (8 * i);
  }
  return result;
}

// ---- Integers

static inline int __mulhi(int a, int b) { return static_cast<int>((static_cast<int64_t>(a) * b) >> 32); }
static inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}
static inline long long __mul64hi(long long a, long long b) {
  return static_cast<long long>((static_cast<__int128>(a) * b) >> 64);
}
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
static inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; i++) c += static_cast<int8_t>(a >> (8 * i)) * static_cast<int8_t>(b >> (8 * i));
  return c;
}
static inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  for (int i = 0; i < 4; i++) c += (a >> (8 * i) & 0xff) * (b >> (8 * i) & 0xff);
  return c;
}

// ---- Conversions: out of range saturates, NaN becomes 0.

namespace emulator {
template <class To>
inline To saturated(float value) {
  if (value != value) return 0;
  if (value <= static_cast<float>(std::numeric_limits<To>::min())) return std::numeric_limits<To>::min();
  if (value >= -static_cast<float>(std::numeric_limits<To>::min()) && std::is_signed<To>::value)
    return std::numeric_limits<To>::max();
  if (value >= 4294967296.0f) return std::numeric_limits<To>::max();
  return static_cast<To>(value);
}
}  // namespace emulator
static inline int __float2int_rn(float f) { return emulator::saturated<int>(rintf(f)); }
static inline int __float2int_rz(float f) { return emulator::saturated<int>(truncf(f)); }
static inline int __float2int_ru(float f) { return emulator::saturated<int>(ceilf(f)); }
static inline int __float2int_rd(float f) { return emulator::saturated<int>(floorf(f)); }
static inline unsigned __float2uint_rn(float f) { return emulator::saturated<unsigned>(rintf(f)); }
static inline unsigned __float2uint_rz(float f) { return emulator::saturated<unsigned>(truncf(f)); }
static inline float __int2float_rn(int i) { return static_cast<float>(i); }
static inline float __uint2float_rn(unsigned u) { return static_cast<float>(u); }
static inline float __ll2float_rn(long long i) { return static_cast<float>(i); }
static inline float __ull2float_rn(unsigned long long u) { return static_cast<float>(u); }
static inline float __double2float_rn(double d) { return static_cast<float>(d); }

// ---- Floating point

static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float __frcp_rn(float a) { return 1.0f / a; }
static inline float __frsqrt_rn(float a) { return static_cast<float>(1.0 / sqrt(static_cast<double>(a))); }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dsub_rn(double a, double b) { return a - b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __ddiv_rn(double a, double b) { return a / b; }
static inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float fdividef(float a, float b) { return a / b; }
static inline float rsqrtf(float a) { return static_cast<float>(1.0 / sqrt(static_cast<double>(a))); }
static inline double rsqrt(double a) { return 1.0 / sqrt(a); }
static inline float __saturatef(float a) { return fminf(fmaxf(a, 0.0f), 1.0f); }

// glibc's own headers declare some of these names, so they are macros.
#define __expf(x) expf(x)
#define __exp10f(x) exp10f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __powf(x, y) powf(x, y)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)

// min and max of two types give what the usual conversions give; of floats NaN loses, as with fminf.
template <class A, class B>
constexpr inline std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point<T>::value) return __builtin_fmin(T(a), T(b));
  return T(b) < T(a) ? T(b) : T(a);
}
template <class A, class B>
constexpr inline std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point<T>::value) return __builtin_fmax(T(a), T(b));
  return T(a) < T(b) ? T(b) : T(a);
}

static constexpr float CUDART_INF_F = std::numeric_limits<float>::infinity();
static constexpr float CUDART_NAN_F = std::numeric_limits<float>::quiet_NaN();

// ---- Loads and stores with a cache policy

#define EMULATOR_LOAD(NAME)           \
  template <class T>                  \
  static inline T NAME(const T* p) {  \
    return *p;                        \
  }
EMULATOR_LOAD(__ldg)
EMULATOR_LOAD(__ldca)
EMULATOR_LOAD(__ldcg)
EMULATOR_LOAD(__ldcs)
EMULATOR_LOAD(__ldlu)
EMULATOR_LOAD(__ldcv)
#undef EMULATOR_LOAD
#define EMULATOR_STORE(NAME)                \
  template <class T>                        \
  static inline void NAME(T* p, T value) {  \
    *p = value;                             \
  }
EMULATOR_STORE(__stwb)
EMULATOR_STORE(__stcg)
EMULATOR_STORE(__stcs)
EMULATOR_STORE(__stwt)
#undef EMULATOR_STORE
