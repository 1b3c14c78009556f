// Kernels that show what a launch hands over, for the driver's tests.
#include "ptx.cuh"

// y[i] += a * x[i]
extern "C" __global__ void __launch_bounds__(256) add_scaled(const float* x, float* y, float a, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] += a * x[i];
}
CUDA_KERNEL_EXPORT(add_scaled)

// One argument of each letter of a signature, in an order that needs padding, written as f64 or as bits.
extern "C" __global__ void __launch_bounds__(32)
    write_arguments(int i, double* out, unsigned u, long long q, float f, unsigned long long w, const double* absent) {
  if (threadIdx.x) return;
  out[0] = i;
  out[1] = u;
  out[2] = (double)q;
  out[3] = f;
  ((unsigned long long*)out)[4] = w;
  out[5] = absent == nullptr ? 1 : 0;
}
CUDA_KERNEL_EXPORT(write_arguments)

// Sums 0..n-1 through n words of dynamic shared memory; out[1..6] are the sizes of the grid and of the block.
extern "C" __global__ void __launch_bounds__(256) sum_shared(long long* out, int n) {
  DYN_SMEM(int, words);
  for (int i = threadIdx.x; i < n; i += blockDim.x) words[i] = i;
  __syncthreads();
  if (threadIdx.x || threadIdx.y || threadIdx.z || blockIdx.x || blockIdx.y || blockIdx.z) return;
  long long sum = 0;
  for (int i = 0; i < n; i++) sum += words[i];
  out[0] = sum;
  out[1] = gridDim.x;
  out[2] = gridDim.y;
  out[3] = gridDim.z;
  out[4] = blockDim.x;
  out[5] = blockDim.y;
  out[6] = blockDim.z;
}
CUDA_KERNEL_EXPORT(sum_shared)

// y[i] = the first value at the address in table[i]
extern "C" __global__ void __launch_bounds__(32) follow(const unsigned long long* table, float* y, int n) {
  if ((int)threadIdx.x < n) y[threadIdx.x] = *(const float*)table[threadIdx.x];
}
CUDA_KERNEL_EXPORT(follow)
