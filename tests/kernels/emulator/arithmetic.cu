// Single operations of the emulator, for comparison with numpy. All take (out, a, b, c, n): words in, words out.
#include "ptx.cuh"

#define KERNEL(NAME)                                                                                             \
  extern "C" __global__ void NAME(uint32_t* out, const uint32_t* a, const uint32_t* b, const uint32_t* c, int n); \
  CUDA_KERNEL_EXPORT(NAME)                                                                                       \
  extern "C" __global__ void NAME(uint32_t* out, const uint32_t* a, const uint32_t* b, const uint32_t* c, int n)

template <typename To, typename From>
static __device__ To as(From from) {
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
static __device__ int index() { return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); }

#define EACH \
  const int i = index(); \
  if (i >= n) return;

KERNEL(half_add) { EACH out[i] = as<uint32_t>(__hadd2(as<half2>(a[i]), as<half2>(b[i]))); }
KERNEL(half_sub) { EACH out[i] = as<uint32_t>(__hsub2(as<half2>(a[i]), as<half2>(b[i]))); }
KERNEL(half_mul) { EACH out[i] = as<uint32_t>(__hmul2(as<half2>(a[i]), as<half2>(b[i]))); }
KERNEL(half_fma) { EACH out[i] = as<uint32_t>(__hfma2(as<half2>(a[i]), as<half2>(b[i]), as<half2>(c[i]))); }
KERNEL(half_fma_one) {
  EACH const half2 x = as<half2>(a[i]), y = as<half2>(b[i]), z = as<half2>(c[i]);
  out[i] = as<uint32_t>(__halves2half2(__hfma(x.x, y.x, z.x), __hfma(x.y, y.y, z.y)));
}
KERNEL(half_from_float) { EACH out[i] = __half_as_ushort(__float2half_rn(__uint_as_float(a[i]))); }
KERNEL(half_to_float) { EACH out[i] = __float_as_uint(__half2float(__ushort_as_half(static_cast<ushort>(a[i])))); }
KERNEL(bf16_from_float) { EACH out[i] = __bfloat16_as_ushort(__float2bfloat16_rn(__uint_as_float(a[i]))); }
KERNEL(bf16_fma) {
  EACH const __nv_bfloat162 x = as<__nv_bfloat162>(a[i]), y = as<__nv_bfloat162>(b[i]), z = as<__nv_bfloat162>(c[i]);
  out[i] = as<uint32_t>(__hfma2(x, y, z));
}
KERNEL(byte_perm) { EACH out[i] = __byte_perm(a[i], b[i], c[i]); }
KERNEL(dot_bytes) { EACH out[i] = static_cast<uint32_t>(__dp4a(as<int>(a[i]), as<int>(b[i]), as<int>(c[i]))); }
KERNEL(to_int) { EACH out[i] = static_cast<uint32_t>(__float2int_rn(__uint_as_float(a[i]))); }
KERNEL(high_product) {
  EACH const unsigned long long product = __umul64hi(
      static_cast<unsigned long long>(a[i]) << 32 | b[i], static_cast<unsigned long long>(c[i]) << 32 | a[i]);
  out[2 * i] = static_cast<uint32_t>(product);
  out[2 * i + 1] = static_cast<uint32_t>(product >> 32);
}

// One warp: a [16][8] words (16x16 row major), b [8 columns][8] words, c [16][8] f32.
template <bool BF16>
static __device__ void multiply(uint32_t* out, const uint32_t* a, const uint32_t* b, const uint32_t* c) {
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, q = lane % 4;
  const uint32_t fa[4] = {a[g * 8 + q], a[(g + 8) * 8 + q], a[g * 8 + q + 4], a[(g + 8) * 8 + q + 4]};
  const uint32_t fb[2] = {b[g * 8 + q], b[g * 8 + q + 4]};
  float fc[4];
  for (int i = 0; i < 4; i++) fc[i] = __uint_as_float(c[(g + i / 2 * 8) * 8 + 2 * q + i % 2]);
  if (BF16)
    mma_bf16(fc, fa, fb);
  else
    mma_f16(fc, fa, fb);
  for (int i = 0; i < 4; i++) out[(g + i / 2 * 8) * 8 + 2 * q + i % 2] = __float_as_uint(fc[i]);
}
KERNEL(mma_half) { multiply<false>(out, a, b, c); }
KERNEL(mma_bfloat) { multiply<true>(out, a, b, c); }

// Four matrices of 8 rows of 4 words; register j of lane l goes to out[32 * j + l], then those of the transposed ones.
KERNEL(load_matrix) {
  __shared__ __align__(16) uint32_t rows[32][4];
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = 0; i < 4; i++) rows[lane][i] = a[lane * 4 + i];
  __syncwarp();
  uint32_t r[4];
  ldmatrix_x4(r, rows[lane]);
  for (int j = 0; j < 4; j++) out[32 * j + lane] = r[j];
  ldmatrix_x4_trans(r, rows[lane]);
  for (int j = 0; j < 4; j++) out[128 + 32 * j + lane] = r[j];
}

// Every thread of every block adds; n bounds the counter that goes round.
KERNEL(atomics) {
  float* sum = reinterpret_cast<float*>(out);
  half2* pair = reinterpret_cast<half2*>(out + 1);
  unsigned long long* wide = reinterpret_cast<unsigned long long*>(out + 2);
  const unsigned id = static_cast<unsigned>(index());
  atomicAdd(sum, 0.5f);
  atomicAdd(pair, __floats2half2_rn(1.f, -1.f));
  atomicAdd(wide, 0x100000001ull);
  atomicMax(out + 4, id);
  atomicMin(out + 5, id);
  atomicOr(out + 6, 1u << (id & 31));
  atomicInc(out + 7, static_cast<unsigned>(n));
  atomicCAS(out + 8, 0u, id + 1);
  atomicExch(out + 9, 7u);
  atomicXor(out + 10, id);
  atomicSub(out + 11, 2u);
  atomicAnd(out + 12, ~(1u << (id & 31)));
}
KERNEL(lanes) {
  const int lane = static_cast<int>(threadIdx.x);
  const unsigned all = 0xffffffffu;
  const float value = static_cast<float>(lane);
  out[lane] = static_cast<uint32_t>(__shfl_sync(all, value, 3, 8));
  out[32 + lane] = static_cast<uint32_t>(__shfl_up_sync(all, value, 2));
  out[64 + lane] = static_cast<uint32_t>(__shfl_down_sync(all, value, 5, 16));
  out[96 + lane] = static_cast<uint32_t>(__shfl_xor_sync(all, static_cast<long long>(lane) << 40, 9) >> 40);
  out[128 + lane] = __ballot_sync(all, lane % 3 == 0);
  out[160 + lane] = __any_sync(all, lane == 31) + 2u * __all_sync(all, lane < 31) + 4u * __all_sync(all, lane < 32);
  out[192 + lane] = __reduce_add_sync(all, static_cast<unsigned>(lane));
}
