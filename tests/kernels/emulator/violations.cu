// Kernels that break one rule each, and their neighbours that do not. All take (out, in, n).
#include "ptx.cuh"

#define KERNEL(NAME)                                                        \
  extern "C" __global__ void NAME(float* out, const float* in, int n);     \
  CUDA_KERNEL_EXPORT(NAME)                                                  \
  extern "C" __global__ void NAME(float* out, const float* in, int n)

static __device__ int thread() { return static_cast<int>(threadIdx.x); }
static __device__ int block() { return static_cast<int>(blockIdx.x); }

// ---- Barriers

KERNEL(reversed) {
  __shared__ float values[128];
  values[thread()] = in[thread()];
  __syncthreads();
  out[thread()] = values[127 - thread()];
}
KERNEL(reversed_without_barrier) {
  __shared__ float values[128];
  values[thread()] = in[thread()];
  out[thread()] = values[127 - thread()];
}
KERNEL(reversed_in_warp) {
  DYN_SMEM(float, values);
  values[thread()] = in[thread()];
  __syncwarp();
  out[thread()] = values[thread() ^ 31];
}
KERNEL(reversed_in_warp_without_barrier) {
  DYN_SMEM(float, values);
  values[thread()] = in[thread()];
  (void)__shfl_sync(0xffffffffu, 1, 0);  // makes lanes meet, orders nothing
  out[thread()] = values[thread() ^ 31];
}
KERNEL(divergent_barrier) {
  if (thread() < 64) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
KERNEL(barrier_some_never_reach) {
  if (thread() < 32)
    __syncthreads();
  else if (thread() < 40)
    __shfl_sync(0xffffffffu, 1, 0);
}
KERNEL(early_return) {
  if (thread() >= n) return;
  __syncthreads();
  out[thread()] = 1.f;
}
KERNEL(votes) {
  const int any = __syncthreads_or(thread() == 5), all = __syncthreads_and(thread() < 100);
  out[thread()] = static_cast<float>(any + 2 * all + 4 * __syncthreads_count(thread() % 3 == 0));
}

// ---- Warp collectives

KERNEL(shuffle_without_own_lane) { out[thread()] = __shfl_xor_sync(0x0000ffffu, in[thread()], 1); }
KERNEL(shuffle_from_outside_the_mask) {
  if (thread() < 16) out[thread()] = __shfl_sync(0x0000ffffu, in[thread()], 20);
}
KERNEL(shuffle_after_lanes_returned) {
  if (thread() > 29) return;
  out[thread()] = __shfl_xor_sync(0xffffffffu, in[thread()], 1);
}
KERNEL(mismatched_collectives) {
  if (thread() < 16)
    out[thread()] = __shfl_xor_sync(0xffffffffu, in[thread()], 1);
  else
    out[thread()] = __shfl_xor_sync(0xffffffffu, in[thread()], 2);
}
KERNEL(overlapping_masks) {
  if (thread() < 16)
    out[thread()] = __shfl_sync(0x0001ffffu, in[thread()], 0);
  else
    out[thread()] = __shfl_sync(0xffffffffu, in[thread()], 0);
}
KERNEL(mma_of_half_a_warp) {
  float c[4] = {0.f, 0.f, 0.f, 0.f};
  const uint32_t a[4] = {0, 0, 0, 0}, b[2] = {0, 0};
  mma_f16(c, a, b);
  out[thread()] = c[0];
}

// ---- Shared memory

KERNEL(uninitialised_static) {
  __shared__ float values[64];
  if (thread() == 0) values[0] = 1.f;
  __syncthreads();
  out[thread()] = values[thread() % 64];
}
KERNEL(uninitialised_dynamic) {
  DYN_SMEM(float, values);
  if (thread() == 0) values[0] = 1.f;
  __syncthreads();
  out[thread()] = values[thread() % 64];
}
KERNEL(left_by_the_block_before) {
  __shared__ float values[64];
  if (block() == 0) values[thread() % 64] = 1.f;
  __syncthreads();
  out[block() * 128 + thread()] = values[thread() % 64];
}
KERNEL(beyond_dynamic) {
  DYN_SMEM(float, values);
  values[thread()] = 1.f;  // launched with room for 64
  out[thread()] = values[thread()];
}
KERNEL(beyond_static) {
  __shared__ float values[64];
  float* p = values;
  p[thread() + n - 127] = 1.f;  // n = 128: one more than there are
  out[thread()] = p[thread() % 64];
}

// ---- Global memory

KERNEL(beyond_the_output) { out[thread() + 1024] = 1.f; }
KERNEL(beyond_the_input) { out[thread()] = in[thread() + n]; }
KERNEL(one_beyond_the_input) { out[thread()] = in[thread() + 1]; }
KERNEL(misaligned_vector) {
  const float4 four = *reinterpret_cast<const float4*>(in + (thread() & 63) + 2);
  out[thread()] = four.x;
}
KERNEL(divided_by_zero) { out[thread()] = static_cast<float>(1000 / (thread() - n)); }
KERNEL(endless_recursion) {
  struct Deep {
    static __noinline__ float call(volatile float* before, int depth) {
      volatile float here[256];
      here[depth & 255] = before[depth & 255] + 1.f;
      return depth < 0 ? here[0] : call(here, depth + 1) + here[1];
    }
  };
  volatile float first[256] = {};
  out[thread()] = Deep::call(first, n);
}
KERNEL(trapped) {
  if (thread() == 7) __trap();
}

// ---- Asynchronous copies

KERNEL(copied) {
  DYN_SMEM(float, values);
  cp_async16(values + 4 * thread(), in + 4 * thread(), thread() < n);
  cp_async_commit();
  cp_async_wait<0>();
  for (int i = 0; i < 4; i++) out[4 * thread() + i] = values[4 * thread() + i];
}
KERNEL(copied_and_read_too_early) {
  DYN_SMEM(float, values);
  cp_async16(values + 4 * thread(), in + 4 * thread(), true);
  cp_async_commit();
  for (int i = 0; i < 4; i++) out[4 * thread() + i] = values[4 * thread() + i];
  cp_async_wait<0>();
}
KERNEL(copied_one_group_short) {
  DYN_SMEM(float, values);
  cp_async16(values + 8 * thread(), in + 4 * thread(), true);
  cp_async_commit();
  cp_async16(values + 8 * thread() + 4, in + 4 * thread(), true);
  cp_async_commit();
  cp_async_wait<1>();
  out[thread()] = values[8 * thread()];
  out[thread() + 128] = values[8 * thread() + 4];
  cp_async_wait<0>();
}
KERNEL(copied_without_barrier) {
  DYN_SMEM(float, values);
  cp_async16(values + 4 * thread(), in + 4 * thread(), true);
  cp_async_commit();
  cp_async_wait<0>();
  out[thread()] = values[4 * (127 - thread())];
}
KERNEL(copy_never_waited_for) {
  DYN_SMEM(float, values);
  cp_async16(values + 4 * thread(), in + 4 * thread(), true);
  cp_async_commit();
}
KERNEL(copy_misaligned) {
  DYN_SMEM(float, values);
  cp_async16(values + 4 * thread(), in + 4 * thread() + 1, true);
}
KERNEL(copy_to_global) { cp_async16(out + 4 * thread(), in + 4 * thread(), true); }
KERNEL(ldmatrix_misaligned) {
  DYN_SMEM(uint32_t, values);
  uint32_t r[4];
  ldmatrix_x4(r, values + 2 * thread() + 1);
  out[thread()] = static_cast<float>(r[0]);
}
KERNEL(ldmatrix_of_global) {
  uint32_t r[4];
  ldmatrix_x4(r, in + 4 * thread());
  out[thread()] = static_cast<float>(r[0]);
}

// ---- Between blocks: the last block to finish adds what all have left. in[] is unused; out[0] is the sum, out[1]
// counts blocks, out[2 + b] is what block b leaves.

template <bool FENCED, bool ATOMIC>
static __device__ void last_block_adds(float* out) {
  if (thread() != 0) return;
  int* counter = reinterpret_cast<int*>(out + 1);
  out[2 + block()] = 1.f;
  if (FENCED) __threadfence();
  const int before = ATOMIC ? atomicAdd(counter, 1) : (*counter)++;
  if (before != static_cast<int>(gridDim.x) - 1) return;
  if (FENCED) __threadfence();
  float sum = 0.f;
  for (int b = 0; b < static_cast<int>(gridDim.x); b++) sum += out[2 + b];
  out[0] = sum;
}
KERNEL(last_block) { last_block_adds<true, true>(out); }
KERNEL(last_block_without_fence) { last_block_adds<false, true>(out); }
KERNEL(last_block_without_atomic) { last_block_adds<true, false>(out); }
KERNEL(same_place_from_every_block) {
  if (thread() == 0) out[0] = 1.f;
}
KERNEL(static_in_every_block) {
  __shared__ float values[128];
  values[thread()] = 1.f;
  __syncthreads();
  out[block() * 128 + thread()] = values[127 - thread()];
}
// Blocks take turns, the last one first: they have to be resident together.
template <bool RELEASED>
static __device__ void in_turn(float* out) {
  int* turn = reinterpret_cast<int*>(out + 1);
  if (thread() == 0) {
    while (atomicAdd(turn, 0) != static_cast<int>(gridDim.x) - 1 - block()) __nanosleep(20);
    __threadfence();
    out[0] = out[0] * 2.f + static_cast<float>(block());
    __threadfence();
    if (RELEASED) atomicAdd(turn, 1);
  }
}
KERNEL(turns) { in_turn<true>(out); }
KERNEL(turn_never_passed_on) { in_turn<false>(out); }
