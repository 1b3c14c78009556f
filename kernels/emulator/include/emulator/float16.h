// fp16 and bf16: storage, conversions (round to nearest even) and arithmetic with one rounding per operation.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "emulator/qualifiers.h"

namespace emulator {

template <class To, class From>
inline To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

// Takes the last bit of a sum that was rounded away as "odd", so that a second, coarser rounding is as good as one:
// sum is the rounded value, rest what the rounding lost.
inline float rounded_to_odd(float sum, float rest) {
  uint32_t bits = same_bits<uint32_t>(sum);
  if ((rest < 0 || rest > 0) && !(bits & 1)) bits += ((rest > 0) == (sum > 0)) ? 1 : -1;
  return same_bits<float>(bits);
}

// a*b + c for a*b that fp32 holds exactly, to be rounded to a 16-bit format.
inline float fma_to_odd(float a, float b, float c) {
  const float product = a * b, sum = product + c, back = sum - product;
  return rounded_to_odd(sum, (product - (sum - back)) + (c - back));
}

}  // namespace emulator

// In a namespace of their own: a call in a kernel with such an argument must not find the emulator's functions.
namespace emulated {



struct FormatF16 {
  static float widen(uint16_t bits) {
#if defined(__F16C__)
    return _cvtsh_ss(bits);
#elif defined(__aarch64__)
    return emulator::same_bits<__fp16>(bits);
#else
    const uint32_t sign = uint32_t(bits & 0x8000) << 16, magnitude = bits & 0x7fff;
    if (magnitude >= 0x7c00) return emulator::same_bits<float>(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
    if (magnitude >= 0x400) return emulator::same_bits<float>(sign | ((magnitude + (112 << 10)) << 13));
    const float small = float(magnitude) * 0x1p-24f;
    return sign ? -small : small;
#endif
  }
  static uint16_t narrow(float value) {
#if defined(__F16C__)
    return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__aarch64__)
    return emulator::same_bits<uint16_t>(static_cast<__fp16>(value));
#else
    const uint32_t bits = emulator::same_bits<uint32_t>(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
    if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);  // 65520 and above
    if (magnitude < 0x38800000) {  // below 2^-14: a multiple of 2^-24, rounded by an addition
      const float shifted = emulator::same_bits<float>(magnitude) + 0.5f;
      return uint16_t(sign | (emulator::same_bits<uint32_t>(shifted) - 0x3f000000));
    }
    return uint16_t(sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13));
#endif
  }
};

struct FormatBf16 {
  static float widen(uint16_t bits) { return emulator::same_bits<float>(uint32_t(bits) << 16); }
  static uint16_t narrow(float value) {
    const uint32_t bits = emulator::same_bits<uint32_t>(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
};

template <class Format>
struct Float16 {
  uint16_t bits;

  Float16() = default;
  Float16(float value) : bits(Format::narrow(value)) {}
  Float16(double value) : Float16(static_cast<float>(value)) {}
  Float16(int value) : Float16(static_cast<float>(value)) {}
  Float16(unsigned value) : Float16(static_cast<float>(value)) {}
  operator float() const { return Format::widen(bits); }
  static Float16 raw(uint16_t bits) {
    Float16 made;
    made.bits = bits;
    return made;
  }
  Float16 operator-() const { return raw(bits ^ 0x8000); }
  Float16& operator+=(Float16 other) { return *this = *this + other; }
  Float16& operator-=(Float16 other) { return *this = *this - other; }
  Float16& operator*=(Float16 other) { return *this = *this * other; }
  // A sum, difference, product or quotient of two such numbers rounds to fp32 and then to 16 bits as it would at once
  // (24 >= 2*11 + 2 bits).
  friend Float16 operator+(Float16 a, Float16 b) { return Float16(float(a) + float(b)); }
  friend Float16 operator-(Float16 a, Float16 b) { return Float16(float(a) - float(b)); }
  friend Float16 operator*(Float16 a, Float16 b) { return Float16(float(a) * float(b)); }
  friend Float16 operator/(Float16 a, Float16 b) { return Float16(float(a) / float(b)); }
  friend bool operator==(Float16 a, Float16 b) { return float(a) == float(b); }
  friend bool operator!=(Float16 a, Float16 b) { return float(a) != float(b); }
  friend bool operator<(Float16 a, Float16 b) { return float(a) < float(b); }
  friend bool operator>(Float16 a, Float16 b) { return float(a) > float(b); }
  friend bool operator<=(Float16 a, Float16 b) { return float(a) <= float(b); }
  friend bool operator>=(Float16 a, Float16 b) { return float(a) >= float(b); }
};

template <class Format>
struct alignas(4) Float16x2 {
  Float16<Format> x, y;
  Float16x2() = default;
  Float16x2(Float16<Format> x, Float16<Format> y) : x(x), y(y) {}
};

}  // namespace emulated

using __half = emulated::Float16<emulated::FormatF16>;
using half = __half;
using __half2 = emulated::Float16x2<emulated::FormatF16>;
using half2 = __half2;
using __nv_bfloat16 = emulated::Float16<emulated::FormatBf16>;
using nv_bfloat16 = __nv_bfloat16;
using __nv_bfloat162 = emulated::Float16x2<emulated::FormatBf16>;
using nv_bfloat162 = __nv_bfloat162;

struct __half_raw {
  unsigned short x;
};

// ---- Arithmetic under CUDA's names, for both formats.

#define EMULATOR_16BIT(NAME, EXPRESSION)                                                               \
  template <class F>                                                                                   \
  inline emulated::Float16<F> NAME(emulated::Float16<F> a, emulated::Float16<F> b) {                   \
    return EXPRESSION;                                                                                 \
  }                                                                                                    \
  template <class F>                                                                                   \
  inline emulated::Float16x2<F> NAME##2(emulated::Float16x2<F> a, emulated::Float16x2<F> b) {          \
    return {NAME(a.x, b.x), NAME(a.y, b.y)};                                                           \
  }
EMULATOR_16BIT(__hadd, a + b)
EMULATOR_16BIT(__hsub, a - b)
EMULATOR_16BIT(__hmul, a* b)
EMULATOR_16BIT(__hdiv, a / b)
EMULATOR_16BIT(__hmax, emulated::Float16<F>(fmaxf(a, b)))
EMULATOR_16BIT(__hmin, emulated::Float16<F>(fminf(a, b)))
#undef EMULATOR_16BIT

template <class F>
inline emulated::Float16<F> __hfma(emulated::Float16<F> a, emulated::Float16<F> b, emulated::Float16<F> c) {
  return emulated::Float16<F>(emulator::fma_to_odd(a, b, c));
}
template <class F>
inline emulated::Float16x2<F> __hfma2(emulated::Float16x2<F> a, emulated::Float16x2<F> b, emulated::Float16x2<F> c) {
  return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
template <class F>
inline emulated::Float16<F> __hneg(emulated::Float16<F> a) {
  return -a;
}
template <class F>
inline emulated::Float16x2<F> __hneg2(emulated::Float16x2<F> a) {
  return {-a.x, -a.y};
}
template <class F>
inline emulated::Float16<F> __habs(emulated::Float16<F> a) {
  return emulated::Float16<F>::raw(a.bits & 0x7fff);
}
template <class F>
inline emulated::Float16x2<F> __habs2(emulated::Float16x2<F> a) {
  return {__habs(a.x), __habs(a.y)};
}
template <class F>
inline bool __hisnan(emulated::Float16<F> a) {
  return __builtin_isnan(float(a));
}
template <class F>
inline int __hisinf(emulated::Float16<F> a) {
  return __builtin_isinf(float(a)) ? (float(a) > 0 ? 1 : -1) : 0;
}
#define EMULATOR_16BIT(NAME, OP)                                           \
  template <class F>                                                       \
  inline bool NAME(emulated::Float16<F> a, emulated::Float16<F> b) {       \
    return a OP b;                                                         \
  }
EMULATOR_16BIT(__heq, ==)
EMULATOR_16BIT(__hne, !=)
EMULATOR_16BIT(__hlt, <)
EMULATOR_16BIT(__hgt, >)
EMULATOR_16BIT(__hle, <=)
EMULATOR_16BIT(__hge, >=)
#undef EMULATOR_16BIT

#if defined(__F16C__)
// The inner loops of dequantisation: both halves at once. Overloads are preferred to the templates above.
namespace emulator {
inline __m128 widen2(half2 a) { return _mm_cvtph_ps(_mm_cvtsi32_si128(same_bits<int>(a))); }
inline half2 narrow2(__m128 a) { return same_bits<half2>(_mm_cvtsi128_si32(_mm_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT))); }
}  // namespace emulator
inline half2 __hadd2(half2 a, half2 b) {
  return emulator::narrow2(_mm_add_ps(emulator::widen2(a), emulator::widen2(b)));
}
inline half2 __hsub2(half2 a, half2 b) {
  return emulator::narrow2(_mm_sub_ps(emulator::widen2(a), emulator::widen2(b)));
}
inline half2 __hmul2(half2 a, half2 b) {
  return emulator::narrow2(_mm_mul_ps(emulator::widen2(a), emulator::widen2(b)));
}
inline half2 __hfma2(half2 a, half2 b, half2 c) {  // fma_to_odd on both
  const __m128 addend = emulator::widen2(c), product = _mm_mul_ps(emulator::widen2(a), emulator::widen2(b));
  const __m128 sum = _mm_add_ps(product, addend), back = _mm_sub_ps(sum, product);
  const __m128 rest = _mm_add_ps(_mm_sub_ps(product, _mm_sub_ps(sum, back)), _mm_sub_ps(addend, back));
  const __m128 zero = _mm_setzero_ps();
  const __m128i lost = _mm_castps_si128(_mm_or_ps(_mm_cmplt_ps(rest, zero), _mm_cmpgt_ps(rest, zero)));
  const __m128i bits = _mm_castps_si128(sum), one = _mm_set1_epi32(1);
  const __m128i even = _mm_cmpeq_epi32(_mm_and_si128(bits, one), _mm_setzero_si128());
  // +1 when the rest has the sign of the sum, else -1
  const __m128i away = _mm_srai_epi32(_mm_xor_si128(bits, _mm_castps_si128(rest)), 31);
  const __m128i step = _mm_and_si128(_mm_and_si128(lost, even), _mm_or_si128(away, one));
  return emulator::narrow2(_mm_castsi128_ps(_mm_add_epi32(bits, step)));
}
#endif
