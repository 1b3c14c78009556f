// ldmatrix and mma.m16n8k16: the whole warp together.
#pragma once
#include <type_traits>

#include "emulator/async_copy.h"
#include "emulator/float16.h"
#include "emulator/warp.h"

namespace emulator {

EMULATOR_UNSEEN void need_full_warp(const char* op, const char* file, int line) {
  if (current->warp->lanes != ALL_LANES)
    fail("%s at %s:%d: the last warp of the block has fewer than %d lanes", op, file, line, WARP);
}

// Hands every lane the addresses of all rows.
EMULATOR_UNSEEN void exchange_rows(const uint16_t* (&rows)[WARP], const void* own, const Site* site) {
  need_full_warp("ldmatrix", site->file, site->line);
  if (reinterpret_cast<uintptr_t>(own) % 16)
    fail("ldmatrix at %s:%d: the row at %p is not aligned to 16 bytes", site->file, site->line, own);
  if (!in_shared_memory(own, 16))
    fail("ldmatrix at %s:%d: the row at %p is not in the block's shared memory", site->file, site->line, own);
  Gather& gather = gather_of(ALL_LANES, site);
  Gather::Slots& slots = slots_of(gather);
  slots.words[current->lane] = reinterpret_cast<uintptr_t>(own);
  meet(gather);
  for (int i = 0; i < WARP; i++) rows[i] = reinterpret_cast<const uint16_t*>(slots.words[i]);
}

// Lane 8j+i names row i of matrix j; lane l gets two neighbours of row l/4 (transposed: of column l/4) in r[j].
inline void load_matrices(uint32_t (&r)[4], const void* own, bool transposed, const Site* site) {
  const uint16_t* rows[WARP];
  exchange_rows(rows, own, site);
  const int group = lane() / 4, pair = lane() % 4 * 2;
  for (int j = 0; j < 4; j++) {
    const uint16_t* const* matrix = rows + 8 * j;
    const uint32_t low = transposed ? matrix[pair][group] : matrix[group][pair];
    const uint32_t high = transposed ? matrix[pair + 1][group] : matrix[group][pair + 1];
    r[j] = low | high << 16;
  }
}

template <class Element>
struct FormatOf;
template <class Format>
struct FormatOf<emulated::Float16<Format>> {
  using type = Format;
};

// The two 16-bit numbers of a register as fp32.
template <class Format>
EMULATOR_UNSEEN void widen_pair(float* to, uint32_t word) {
#if defined(__F16C__)
  if constexpr (std::is_same<Format, emulated::FormatF16>::value) {
    _mm_storel_pi(reinterpret_cast<__m64*>(to), _mm_cvtph_ps(_mm_cvtsi32_si128(static_cast<int>(word))));
    return;
  }
#endif
  to[0] = Format::widen(static_cast<uint16_t>(word));
  to[1] = Format::widen(static_cast<uint16_t>(word >> 16));
}

// c += a * b, sums over k in fp32, in order. Products of two 16-bit numbers are exact in fp32.
EMULATOR_UNSEEN void multiply(Matrices& m) {
  typedef float Row __attribute__((vector_size(32)));
  const Row* b = reinterpret_cast<const Row*>(m.b);
  Row* c = reinterpret_cast<Row*>(m.c);
  for (int first = 0; first < 16; first += 8) {  // eight rows at once: their sums fill half the registers
    Row sums[8] = {};
    for (int k = 0; k < 16; k++)
      for (int i = 0; i < 8; i++) sums[i] += m.a[first + i][k] * b[k];
    for (int i = 0; i < 8; i++) c[first + i] += sums[i];
  }
}

template <class Element>
EMULATOR_UNSEEN void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Site* site) {
  using Format = typename FormatOf<Element>::type;
  need_full_warp("mma", site->file, site->line);
  Gather& gather = gather_of(ALL_LANES, site);
  Matrices& m = slots_of(gather).matrices;
  const int row = current->lane / 4, column = current->lane % 4 * 2;
  widen_pair<Format>(&m.a[row][column], a[0]);
  widen_pair<Format>(&m.a[row + 8][column], a[1]);
  widen_pair<Format>(&m.a[row][column + 8], a[2]);
  widen_pair<Format>(&m.a[row + 8][column + 8], a[3]);
  float pairs[4];
  widen_pair<Format>(pairs, b[0]);
  widen_pair<Format>(pairs + 2, b[1]);
  for (int i = 0; i < 4; i++) m.b[column + (i & 1) + (i >> 1) * 8][row] = pairs[i];
  for (int i = 0; i < 4; i++) m.c[row + (i >> 1) * 8][column + (i & 1)] = c[i];
  if (arrive(gather)) {
    multiply(m);
    finish(gather);
  } else {
    await(gather);
  }
  for (int i = 0; i < 4; i++) c[i] = m.c[row + (i >> 1) * 8][column + (i & 1)];
}

}  // namespace emulator
