// T16: int4 weights as lanes of a warp hold them in an mma (kernels/packing/t16.py packs them).
//
//   qw  uint4 [N/16][K/64][32 lanes]   a tile of 16 rows x 64 inputs is 512 bytes; K/64 rounded up
//   sc  half2 [N/16][G][8]             (s[g], s[g+8]), G = K / group
//   zp  uint8 [N/16][G][8]             z[g] | z[g+8] << 4
//
// Lane l = 4g + q owns four words, one per mma of 16 inputs. Nibbles of word s, from the lowest (row, input):
//
//   nibble  0        1        2        3        4        5        6        7
//   row     g        g+8      g        g+8      g        g+8      g        g+8
//   input   c        c        c+2      c+2      c+1      c+1      c+3      c+3
//
// with c = 64b + 32(s/2) + 8q + 4(s%2) in tile b of a row of tiles.
//
// Which inputs one mma sums is ours to choose, and c is chosen for the activations: lane q needs inputs 64b + 8q to
// 64b + 8q + 7 for words 0 and 1, and 32 further for words 2 and 3: two loads of 16 bytes and no permutation. Words 0
// and 1 are inputs 0..31 of the tile, 2 and 3 are 32..63, so that groups of 32 are scaled between them.
//
// t16_dequantize gives f[0..3] = rows g, g+8, g, g+8 with inputs (c, c+1), (c, c+1), (c+2, c+3), (c+2, c+3). As the m16
// operand of an mma they are a[0..3]; as n8 operands {f[0], f[2]} is row g and {f[1], f[3]} is row g+8. The other
// operand takes the same inputs: t16_inputs of token g as the n8 operand; as m16, words of tokens g and g+8.
#pragma once
#include "element.cuh"

constexpr int T16_ROWS = 16;
constexpr int T16_INPUTS = 64;
constexpr int T16_TILE = 32;  // uint4 per tile

struct T16Weights {
  const uint4* qw;
  const half2* sc;
  const uint8_t* zp;
};

// Zero points of rows g and g+8, in the form that t16_dequantize subtracts them.
template <typename T>
struct T16Zeros {
  typename Element<T>::Pair first, second;
};

template <typename T>
__device__ __forceinline__ T16Zeros<T> t16_zeros(uint32_t packed);

// f16 has 10 bits of mantissa: 0x6400 | q is 1024 + q, and with q four bits higher 1024 + 16q. So the second row needs
// no shift: (1024 + 16q) / 16 - (64 + z) in one fma, exact like everything here.
template <>
__device__ __forceinline__ T16Zeros<half> t16_zeros<half>(uint32_t packed) {
  const uint32_t both = packed * 0x00010001u;
  return {bits_as<half2>(and_or(both, 0x000f000fu, 0x64006400u)),   // 1024 + z[g]
          bits_as<half2>(and_or(both, 0x00f000f0u, 0xd400d400u))};  // -(64 + z[g+8])
}

// bf16 has 7: 0x4300 | q is 128 + q, and every nibble is shifted to the lowest place.
template <>
__device__ __forceinline__ T16Zeros<__nv_bfloat16> t16_zeros<__nv_bfloat16>(uint32_t packed) {
  const uint32_t both = packed * 0x00010001u;
  return {bits_as<__nv_bfloat162>(and_or(both, 0x000f000fu, 0xc300c300u)),        // -(128 + z[g])
          bits_as<__nv_bfloat162>(and_or(both >> 4, 0x000f000fu, 0xc300c300u))};  // -(128 + z[g+8])
}

// q - z of the eight nibbles of a word, exact in T; see above for their places.
__device__ __forceinline__ void t16_dequantize(uint32_t (&f)[4], uint32_t word, const T16Zeros<half>& zeros) {
  const half2 sixteenth = bits_as<half2>(0x2c002c00u);
  const uint32_t upper = word >> 8;
  f[0] = bits_as<uint32_t>(__hsub2(bits_as<half2>(and_or(word, 0x000f000fu, 0x64006400u)), zeros.first));
  f[1] = bits_as<uint32_t>(__hfma2(bits_as<half2>(and_or(word, 0x00f000f0u, 0x64006400u)), sixteenth, zeros.second));
  f[2] = bits_as<uint32_t>(__hsub2(bits_as<half2>(and_or(upper, 0x000f000fu, 0x64006400u)), zeros.first));
  f[3] = bits_as<uint32_t>(__hfma2(bits_as<half2>(and_or(upper, 0x00f000f0u, 0x64006400u)), sixteenth, zeros.second));
}

__device__ __forceinline__ void t16_dequantize(uint32_t (&f)[4], uint32_t word, const T16Zeros<__nv_bfloat16>& zeros) {
  const __nv_bfloat162 one = bits_as<__nv_bfloat162>(0x3f803f80u);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const uint32_t biased = and_or(word >> (4 * i), 0x000f000fu, 0x43004300u);
    f[i] = bits_as<uint32_t>(__hfma2(bits_as<__nv_bfloat162>(biased), one, i & 1 ? zeros.second : zeros.first));
  }
}

// The n8 operand of word s for a token whose inputs 64b + 32(s/2) + 8q .. +7 are `run`.
__device__ __forceinline__ void t16_inputs(uint32_t (&b)[2], const uint4& run, int s) {
  b[0] = s & 1 ? run.z : run.x;
  b[1] = s & 1 ? run.w : run.y;
}
