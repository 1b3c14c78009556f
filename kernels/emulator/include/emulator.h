// cuemu.h - run CUDA C++ kernel sources on a CPU, for tests.  Header only, C++17, no CUDA toolkit needed.
//
//   g++ -x c++ -std=c++17 -DEMU -I<this dir> kernel.cu ...     (this dir also holds stub cuda_fp16.h, ...)
//
// Each CUDA thread of a block is a fiber (own stack, hand-written switch) on ONE OS thread.  Blocks run one
// after the other, or EMULATOR_RESIDENT=n at a time (for kernels whose blocks spin on each other).
// Checked at run time: deadlock / divergent barrier, warp-collective mask and op mismatches, reads of shared
// memory never written (poison), cp.async data used before its wait (delivery is delayed to the wait, and the
// destination is poisoned at issue).  Under -fsanitize=thread every fiber is its own TSan thread and only
// barriers, __syncwarp and fences create happens-before edges: a missing barrier is a data race report.
// Under -fsanitize=address,undefined: out of bounds, misaligned vector access, shifts, overflow.
// Environment: EMULATOR_SEED=n (shuffle the order in which warps, lanes, blocks run), EMULATOR_RESIDENT=n.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define EMU_ASAN 1
#define EMU_NOSAN __attribute__((no_sanitize("address"), noinline))
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#define EMU_TSAN 1
#define EMU_NOSAN __attribute__((no_sanitize("thread"), noinline))
extern "C" { void* __tsan_create_fiber(unsigned); void __tsan_switch_to_fiber(void*, unsigned);
             void* __tsan_get_current_fiber(void); }
#elif !defined(EMU_ASAN)
#define EMU_NOSAN __attribute__((noinline))
#endif

// ------------------------------------------------------------------------------------------- qualifiers
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static __attribute__((section("emulated_shared")))
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __CUDACC_EMU__ 1
#define __CUDA_ARCH__ 870

// ------------------------------------------------------------------------------------------ vector types
#define EMU_V2(N, T, A) struct alignas(A) N##2 { T x, y; }; \
  static inline N##2 make_##N##2(T x, T y) { return {x, y}; }
#define EMU_V3(N, T) struct N##3 { T x, y, z; }; static inline N##3 make_##N##3(T x, T y, T z) { return {x, y, z}; }
#define EMU_V4(N, T, A) struct alignas(A) N##4 { T x, y, z, w; }; \
  static inline N##4 make_##N##4(T x, T y, T z, T w) { return {x, y, z, w}; }
typedef unsigned char uchar; typedef unsigned short ushort; typedef unsigned int uint;
typedef long long longlong; typedef unsigned long long ulonglong;
EMU_V2(char, signed char, 2) EMU_V2(uchar, uchar, 2) EMU_V2(short, short, 4) EMU_V2(ushort, ushort, 4)
EMU_V2(int, int, 8) EMU_V2(uint, uint, 8) EMU_V2(float, float, 8) EMU_V2(longlong, longlong, 16)
EMU_V2(ulonglong, ulonglong, 16) EMU_V2(double, double, 16)
EMU_V3(int, int) EMU_V3(uint, uint) EMU_V3(float, float)
EMU_V4(char, signed char, 4) EMU_V4(uchar, uchar, 4) EMU_V4(short, short, 8) EMU_V4(ushort, ushort, 8)
EMU_V4(int, int, 16) EMU_V4(uint, uint, 16) EMU_V4(float, float, 16)
struct dim3 { unsigned x, y, z; dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {} };

// -------------------------------------------------------------------------------------------- half, bf16
#if defined(__aarch64__) && __GNUC__ < 13
typedef __fp16 cuemu_f16;
#else
typedef _Float16 cuemu_f16;
#endif
namespace emulator {
static inline float h2f(uint16_t b) { cuemu_f16 h; memcpy(&h, &b, 2); return (float)h; }
static inline uint16_t f2h(float f) { cuemu_f16 h = (cuemu_f16)f; uint16_t b; memcpy(&b, &h, 2); return b; }
static inline uint16_t d2h(double f) { cuemu_f16 h = (cuemu_f16)f; uint16_t b; memcpy(&b, &h, 2); return b; }
static inline float b2f(uint16_t b) { uint32_t u = (uint32_t)b << 16; float f; memcpy(&f, &u, 4); return f; }
static inline uint16_t f2b(float f) {  // round to nearest even
  uint32_t u; memcpy(&u, &f, 4);
  if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
struct F16 { static float up(uint16_t b) { return h2f(b); } static uint16_t dn(float f) { return f2h(f); }
  static uint16_t fma(uint16_t a, uint16_t b, uint16_t c) { return d2h((double)h2f(a) * h2f(b) + h2f(c)); } };
struct B16 { static float up(uint16_t b) { return b2f(b); } static uint16_t dn(float f) { return f2b(f); }
  static uint16_t fma(uint16_t a, uint16_t b, uint16_t c) { return f2b(std::fma(b2f(a), b2f(b), b2f(c))); } };
template <class P> struct h16 { uint16_t v; h16() = default; h16(float f) : v(P::dn(f)) {}
  h16(double f) : v(P::dn((float)f)) {} h16(int f) : v(P::dn((float)f)) {} operator float() const { return P::up(v); }
  static h16 raw(uint16_t b) { h16 r; r.v = b; return r; }
  h16& operator+=(h16 o) { return *this = h16((float)*this + (float)o); } };
template <class P> struct alignas(4) h16x2 { h16<P> x, y; h16x2() = default; h16x2(h16<P> a, h16<P> b) : x(a), y(b) {} };
}  // namespace emulator
using __half = emulator::h16<emulator::F16>; using half = __half; using __half2 = emulator::h16x2<emulator::F16>; using half2 = __half2;
using __nv_bfloat16 = emulator::h16<emulator::B16>; using nv_bfloat16 = __nv_bfloat16;
using __nv_bfloat162 = emulator::h16x2<emulator::B16>; using nv_bfloat162 = __nv_bfloat162;
#define EMU_H1(name, expr) template <class P> static inline emulator::h16<P> name(emulator::h16<P> a, emulator::h16<P> b) \
  { float p = a, q = b; (void)p; (void)q; return emulator::h16<P>(expr); } \
  template <class P> static inline emulator::h16x2<P> name##2(emulator::h16x2<P> a, emulator::h16x2<P> b) { return {name(a.x, b.x), name(a.y, b.y)}; }
EMU_H1(__hadd, p + q) EMU_H1(__hsub, p - q) EMU_H1(__hmul, p * q) EMU_H1(__hmax, p > q ? p : q) EMU_H1(__hmin, p < q ? p : q)
EMU_H1(__hdiv, p / q)
template <class P> static inline emulator::h16<P> __hfma(emulator::h16<P> a, emulator::h16<P> b, emulator::h16<P> c) { return emulator::h16<P>::raw(P::fma(a.v, b.v, c.v)); }
template <class P> static inline emulator::h16x2<P> __hfma2(emulator::h16x2<P> a, emulator::h16x2<P> b, emulator::h16x2<P> c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }
template <class P> static inline emulator::h16x2<P> __hneg2(emulator::h16x2<P> a) { return {emulator::h16<P>::raw(a.x.v ^ 0x8000), emulator::h16<P>::raw(a.y.v ^ 0x8000)}; }
static inline half __float2half(float f) { return half(f); }
static inline half __float2half_rn(float f) { return half(f); }
static inline float __half2float(half h) { return h; }
static inline half2 __half2half2(half h) { return {h, h}; }
static inline half2 __halves2half2(half a, half b) { return {a, b}; }
static inline half2 __float2half2_rn(float f) { return {half(f), half(f)}; }
static inline half2 __floats2half2_rn(float a, float b) { return {half(a), half(b)}; }
static inline half2 __float22half2_rn(float2 f) { return {half(f.x), half(f.y)}; }
static inline float2 __half22float2(half2 h) { return {(float)h.x, (float)h.y}; }
static inline half __low2half(half2 h) { return h.x; }
static inline half __high2half(half2 h) { return h.y; }
static inline float __low2float(half2 h) { return h.x; }
static inline float __high2float(half2 h) { return h.y; }
static inline half __ushort_as_half(ushort u) { return half::raw(u); }
static inline ushort __half_as_ushort(half h) { return h.v; }
static inline nv_bfloat16 __float2bfloat16(float f) { return nv_bfloat16(f); }
static inline nv_bfloat16 __float2bfloat16_rn(float f) { return nv_bfloat16(f); }
static inline float __bfloat162float(nv_bfloat16 h) { return h; }
static inline nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {nv_bfloat16(a), nv_bfloat16(b)}; }
static inline float2 __bfloat1622float2(nv_bfloat162 h) { return {(float)h.x, (float)h.y}; }
static inline nv_bfloat162 __bfloat162bfloat162(nv_bfloat16 h) { return {h, h}; }

// ------------------------------------------------------------------------------------- fibers, scheduler
namespace emulator {
// Runtime state is plain memory from mmap, touched only by EMU_NOSAN functions, so that TSan sees kernels and nothing else.
struct CpAsync { void* dst; const void* src; int bytes, src_bytes, group; };
struct WarpBar { uint32_t mask, arrived, gen; const char* op; int line; char token; alignas(16) uint32_t slot[2][32][16]; };
struct Block;
constexpr int MAXBARS = 6, MAXCP = 256, MAXT = 1024;
struct Warp { Block* blk; int index; uint32_t alive; int nbars; WarpBar bars[MAXBARS]; };
enum State { READY, WARP_WAIT, BLOCK_WAIT, SPIN, DONE };
struct Fiber { uint3 tid; int lane; Warp* warp; Block* blk; State st; void* sp; char* stack; WarpBar* wbar; uint32_t wgen; int barid; uint32_t bgen;
  const char* op; const char* file; int line, cp_group, ncp; void *tsan, *fake; Fiber* next; CpAsync cps[MAXCP]; };
struct BlockBar { int arrived; uint32_t gen; const char* file; int line, vote_or, vote_and, vote_cnt, res_or, res_and, res_cnt; char token; };
struct Block { uint3 idx; int nthreads, alive; Fiber* f[MAXT]; int order[MAXT]; BlockBar bar[16]; char *smem, *statics; Block* next; Warp warps[MAXT / 32]; };
struct Runtime { uint3 grid, block; size_t smem; void (*tramp)(void*); void* args; bool failed; void *main_sp, *main_tsan, *main_fake; const void* main_stack;
  size_t main_stack_size; uint64_t rng; char launch_token, done_token, fence_token; Fiber* pool; Block* bpool; long switches; };
inline Runtime rt; inline Fiber* cur = nullptr; inline std::string error;
constexpr size_t STACK = 256 << 10, MAXSMEM = 228 << 10;
template <class T> EMU_NOSAN T* grab(size_t n = sizeof(T)) { return (T*)mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0); }

extern "C" void cuemu_switch(void** save, void* load);
#if defined(__x86_64__)
asm(R"(.weak cuemu_switch
.type cuemu_switch,@function
cuemu_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp,(%rdi); movq %rsi,%rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");
static void* init_stack(char* top, void (*fn)()) { void** p = (void**)((uintptr_t)top & ~15ull); *--p = nullptr; *--p = (void*)fn;
  for (int i = 0; i < 6; i++) *--p = nullptr; return p; }
#elif defined(__aarch64__)
asm(R"(.weak cuemu_switch
.type cuemu_switch,%function
cuemu_switch:
  sub sp,sp,#160
  stp x19,x20,[sp]; stp x21,x22,[sp,#16]; stp x23,x24,[sp,#32]; stp x25,x26,[sp,#48]; stp x27,x28,[sp,#64]
  stp x29,x30,[sp,#80]; stp d8,d9,[sp,#96]; stp d10,d11,[sp,#112]; stp d12,d13,[sp,#128]; stp d14,d15,[sp,#144]
  mov x9,sp; str x9,[x0]; mov sp,x1
  ldp x19,x20,[sp]; ldp x21,x22,[sp,#16]; ldp x23,x24,[sp,#32]; ldp x25,x26,[sp,#48]; ldp x27,x28,[sp,#64]
  ldp x29,x30,[sp,#80]; ldp d8,d9,[sp,#96]; ldp d10,d11,[sp,#112]; ldp d12,d13,[sp,#128]; ldp d14,d15,[sp,#144]
  add sp,sp,#160
  ret
)");
static void* init_stack(char* top, void (*fn)()) { char* p = (char*)((uintptr_t)top & ~15ull) - 160; memset(p, 0, 160);
  *(void**)(p + 88) = (void*)fn; return p; }
#else
#error "cuemu: add a context switch for this CPU"
#endif

EMU_NOSAN static void to_main() {
  Fiber* f = cur;
#ifdef EMU_ASAN
  __sanitizer_start_switch_fiber(f->st == DONE ? nullptr : &f->fake, rt.main_stack, rt.main_stack_size);
#endif
#ifdef EMU_TSAN
  __tsan_switch_to_fiber(rt.main_tsan, 1);
#endif
  cuemu_switch(&f->sp, rt.main_sp);
#ifdef EMU_ASAN
  __sanitizer_finish_switch_fiber(f->fake, nullptr, nullptr);
#endif
}
EMU_NOSAN static void to_fiber(Fiber* f) {
  cur = f; rt.switches++;
#ifdef EMU_ASAN
  __sanitizer_start_switch_fiber(&rt.main_fake, f->stack, STACK);
#endif
#ifdef EMU_TSAN
  __tsan_switch_to_fiber(f->tsan, 1);
#endif
  cuemu_switch(&rt.main_sp, f->sp);
#ifdef EMU_ASAN
  __sanitizer_finish_switch_fiber(rt.main_fake, nullptr, nullptr);
#endif
}
EMU_NOSAN static void fail(const char* fmt, ...) {   // stops the launch: control never returns to the fiber
  char b[1024], c[256]; va_list ap; va_start(ap, fmt); vsnprintf(b, sizeof b, fmt, ap); va_end(ap);
  if (!rt.failed) { rt.failed = true; c[0] = 0;
    if (cur) snprintf(c, sizeof c, " [block (%u,%u,%u) thread (%u,%u,%u)]", cur->blk->idx.x, cur->blk->idx.y, cur->blk->idx.z, cur->tid.x, cur->tid.y, cur->tid.z);
    error = b; error += c; }
  if (cur) for (;;) to_main();
}
EMU_NOSAN static void complete(BlockBar& b) { b.arrived = 0; b.gen++; b.res_or = b.vote_or; b.res_and = b.vote_and; b.res_cnt = b.vote_cnt;
  b.vote_or = 0; b.vote_and = 1; b.vote_cnt = 0; b.file = nullptr; }
EMU_NOSAN static void fiber_main() {
#ifdef EMU_ASAN
  __sanitizer_finish_switch_fiber(cur->fake, &rt.main_stack, &rt.main_stack_size);
#endif
#ifdef EMU_TSAN
  __tsan_acquire(&rt.launch_token);
#endif
  rt.tramp(rt.args);
  Fiber* f = cur;
  if (f->ncp) fail("thread exits with cp.async copies not waited for");
#ifdef EMU_TSAN
  __tsan_release(&rt.done_token);
#endif
  f->st = DONE; f->blk->alive--; f->warp->alive &= ~(1u << f->lane);
  BlockBar& b = f->blk->bar[0];                         // an exited thread no longer counts at __syncthreads
  if (b.arrived && b.arrived == f->blk->alive) complete(b);
  for (;;) to_main();
}
EMU_NOSAN static void yield_spin() { cur->st = SPIN; to_main(); cur->st = READY; }

// Block barrier; id 0 is __syncthreads, others are bar.sync id, count.
EMU_NOSAN static BlockBar* block_bar(int id, int count, const char* op, const char* file, int line, int pred = 0) {
  Fiber* f = cur; BlockBar& b = f->blk->bar[id]; int need = count ? count : f->blk->alive;
#ifdef EMU_TSAN
  __tsan_release(&b.token);
#endif
  b.vote_or |= pred != 0; b.vote_and &= pred != 0; b.vote_cnt += pred != 0;
  if (!b.file) { b.file = file; b.line = line; }
  else if (b.line != line || b.file != file)
    fail("divergent barrier: one thread is at %s:%d (%s) while another waits at %s:%d", file, line, op, b.file, b.line);
  uint32_t g = b.gen;
  if (++b.arrived == need) complete(b);
  else { f->st = BLOCK_WAIT; f->barid = id; f->bgen = g; f->op = op; f->file = file; f->line = line; while (b.gen == g) to_main(); f->st = READY; }
#ifdef EMU_TSAN
  __tsan_acquire(&b.token);
#endif
  return &b;
}
// Warp collective: deposit n words, wait for every lane of mask; returns the 32 slots.  last() runs once per gathering.
typedef uint32_t Slots[32][16];
EMU_NOSAN static Slots* warp_bar(uint32_t mask, const char* op, const uint32_t* data, int n, const char* file, int line,
                                   void (*last)(Slots&) = nullptr, bool mem = false) {
  Fiber* f = cur; Warp* w = f->warp;
  if (!((mask >> f->lane) & 1)) fail("%s at %s:%d: lane %d is not in its own mask 0x%x", op, file, line, f->lane, mask);
  int left = w->blk->nthreads - w->index * 32;           // a partial last warp: full masks are common there, and harmless
  if (left < 32) mask &= (1u << left) - 1;
  if (mask & ~w->alive) fail("%s at %s:%d: mask 0x%x names lanes that have exited (alive 0x%x)", op, file, line, mask, w->alive);
  WarpBar* b = nullptr;
  for (int i = 0; i < w->nbars; i++) { WarpBar& o = w->bars[i]; if (o.mask == mask) b = &o;
    else if (o.arrived & mask) fail("%s at %s:%d: mask 0x%x overlaps a collective in flight with mask 0x%x (%s at line %d)", op, file, line, mask, o.mask, o.op, o.line); }
  if (!b) { if (w->nbars == MAXBARS) fail("too many different warp masks"); b = &w->bars[w->nbars++]; b->mask = mask; }
#ifdef EMU_TSAN
  if (mem) __tsan_release(&b->token);
#endif
  if (!b->arrived) { b->op = op; b->line = line; }
  else if (b->op != op || b->line != line) fail("warp collective mismatch: lane %d runs %s at %s:%d, others run %s at line %d", f->lane, op, file, line, b->op, b->line);
  uint32_t g = b->gen; Slots& s = b->slot[g & 1];
  for (int i = 0; i < n; i++) ((volatile uint32_t*)s[f->lane])[i] = ((const volatile uint32_t*)data)[i];
  b->arrived |= 1u << f->lane;
  if (b->arrived == mask) { if (last) last(s); b->arrived = 0; b->gen++; }
  else { f->st = WARP_WAIT; f->wbar = b; f->wgen = g; f->op = op; f->file = file; f->line = line; while (b->gen == g) to_main(); f->st = READY; }
#ifdef EMU_TSAN
  if (mem) __tsan_acquire(&b->token);
#endif
  return &s;
}
EMU_NOSAN static uint32_t peek(Slots* s, int lane, int i) { return (*s)[lane][i]; }

extern "C" { extern char __start_emulated_shared[] __attribute__((weak)); extern char __stop_emulated_shared[] __attribute__((weak)); }
EMU_NOSAN static uint64_t rnd() { rt.rng ^= rt.rng << 13; rt.rng ^= rt.rng >> 7; rt.rng ^= rt.rng << 17; return rt.rng; }
EMU_NOSAN static void poison(void* p, size_t n, int byte) { volatile char* c = (volatile char*)p; for (size_t i = 0; i < n; i++) c[i] = (char)byte; }
EMU_NOSAN static size_t nstatic() { return __stop_emulated_shared - __start_emulated_shared; }
EMU_NOSAN static Block* make_block(unsigned linear) {
  Block* b = rt.bpool; if (b) rt.bpool = b->next; else { b = grab<Block>(); b->statics = grab<char>(nstatic() + 1); }
  b->idx = {linear % rt.grid.x, linear / rt.grid.x % rt.grid.y, linear / rt.grid.x / rt.grid.y};
  int n = b->nthreads = b->alive = rt.block.x * rt.block.y * rt.block.z;
  b->smem = grab<char>(MAXSMEM); poison(b->smem, rt.smem, 0xFF); poison(b->statics, nstatic(), 0xFF); poison(b->bar, sizeof b->bar, 0);
  for (int i = 0; i < 16; i++) b->bar[i].vote_and = 1;
#ifdef EMU_ASAN
  __asan_poison_memory_region(b->smem + rt.smem, MAXSMEM - rt.smem);
#endif
  for (int i = 0; i < (n + 31) / 32; i++) { Warp& w = b->warps[i]; w.blk = b; w.index = i; w.alive = 0; w.nbars = 0;
    for (int k = 0; k < MAXBARS; k++) w.bars[k].arrived = w.bars[k].gen = 0; }
  for (int i = 0; i < n; i++) {
    Fiber* f = rt.pool;
    if (f) rt.pool = f->next;
    else { f = grab<Fiber>(); f->stack = grab<char>(STACK);
#ifdef EMU_TSAN
      f->tsan = __tsan_create_fiber(0);
#endif
    }
#ifdef EMU_ASAN
    __asan_unpoison_memory_region(f->stack, STACK);
#endif
    f->sp = init_stack(f->stack + STACK, fiber_main); f->fake = nullptr; f->ncp = f->cp_group = 0; f->st = READY;
    f->tid = {i % rt.block.x, i / rt.block.x % rt.block.y, i / rt.block.x / rt.block.y};
    f->lane = i & 31; f->blk = b; f->warp = &b->warps[i / 32]; f->warp->alive |= 1u << f->lane; b->f[i] = f; b->order[i] = i;
  }
  auto swap = [](int& x, int& y) { int t = x; x = y; y = t; };
  if (rt.rng) {                                          // shuffle lanes inside each warp, then whole warps
    for (int i = 0; i < n; i += 32) for (int k = (n - i < 32 ? n - i : 32) - 1; k > 0; k--) swap(b->order[i + k], b->order[i + rnd() % (k + 1)]);
    for (int k = n / 32 - 1; k > 0; k--) { int j = rnd() % (k + 1); for (int i = 0; i < 32 && j != k; i++) swap(b->order[k * 32 + i], b->order[j * 32 + i]); } }
  return b;
}
EMU_NOSAN static void recycle(Block* b) { for (int i = 0; i < b->nthreads; i++) { b->f[i]->next = rt.pool; rt.pool = b->f[i]; } }
EMU_NOSAN static void free_block(Block* b, bool keep = true) {
  if (keep) recycle(b);                                  // after a failure the abandoned stacks are leaked
#ifdef EMU_ASAN
  __asan_unpoison_memory_region(b->smem, MAXSMEM);
#endif
  munmap(b->smem, MAXSMEM); b->next = rt.bpool; rt.bpool = b;
}
EMU_NOSAN static bool runnable(Fiber* f) { return f->st == READY || f->st == SPIN || (f->st == WARP_WAIT && f->wbar->gen != f->wgen) ||
  (f->st == BLOCK_WAIT && f->blk->bar[f->barid].gen != f->bgen); }
// Runs the block until nothing but spinning or waiting threads is left; returns whether anything other than a spin ran.
EMU_NOSAN static bool run_block(Block* b) {
  bool any = false, progress = true;
  while (progress && b->alive && !rt.failed) { progress = false;
    for (int w0 = 0; w0 < b->nthreads && !rt.failed; w0 += 32) { bool again = true;
      while (again && !rt.failed) { again = false;
        for (int i = w0; i < w0 + 32 && i < b->nthreads; i++) { Fiber* f = b->f[b->order[i]];
          if (!runnable(f)) continue;
          to_fiber(f); cur = nullptr; if (rt.failed) return true;
          if (f->st != SPIN) again = true; } 
        progress |= again; } }
    any |= progress; }
  return any;
}
EMU_NOSAN static void deadlock(Block** act, int nact) {
  rt.failed = true; error = "deadlock:"; char c[256]; int shown = 0;
  for (int j = 0; j < nact; j++) for (int i = 0; i < act[j]->nthreads; i++) { Fiber* f = act[j]->f[i]; if (f->st == DONE || shown++ >= 6) continue;
    if (f->st == SPIN) snprintf(c, sizeof c, " block %u thread %u spins;", act[j]->idx.x, f->tid.x);
    else snprintf(c, sizeof c, " block %u thread %u in %s (%s:%d, %s %x of %x);", act[j]->idx.x, f->tid.x, f->op, f->file, f->line, f->st == WARP_WAIT ? "lanes" : "threads",
                  f->st == WARP_WAIT ? f->wbar->arrived : act[j]->bar[f->barid].arrived, f->st == WARP_WAIT ? f->wbar->mask : act[j]->alive);
    error += c; }
}
EMU_NOSAN static int run(dim3 grid, dim3 block, size_t smem, void (*tramp)(void*), void* args) {
  rt.grid = {grid.x, grid.y, grid.z}; rt.block = {block.x, block.y, block.z}; rt.smem = smem; rt.tramp = tramp; rt.args = args; rt.failed = false; error.clear();
  const char* e = getenv("EMULATOR_SEED"); rt.rng = e && atoll(e) ? (uint64_t)atoll(e) * 0x9E3779B97F4A7C15ull + 1 : 0;
  e = getenv("EMULATOR_RESIDENT"); int res = e ? atoi(e) : 1, nact = 0; if (res < 1) res = 1; if (res > 64) res = 64;
  e = getenv("EMULATOR_XBLOCK"); bool ordered = !(e && atoi(e)); (void)ordered;    // 1: races between blocks count too (no static __shared__ then)
  if (smem > MAXSMEM) { error = "dynamic shared memory over 228 KiB"; return 1; }
  if (block.x * block.y * block.z > MAXT || !block.x) { error = "bad block size"; return 1; }
  unsigned total = grid.x * grid.y * grid.z, next = 0, *ord = grab<unsigned>(total * 4 + 4); for (unsigned i = 0; i < total; i++) ord[i] = i;
  if (rt.rng) for (unsigned k = total; k-- > 1;) { unsigned j = rnd() % (k + 1), t = ord[k]; ord[k] = ord[j]; ord[j] = t; }
#ifdef EMU_TSAN
  if (!rt.main_tsan) rt.main_tsan = __tsan_get_current_fiber();
  __tsan_release(&rt.launch_token);
#endif
  Block *act[64], *done = nullptr; size_t sh = nstatic(); long idle = 0;
  while ((next < total || nact) && !rt.failed) {
    while (nact < res && next < total) act[nact++] = make_block(ord[next++]);
#ifdef EMU_TSAN
    __tsan_release(&rt.launch_token);                    // fibers see the fresh mappings; main never acquires in between unless ordered
#endif
    bool any = false;
    for (int i = 0; i < nact && !rt.failed;) { Block* b = act[i];
      for (size_t k = 0; k < sh; k++) ((volatile char*)__start_emulated_shared)[k] = b->statics[k];
      any |= run_block(b);
      for (size_t k = 0; k < sh; k++) b->statics[k] = ((volatile char*)__start_emulated_shared)[k];
      if (!b->alive) {
#ifdef EMU_TSAN
        if (ordered) __tsan_acquire(&rt.done_token);
#endif
        if (ordered) free_block(b); else { b->next = done; done = b; }    // unordered: keep fibers apart, as blocks are
        act[i] = act[--nact]; any = true;
      } else i++; }
    if (any) { idle = 0; continue; }
    bool spin = false; for (int j = 0; j < nact; j++) for (int i = 0; i < act[j]->nthreads; i++) spin |= act[j]->f[i]->st == SPIN;
    if (!rt.failed && (!spin || ++idle > 10000)) deadlock(act, nact);
  }
#ifdef EMU_TSAN
  __tsan_acquire(&rt.done_token);
#endif
  for (int i = 0; i < nact; i++) free_block(act[i], false);
  while (done) { Block* b = done; done = b->next; free_block(b, true); }
  munmap(ord, total * 4 + 4);
  cur = nullptr; return rt.failed;
}
EMU_NOSAN static uint3 tid() { return cur->tid; }
EMU_NOSAN static uint3 bid() { return cur->blk->idx; }
EMU_NOSAN static uint3 bdim() { return rt.block; }
EMU_NOSAN static uint3 gdim() { return rt.grid; }
EMU_NOSAN static int lane() { return cur->lane; }
EMU_NOSAN static void* dynamic_shared() { return cur->blk->smem; }

// ------------------------------------------------------------------------------------ cp.async (delayed)
EMU_NOSAN static void cp_record(void* dst, const void* src, int bytes, int src_bytes) { Fiber* f = cur; if (f->ncp == MAXCP) fail("too many cp.async in flight");
  f->cps[f->ncp++] = {dst, src, bytes, src_bytes, f->cp_group}; }
EMU_NOSAN static bool cp_pop(int keep, CpAsync* out) { Fiber* f = cur; if (!f->ncp || f->cps[0].group >= f->cp_group - keep) return false;
  *out = f->cps[0]; f->ncp--; for (int i = 0; i < f->ncp; i++) f->cps[i] = f->cps[i + 1]; return true; }
static inline void async_copy(void* dst, const void* src, int bytes, int src_bytes, const char* file, int line) {
  if ((uintptr_t)dst % bytes || (uintptr_t)src % bytes) fail("cp.async at %s:%d: misaligned (dst %p src %p bytes %d)", file, line, dst, src, bytes);
  for (int i = 0; i < bytes; i++) ((char*)dst)[i] = (char)0xFE;      // instrumented write: an early overwrite is seen
  cp_record(dst, src, bytes, src_bytes);
}
EMU_NOSAN static void async_commit() { cur->cp_group++; }
static inline void async_wait(int keep) { CpAsync c; while (cp_pop(keep, &c))
  for (int i = 0; i < c.bytes; i++) ((char*)c.dst)[i] = i < c.src_bytes ? ((const char*)c.src)[i] : 0; }

// -------------------------------------------------------------------------------------- ldmatrix and mma
static inline void ldmatrix_x4(uint32_t (&r)[4], const void* p, bool trans, const char* file, int line) {
  uint64_t a = (uint64_t)p; uint32_t d[2] = {(uint32_t)a, (uint32_t)(a >> 32)};
  if (a % 16) fail("ldmatrix at %s:%d: row address %p is not 16-byte aligned", file, line, p);
  int lane = emulator::lane(); Slots* s = warp_bar(~0u, "ldmatrix", d, 2, file, line);
  for (int j = 0; j < 4; j++) { auto row = [&](int i) { return (const uint16_t*)(peek(s, j * 8 + i, 0) | (uint64_t)peek(s, j * 8 + i, 1) << 32); };
    if (!trans) { const uint16_t* q = row(lane / 4) + lane % 4 * 2; r[j] = q[0] | (uint32_t)q[1] << 16; }
    else r[j] = row(lane % 4 * 2)[lane / 4] | (uint32_t)row(lane % 4 * 2 + 1)[lane / 4] << 16; }
}
template <class T> struct Traits; template <class Q> struct Traits<h16<Q>> { using P = Q; };
template <class P> EMU_NOSAN void mma_last(Slots& s) {          // D = A(16x16 row) * B(16x8 col) + C, fp32 accumulation
  float A[16][16], B[16][8];
  for (int l = 0; l < 32; l++) { int g = l / 4, q = l % 4; for (int i = 0; i < 4; i++) for (int h = 0; h < 2; h++)
      A[g + (i & 1) * 8][q * 2 + h + (i >> 1) * 8] = P::up((uint16_t)(s[l][i] >> (16 * h)));
    for (int i = 0; i < 2; i++) for (int h = 0; h < 2; h++) B[q * 2 + h + i * 8][g] = P::up((uint16_t)(s[l][4 + i] >> (16 * h))); }
  for (int l = 0; l < 32; l++) { int g = l / 4, q = l % 4; for (int i = 0; i < 4; i++) { float c; memcpy(&c, &s[l][6 + i], 4);
      int r = g + (i >> 1) * 8, n = q * 2 + (i & 1); float acc = 0; for (int k = 0; k < 16; k++) acc += A[r][k] * B[k][n];
      c += acc; memcpy(&s[l][10 + i], &c, 4); } }
}
template <class P0> static inline void mma_16816(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* file, int line) {
  uint32_t d[10] = {a[0], a[1], a[2], a[3], b[0], b[1]}; memcpy(d + 6, c, 16); int lane = emulator::lane();
  Slots* s = warp_bar(~0u, "mma", d, 10, file, line, mma_last<typename Traits<P0>::P>);
  for (int i = 0; i < 4; i++) { uint32_t u = peek(s, lane, 10 + i); memcpy(&c[i], &u, 4); }
}
// ----------------------------------------------------------------------------------------------- shuffles
template <class T> static T shfl(int kind, uint32_t mask, T v, int arg, int width, const char* file, int line) {
  static_assert(sizeof(T) <= 8, "shuffle of more than 8 bytes"); uint32_t d[2] = {0, 0}; memcpy(d, &v, sizeof(T));
  int lane = emulator::lane(), base = lane & ~(width - 1), src;
  if (kind == 0) src = base + (arg & (width - 1)); else if (kind == 1) src = lane ^ arg;
  else if (kind == 2) src = lane + arg; else src = lane - arg;
  if (kind == 1 ? src >= base + width : (src < base || src >= base + width)) src = lane;
  Slots* s = warp_bar(mask, "shfl", d, 2, file, line);
  if (!((mask >> src) & 1)) fail("shfl at %s:%d: lane %d reads lane %d, which is not in mask 0x%x", file, line, lane, src, mask);
  d[0] = peek(s, src, 0); d[1] = peek(s, src, 1); T r; memcpy(&r, d, sizeof(T)); return r;
}
static inline uint32_t ballot(uint32_t mask, int pred, const char* file, int line) { uint32_t d = pred != 0; Slots* s = warp_bar(mask, "vote", &d, 1, file, line);
  uint32_t r = 0; for (int i = 0; i < 32; i++) if ((mask >> i) & 1) r |= peek(s, i, 0) << i; return r; }
// ------------------------------------------------------------------------------------------------- launch
template <class... A> struct Call { void (*k)(A...); void** p; };
template <class... A, size_t... I> static void tramp_impl(Call<A...>* c, std::index_sequence<I...>) { c->k(*(std::decay_t<A>*)c->p[I]...); }
template <class... A> static void tramp(void* v) { tramp_impl((Call<A...>*)v, std::index_sequence_for<A...>{}); }
template <class... A> static int launch(void (*k)(A...), dim3 g, dim3 b, size_t smem, void** params) { Call<A...> c{k, params}; return run(g, b, smem, tramp<A...>, &c); }

typedef int (*Launcher)(dim3, dim3, size_t, void**);
struct Entry { Launcher launcher; std::vector<unsigned> sizes; };
inline std::unordered_map<std::string, Entry>& registry() { static std::unordered_map<std::string, Entry> m; return m; }
template <class... A> Entry entry(void (*)(A...), Launcher l) { return {l, {(unsigned)sizeof(A)...}}; }
struct Reg { Reg(const char* n, Entry l) { registry()[n] = l; } };
}  // namespace emulator
#define EMULATOR_EXPORT(name) static emulator::Reg emulator_reg_##name(#name, emulator::entry(name, [](dim3 g, dim3 b, size_t s, void** p) { return emulator::launch(name, g, b, s, p); }));
#define EMULATOR_API extern "C" __attribute__((weak, visibility("default")))
// Number of parameters of a kernel, their sizes in `sizes` (room for `capacity`); -1: no such kernel.
EMULATOR_API int emulator_parameters(const char* name, unsigned* sizes, int capacity) {
  auto it = emulator::registry().find(name); if (it == emulator::registry().end()) return -1;
  for (int i = 0; i < capacity && i < (int)it->second.sizes.size(); i++) sizes[i] = it->second.sizes[i];
  return it->second.sizes.size(); }
// Same shape as cuLaunchKernel, with the number and sizes of the arguments. 0: done; otherwise emulator_error() says what failed.
EMULATOR_API int emulator_launch(const char* name, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned smem, void** params, int count, const unsigned* sizes) {
  auto it = emulator::registry().find(name); if (it == emulator::registry().end()) { emulator::error = std::string("no kernel named ") + name; return 2; }
  auto& want = it->second.sizes; if (count != (int)want.size()) { emulator::error = std::string(name) + ": " + std::to_string(count) + " arguments given, the kernel takes " + std::to_string(want.size()); return 3; }
  for (int i = 0; i < count; i++) if (sizes[i] != want[i]) { emulator::error = std::string(name) + ": argument " + std::to_string(i) + " has " + std::to_string(sizes[i]) + " bytes, the kernel takes " + std::to_string(want[i]); return 3; }
  return it->second.launcher(dim3(gx, gy, gz), dim3(bx, by, bz), smem, params); }
EMULATOR_API const char* emulator_error() { return emulator::error.c_str(); }

// --------------------------------------------------------------------------------------- CUDA built-ins
#define threadIdx (emulator::tid())
#define blockIdx (emulator::bid())
#define blockDim (emulator::bdim())
#define gridDim (emulator::gdim())
#define warpSize 32
#define __syncthreads() ((void)emulator::block_bar(0, 0, "__syncthreads", __FILE__, __LINE__))
#define __syncthreads_or(p) (emulator::block_bar(0, 0, "__syncthreads_or", __FILE__, __LINE__, (p))->res_or)
#define __syncthreads_and(p) (emulator::block_bar(0, 0, "__syncthreads_and", __FILE__, __LINE__, (p))->res_and)
#define __syncthreads_count(p) (emulator::block_bar(0, 0, "__syncthreads_count", __FILE__, __LINE__, (p))->res_cnt)
#define EMU_ARG2(a, b, ...) b
#define __syncwarp(...) ((void)emulator::warp_bar((__VA_ARGS__ + 0u) ? (__VA_ARGS__ + 0u) : ~0u, "__syncwarp", nullptr, 0, __FILE__, __LINE__, nullptr, true))
#define EMU_SHFL(kind, m, v, a, ...) emulator::shfl(kind, (uint32_t)(m), v, a, (__VA_ARGS__ + 0) ? (__VA_ARGS__ + 0) : 32, __FILE__, __LINE__)
#define __shfl_sync(m, v, a, ...) EMU_SHFL(0, m, v, a, __VA_ARGS__)
#define __shfl_xor_sync(m, v, a, ...) EMU_SHFL(1, m, v, a, __VA_ARGS__)
#define __shfl_down_sync(m, v, a, ...) EMU_SHFL(2, m, v, a, __VA_ARGS__)
#define __shfl_up_sync(m, v, a, ...) EMU_SHFL(3, m, v, a, __VA_ARGS__)
#define __ballot_sync(m, p) emulator::ballot((m), (p), __FILE__, __LINE__)
#define __any_sync(m, p) (emulator::ballot((m), (p), __FILE__, __LINE__) != 0)
#define __all_sync(m, p) (emulator::ballot((m), (p), __FILE__, __LINE__) == (uint32_t)(m))
static inline void cuemu_fence() {
#ifdef EMU_TSAN
  __tsan_acquire(&emulator::rt.fence_token); __tsan_release(&emulator::rt.fence_token);
#endif
}
static inline void __threadfence() { cuemu_fence(); }
static inline void __threadfence_block() { cuemu_fence(); }
static inline void __threadfence_system() { cuemu_fence(); }
static inline void __nanosleep(unsigned) { emulator::yield_spin(); }
static inline void __trap() { emulator::fail("__trap"); }
// atomics: one OS thread, but TSan must see them as atomic
template <class T, class F> static inline T cuemu_rmw(T* p, F f) { typedef std::conditional_t<sizeof(T) == 2, uint16_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>> U;
  U o = __atomic_load_n((U*)p, __ATOMIC_RELAXED), n; T ov, nv; do { memcpy(&ov, &o, sizeof(T)); nv = f(ov); memcpy(&n, &nv, sizeof(T)); }
  while (!__atomic_compare_exchange_n((U*)p, &o, n, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)); return ov; }
template <class T, class V> static inline T atomicAdd(T* p, V v) { return cuemu_rmw(p, [=](T o) { return (T)(o + (T)v); }); }
static inline half2 atomicAdd(half2* p, half2 v) { return cuemu_rmw(p, [=](half2 o) { return __hadd2(o, v); }); }
template <class T, class V> static inline T atomicMax(T* p, V v) { return cuemu_rmw(p, [=](T o) { return std::max(o, (T)v); }); }
template <class T, class V> static inline T atomicMin(T* p, V v) { return cuemu_rmw(p, [=](T o) { return std::min(o, (T)v); }); }
template <class T, class V> static inline T atomicOr(T* p, V v) { return cuemu_rmw(p, [=](T o) { return (T)(o | (T)v); }); }
template <class T, class V> static inline T atomicExch(T* p, V v) { return cuemu_rmw(p, [=](T) { return (T)v; }); }
template <class T, class V, class W> static inline T atomicCAS(T* p, V c, W v) { return cuemu_rmw(p, [=](T o) { return o == (T)c ? (T)v : o; }); }
static inline unsigned atomicInc(unsigned* p, unsigned lim) { return cuemu_rmw(p, [=](unsigned o) { return o >= lim ? 0u : o + 1; }); }
template <class T> static inline T __ldg(const T* p) { return *p; }
template <class T> static inline T __ldcs(const T* p) { return *p; }
template <class T> static inline T __ldcg(const T* p) { return *p; }
template <class T> static inline void __stcs(T* p, T v) { *p = v; }
template <class T> static inline void __stcg(T* p, T v) { *p = v; }
static inline uint32_t __float_as_uint(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
static inline float __uint_as_float(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
static inline int __float_as_int(float f) { int u; memcpy(&u, &f, 4); return u; }
static inline float __int_as_float(int u) { float f; memcpy(&f, &u, 4); return f; }
static inline float cuemu_expf(float x) { return std::exp(x); }
#define __expf cuemu_expf
static inline float cuemu_logf(float x) { return std::log(x); }
#define __logf cuemu_logf
static inline float cuemu_sinf(float x) { return std::sin(x); }
#define __sinf cuemu_sinf
static inline float cuemu_cosf(float x) { return std::cos(x); }
#define __cosf cuemu_cosf
static inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __dp4a(int a, int b, int c) { for (int i = 0; i < 4; i++) c += (int8_t)(a >> 8 * i) * (int8_t)(b >> 8 * i); return c; }
static inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t s) { uint64_t v = x | (uint64_t)y << 32; uint32_t r = 0;
  for (int i = 0; i < 4; i++) { int sel = s >> 4 * i & 0xf; uint8_t b = v >> 8 * (sel & 7); if (sel & 8) b = (b & 0x80) ? 0xff : 0; r |= (uint32_t)b << 8 * i; } return r; }
template <class T> static inline T min(T a, T b) { return b < a ? b : a; }
template <class T> static inline T max(T a, T b) { return a < b ? b : a; }
static constexpr float CUDART_INF_F = std::numeric_limits<float>::infinity();
