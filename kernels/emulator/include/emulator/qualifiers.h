// The words and vector types of CUDA C++ for g++.
#pragma once
#include <cstddef>
#include <cstdint>

// A kernel that is not exported (EMULATOR_ONLY) costs no code.
#define __global__ inline
#define __device__
#define __host__
#define __constant__ static
// The linker gathers all variables of functions in one section (shared.ld), which is poisoned before every block.
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __CUDA_ARCH__ 870

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;

#define EMULATOR_VECTOR2(NAME, T, ALIGNMENT) \
  struct alignas(ALIGNMENT) NAME##2 {        \
    T x, y;                                  \
  };                                         \
  static inline NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }
#define EMULATOR_VECTOR3(NAME, T) \
  struct NAME##3 {                \
    T x, y, z;                    \
  };                              \
  static inline NAME##3 make_##NAME##3(T x, T y, T z) { return {x, y, z}; }
#define EMULATOR_VECTOR4(NAME, T, ALIGNMENT) \
  struct alignas(ALIGNMENT) NAME##4 {        \
    T x, y, z, w;                            \
  };                                         \
  static inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }

EMULATOR_VECTOR2(char, signed char, 2)
EMULATOR_VECTOR2(uchar, unsigned char, 2)
EMULATOR_VECTOR2(short, short, 4)
EMULATOR_VECTOR2(ushort, unsigned short, 4)
EMULATOR_VECTOR2(int, int, 8)
EMULATOR_VECTOR2(uint, unsigned int, 8)
EMULATOR_VECTOR2(float, float, 8)
EMULATOR_VECTOR2(longlong, long long, 16)
EMULATOR_VECTOR2(ulonglong, unsigned long long, 16)
EMULATOR_VECTOR2(double, double, 16)
EMULATOR_VECTOR3(uchar, unsigned char)
EMULATOR_VECTOR3(int, int)
EMULATOR_VECTOR3(uint, unsigned int)
EMULATOR_VECTOR3(float, float)
EMULATOR_VECTOR4(char, signed char, 4)
EMULATOR_VECTOR4(uchar, unsigned char, 4)
EMULATOR_VECTOR4(short, short, 8)
EMULATOR_VECTOR4(ushort, unsigned short, 8)
EMULATOR_VECTOR4(int, int, 16)
EMULATOR_VECTOR4(uint, unsigned int, 16)
EMULATOR_VECTOR4(float, float, 16)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
