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

// One token's rows n and n + 8. Of a q or k head they are a rotary pair, dims d and d + D/2; of v dims d and d + 8.
template <typename T>
__device__ __forceinline__ void store_qkv(const QkvTarget& to, int token, int n, float first, float second) {
  const int D = to.head_dim, head = n / D, tile = n % D / T16_ROWS, row = n % T16_ROWS, position = to.state->pos + token;
  const KvPlace place = kv_place(to.state, token, to.staged);
  if (position >= to.positions || place.row >= to.kv.capacity) {
    atomicOr(&to.state->status, STATUS_FULL);
    return;
  }
  const bool rotated = head < to.heads + to.kv.kv_heads;
  const int d = rotated ? 8 * tile + row : T16_ROWS * tile + row, further = rotated ? D / 2 : 8;
  if (rotated) {
    const float2 turn = to.rope[static_cast<size_t>(position) * (D / 2) + d];
    const float a = first, b = second;
    first = a * turn.x - b * turn.y;
    second = b * turn.x + a * turn.y;
  }
  T* out;
  if (head < to.heads) {
    out = static_cast<T*>(to.q) + (static_cast<size_t>(token) * to.heads + head) * D;
  } else {
    const int kv_head = head - to.heads - (rotated ? 0 : to.kv.kv_heads);
    out = kv_base<T>(rotated ? to.kv.keys : to.kv.values, place.slot) + kv_offset<1>(to.kv, kv_head, place.row) * D;
  }
  out[d] = Element<T>::from_float(first);
  out[d + further] = Element<T>::from_float(second);
}
