// Where a slot's keys and values lie. One layer has a table of device addresses for keys and one for values, an entry
// per slot; at an entry's address: data [kv_heads][capacity][D], behind it for int8 f16 scales [kv_heads][capacity].
// A staged layer has one entry and holds only the tokens of this step, at rows 0, 1, ... (kernels/launch/kv.py).
#pragma once
#include "ptx.cuh"
#include "state.cuh"

struct KvTables {
  const unsigned long long* keys;    // [slots]
  const unsigned long long* values;  // [slots]
  int kv_heads, capacity;
};

struct KvPlace {  // of one token: which entry of the tables, which row of it
  int slot, row;
};

// Token m of this step. The caller compares row with the capacity before it writes.
__device__ __forceinline__ KvPlace kv_place(const DecodeState* state, int m, bool staged) {
  if (staged) return {0, m};
  return {state->slot, state->pos + m};
}

// First element of a slot's keys or values.
template <typename E> __device__ __forceinline__ E* kv_base(const unsigned long long* table, int slot) {
  return reinterpret_cast<E*>(table[slot]);
}

// Index of element 0 of (head, row) behind kv_base; without the factor D it is the index behind kv_scales.
template <int D> __device__ __forceinline__ size_t kv_offset(const KvTables& kv, int head, int row) {
  return (static_cast<size_t>(head) * kv.capacity + row) * D;
}

// f16 scales of an int8 slot; a value is data * scale.
template <int D>
__device__ __forceinline__ half* kv_scales(const KvTables& kv, const unsigned long long* table, int slot) {
  return reinterpret_cast<half*>(table[slot] + static_cast<size_t>(kv.kv_heads) * kv.capacity * D);
}
