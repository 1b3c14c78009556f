// RMSNorm of the residual stream, after an optional addition to it. One block per token; a block's size depends on the
// width alone, so that a token's result does not depend on how many others are normed with it.
#include "element.cuh"

constexpr int MAX_WARPS = 8;

template <typename T>
struct __align__(8) Quad {
  T value[4];
};

__device__ __forceinline__ float sum_of_squares(float4 v) { return (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w); }

// Sum over the block, the same bits in every thread: lanes pairwise, then the warps in order.
__device__ __forceinline__ float block_sum(float value, float* of_warp) {
#pragma unroll
  for (int distance = 16; distance > 0; distance >>= 1) value += __shfl_xor_sync(0xffffffffu, value, distance);
  if ((threadIdx.x & 31) == 0) of_warp[threadIdx.x >> 5] = value;
  __syncthreads();
  const int warps = blockDim.x >> 5;
  float total = of_warp[0];
  for (int warp = 1; warp < warps; warp++) total += of_warp[warp];
  return total;
}

template <typename T>
__device__ __forceinline__ Quad<T> normed(float4 v, float scale, float4 gamma) {
  Quad<T> out;
  out.value[0] = Element<T>::from_float(v.x * scale * gamma.x);
  out.value[1] = Element<T>::from_float(v.y * scale * gamma.y);
  out.value[2] = Element<T>::from_float(v.z * scale * gamma.z);
  out.value[3] = Element<T>::from_float(v.w * scale * gamma.w);
  return out;
}

//   residual f32 [M][hidden]: += delta T [M][hidden] (or null)      gamma f32 [hidden]
//   y T [M][copies * hidden]: each row `copies` times side by side
// hidden is a multiple of 8; dynamic shared memory: hidden floats.
template <typename T>
__device__ __forceinline__ void rmsnorm_residual(float* residual, const T* delta, const float* gamma, T* y, int hidden,
                                                 int copies, float eps) {
  DYN_SMEM(float4, row);  // a thread reads only what it wrote itself
  __shared__ float of_warp[MAX_WARPS];
  const int quads = hidden / 4;
  const size_t token = blockIdx.x;
  float4* stream = reinterpret_cast<float4*>(residual) + token * quads;
  float squares = 0.f;
  for (int i = threadIdx.x; i < quads; i += blockDim.x) {
    float4 v = stream[i];
    if (delta) {
      const Quad<T> d = reinterpret_cast<const Quad<T>*>(delta)[token * quads + i];
      v.x += Element<T>::to_float(d.value[0]);
      v.y += Element<T>::to_float(d.value[1]);
      v.z += Element<T>::to_float(d.value[2]);
      v.w += Element<T>::to_float(d.value[3]);
      stream[i] = v;
    }
    row[i] = v;
    squares += sum_of_squares(v);
  }
  const float scale = rsqrtf(block_sum(squares, of_warp) / hidden + eps);
  Quad<T>* out = reinterpret_cast<Quad<T>*>(y) + token * quads * copies;
  for (int i = threadIdx.x; i < quads; i += blockDim.x) {
    const Quad<T> value = normed<T>(row[i], scale, reinterpret_cast<const float4*>(gamma)[i]);
    for (int copy = 0; copy < copies; copy++) out[static_cast<size_t>(copy) * quads + i] = value;
  }
}

#define RMSNORM_RESIDUAL(name, T)                                                                                 \
  extern "C" __global__ void __launch_bounds__(MAX_WARPS * 32)                                                    \
      name(float* residual, const T* delta, const float* gamma, T* y, int hidden, int copies, float eps) {        \
    rmsnorm_residual<T>(residual, delta, gamma, y, hidden, copies, eps);                                          \
  }                                                                                                               \
  CUDA_KERNEL_EXPORT(name)

RMSNORM_RESIDUAL(rmsnorm_residual_f16, half)
RMSNORM_RESIDUAL(rmsnorm_residual_bf16, __nv_bfloat16)
