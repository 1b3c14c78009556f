// Each wrapper of ptx.cuh alone, so that a GPU shows that it does what the emulator takes it to do. The selftest
// launches these (kernels/selftest/conformance.py); no decoder does.
#include "ptx.cuh"

// One block of 32 threads everywhere. out[lane]: the 16 bytes of in[lane], or zeros for lanes from `valid` on. The
// second half arrives through a group of its own, so that waiting for all but one delivers the first half alone.
extern "C" __global__ void __launch_bounds__(32) ptx_cp_async(const uint4* in, uint4* out, int valid) {
  __shared__ __align__(16) uint4 first[32], second[32];
  const int lane = threadIdx.x;
  cp_async16(&first[lane], in + lane, lane < valid);
  cp_async_commit();
  cp_async16(&second[lane], in + 32 + lane, lane < valid);
  cp_async_commit();
  cp_async_wait<1>();
  out[lane] = first[lane];
  cp_async_wait<0>();
  out[32 + lane] = second[lane];
}
CUDA_KERNEL_EXPORT(ptx_cp_async)

// in: four 8x8 matrices of 16-bit values, [32][8]; out: plain u32 [32][4], then transposed.
extern "C" __global__ void __launch_bounds__(32) ptx_ldmatrix(const uint4* in, uint32_t* out) {
  __shared__ __align__(16) uint4 rows[32];
  const int lane = threadIdx.x;
  rows[lane] = in[lane];
  __syncthreads();
  uint32_t plain[4], transposed[4];
  ldmatrix_x4(plain, &rows[lane]);
  ldmatrix_x4_trans(transposed, &rows[lane]);
  for (int i = 0; i < 4; i++) {
    out[lane * 4 + i] = plain[i];
    out[128 + lane * 4 + i] = transposed[i];
  }
}
CUDA_KERNEL_EXPORT(ptx_ldmatrix)

// Fragments as they lie in the lanes: a u32 [32][4], b u32 [32][2], c f32 [32][4], changed in place.
template <bool BF16>
__device__ __forceinline__ void multiply(const uint32_t* a, const uint32_t* b, float* c) {
  const int lane = threadIdx.x;
  uint32_t fa[4], fb[2];
  float fc[4];
  for (int i = 0; i < 4; i++) fa[i] = a[lane * 4 + i], fc[i] = c[lane * 4 + i];
  for (int i = 0; i < 2; i++) fb[i] = b[lane * 2 + i];
  if (BF16)
    mma_bf16(fc, fa, fb);
  else
    mma_f16(fc, fa, fb);
  for (int i = 0; i < 4; i++) c[lane * 4 + i] = fc[i];
}

extern "C" __global__ void __launch_bounds__(32) ptx_mma_f16(const uint32_t* a, const uint32_t* b, float* c) {
  multiply<false>(a, b, c);
}
CUDA_KERNEL_EXPORT(ptx_mma_f16)

extern "C" __global__ void __launch_bounds__(32) ptx_mma_bf16(const uint32_t* a, const uint32_t* b, float* c) {
  multiply<true>(a, b, c);
}
CUDA_KERNEL_EXPORT(ptx_mma_bf16)

// in u32 [3][32]: a, mask, bits.
extern "C" __global__ void __launch_bounds__(32) ptx_and_or(const uint32_t* in, uint32_t* out) {
  const int lane = threadIdx.x;
  out[lane] = and_or(in[lane], in[32 + lane], in[64 + lane]);
}
CUDA_KERNEL_EXPORT(ptx_and_or)

extern "C" __global__ void __launch_bounds__(32) ptx_ld_stream(const uint4* in, uint4* out) {
  out[threadIdx.x] = ld_stream(in + threadIdx.x);
}
CUDA_KERNEL_EXPORT(ptx_ld_stream)

extern "C" __global__ void __launch_bounds__(32) ptx_exp2_fast(const float* in, float* out) {
  out[threadIdx.x] = exp2_fast(in[threadIdx.x]);
}
CUDA_KERNEL_EXPORT(ptx_exp2_fast)
