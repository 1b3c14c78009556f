// Where the rows of a fused [q; k; v] product go: rotary embedding, q to its array, k and v into the cache.
#pragma once
#include "kv.cuh"
#include "t16.cuh"

struct QkvTarget {
  const float* bias;   // in the row order of the weight, or null
  const float2* rope;  // [positions][head_dim / 2] (cos, sin)
  DecodeState* state;
  void* q;  // [M][heads][head_dim]
  KvTables kv;
  int heads, head_dim, positions;
  bool staged;
};

// Where one token's values of one head go. out is null when there is no room: STATUS_FULL is set, nothing is written.
template <typename T>
struct QkvPlace {
  T* out;               // [head_dim]
  const float2* turns;  // [head_dim / 2] of its position; null for v
};

template <typename T>
__device__ __forceinline__ QkvPlace<T> qkv_place(const QkvTarget& to, int token, int head) {
  const int D = to.head_dim, position = to.state->pos + token;
  const KvPlace place = kv_place(to.state, token, to.staged);
  if (position >= to.positions || place.row >= to.kv.capacity) {
    atomicOr(&to.state->status, STATUS_FULL);
    return {nullptr, nullptr};
  }
  const bool rotated = head < to.heads + to.kv.kv_heads;
  const float2* turns = rotated ? to.rope + static_cast<size_t>(position) * (D / 2) : nullptr;
  if (head < to.heads) return {static_cast<T*>(to.q) + (static_cast<size_t>(token) * to.heads + head) * D, turns};
  const int kv_head = head - to.heads - (rotated ? 0 : to.kv.kv_heads);
  T* base = kv_base<T>(rotated ? to.kv.keys : to.kv.values, place.slot);
  return {base + kv_offset<1>(to.kv, kv_head, place.row) * D, turns};
}

// Rows `row` (0..7) and row + 8 of a tile of a head. Of q and k they are a rotary pair, dims d and d + D/2; of v dims d
// and d + 8.
template <typename T>
__device__ __forceinline__ void qkv_store(const QkvPlace<T>& to, int head_dim, int tile, int row, float first,
                                          float second) {
  if (!to.out) return;
  const int d = (to.turns ? 8 : T16_ROWS) * tile + row, further = to.turns ? head_dim / 2 : 8;
  if (to.turns) {
    const float2 turn = to.turns[d];
    const float a = first, b = second;
    first = a * turn.x - b * turn.y;
    second = b * turn.x + a * turn.y;
  }
  to.out[d] = Element<T>::from_float(first);
  to.out[d + further] = Element<T>::from_float(second);
}
