// Philox4x64-10, a random number that is a function of key and counter alone, in the very bits of numpy's generator.
// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
#pragma once
#include "ptx.cuh"

constexpr int PHILOX_ROUNDS = 10;

// The upper 64 bits of a product, from 32-bit halves.
__device__ __forceinline__ uint64_t multiply_high(uint64_t a, uint64_t b) {
  const uint64_t low = 0xffffffffu, a0 = a & low, a1 = a >> 32, b0 = b & low, b1 = b >> 32;
  const uint64_t middle = a1 * b0 + ((a0 * b0) >> 32), other = a0 * b1 + (middle & low);
  return a1 * b1 + (middle >> 32) + (other >> 32);
}

// First of the four words of block `counter` under `key` (the upper words of both are 0).
__device__ __forceinline__ uint64_t philox_word(uint64_t key, uint64_t counter) {
  constexpr uint64_t MULTIPLIER_0 = 0xD2E7470EE14C6C93ull, MULTIPLIER_1 = 0xCA5A826395121157ull;
  constexpr uint64_t WEYL_0 = 0x9E3779B97F4A7C15ull, WEYL_1 = 0xBB67AE8584CAA73Bull;
  uint64_t c0 = counter, c1 = 0, c2 = 0, c3 = 0, k0 = key, k1 = 0;
  for (int round = 0; round < PHILOX_ROUNDS; round++) {
    const uint64_t high0 = multiply_high(MULTIPLIER_0, c0), low0 = MULTIPLIER_0 * c0;
    const uint64_t high1 = multiply_high(MULTIPLIER_1, c2), low1 = MULTIPLIER_1 * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += WEYL_0;
    k1 += WEYL_1;
  }
  return c0;
}

// What numpy.random.Generator(numpy.random.Philox(key=seed, counter=step)).random() gives first: in [0, 1). numpy
// counts up before it makes a block.
__device__ __forceinline__ double philox_uniform(uint64_t seed, int step) {
  return static_cast<double>(philox_word(seed, static_cast<uint64_t>(step) + 1) >> 11) * (1.0 / 9007199254740992.0);
}
