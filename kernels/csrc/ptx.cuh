// Thin wrappers over the PTX that CUDA C++ has no name for. Everything else in this folder is plain CUDA C++.
//
// With CUDA_EMULATOR the same names run on the CPU (kernels/emulator). Beside the export macros this is the only file
// that knows about the emulator.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#ifdef __CUDACC_RTC__  // NVRTC has no host headers
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#else
#include <cstdint>
#endif

#ifdef CUDA_EMULATOR

// DYN_SMEM(T, name): `T* name`, the block's dynamic shared memory.
#define DYN_SMEM(T, name) T* name = static_cast<T*>(emulator::dynamic_shared())
// CUDA_KERNEL_EXPORT(name): makes a kernel known by its name to who loads the compiled file.
#define CUDA_KERNEL_EXPORT(name) EMULATOR_EXPORT(name)
#define cp_async16(dst, src, pred) emulator::async_copy(dst, src, 16, (pred) ? 16 : 0, __FILE__, __LINE__)
#define cp_async_commit() emulator::async_commit()
template <int N>
inline void cp_async_wait() {
  emulator::async_wait(N);
}
#define ldmatrix_x4(r, p) emulator::load_matrices(r, p, false, EMULATOR_SITE("ldmatrix"))
#define ldmatrix_x4_trans(r, p) emulator::load_matrices(r, p, true, EMULATOR_SITE("ldmatrix"))
#define mma_f16(c, a, b) emulator::multiply_add<__half>(c, a, b, EMULATOR_SITE("mma"))
#define mma_bf16(c, a, b) emulator::multiply_add<__nv_bfloat16>(c, a, b, EMULATOR_SITE("mma"))
inline uint32_t and_or(uint32_t a, uint32_t mask, uint32_t bits) { return (a & mask) | bits; }
inline uint4 ld_stream(const uint4* p) { return *p; }
inline float exp2_fast(float x) { return exp2f(x); }

#else

#define DYN_SMEM(T, name)                     \
  extern __shared__ uint4 name##_dynamic[]; \
  T* name = reinterpret_cast<T*>(name##_dynamic)
#define CUDA_KERNEL_EXPORT(name)

__device__ __forceinline__ uint32_t shared_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }

// Copies 16 bytes from global to shared memory behind the thread's back; zeros when !pred (src is not read then).
// Both addresses are multiples of 16. Nothing may touch the destination before the wait for its group.
__device__ __forceinline__ void cp_async16(void* dst, const void* src, bool pred) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(shared_address(dst)), "l"(src),
               "r"(pred ? 16 : 0)
               : "memory");
}

// Ends a group of copies.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Waits until at most N of this thread's groups are under way. Other threads' copies need a barrier after it.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
}

// Four 8x8 matrices of 16-bit elements from shared memory: lane 8j + i gives the address of row i of matrix j (16
// bytes, aligned); lane l gets elements 2(l%4) and 2(l%4)+1 of row l/4 of matrix j in r[j].
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(p))
               : "memory");
}

// The same, each matrix transposed.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(p))
               : "memory");
}

// c (16x8 f32) += a (16x16, row major) * b (16x8, column major), the whole warp together. With g = lane/4, q = lane%4:
// a[0] row g, columns 2q, 2q+1; a[1] row g+8; a[2] row g, columns 2q+8, 2q+9; a[3] row g+8, the same columns;
// b[0] rows 2q, 2q+1 of column g; b[1] rows 2q+8, 2q+9; c[0], c[1] row g, columns 2q, 2q+1; c[2], c[3] row g+8.
__device__ __forceinline__ void mma_f16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// (a & mask) | bits in one instruction.
__device__ __forceinline__ uint32_t and_or(uint32_t a, uint32_t mask, uint32_t bits) {
  uint32_t r;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;\n" : "=r"(r) : "r"(a), "r"(mask), "r"(bits));
  return r;
}

// Weights: read once, so keep them out of L1.
__device__ __forceinline__ uint4 ld_stream(const uint4* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

// 2^x with 2 ulp, subnormal results flushed to zero.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

#endif
