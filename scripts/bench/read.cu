// What the memory of a device gives: a sum over everything, a copy, and nothing at all.
#include "ptx.cuh"

// Reads n 16-byte words once. The sum keeps the loads from being removed; out is as long as the grid.
extern "C" __global__ void __launch_bounds__(256) read_all(const uint4* in, uint32_t* out, long long n) {
  const long long step = (long long)gridDim.x * blockDim.x;
  long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  uint32_t sum = 0;
  for (; i + 3 * step < n; i += 4 * step) {
    uint4 v[4];
#pragma unroll
    for (int j = 0; j < 4; j++) v[j] = ld_stream(in + i + j * step);
#pragma unroll
    for (int j = 0; j < 4; j++) sum += v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  for (; i < n; i += step) {
    const uint4 v = ld_stream(in + i);
    sum += v.x ^ v.y ^ v.z ^ v.w;
  }
  out[(long long)blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
CUDA_KERNEL_EXPORT(read_all)

extern "C" __global__ void __launch_bounds__(256) copy_all(const uint4* in, uint4* out, long long n) {
  const long long step = (long long)gridDim.x * blockDim.x;
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) out[i] = ld_stream(in + i);
}
CUDA_KERNEL_EXPORT(copy_all)

extern "C" __global__ void nothing(int value) {}
CUDA_KERNEL_EXPORT(nothing)
