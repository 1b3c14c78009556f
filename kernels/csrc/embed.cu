// Rows of the token table into the residual stream: for the tokens of a step, and for a prompt with pictures in it.
// A large table lies in pieces: a launch writes the rows of its own piece and leaves those of other pieces alone. An id
// that no piece has sets a status bit and writes nothing.
#include "element.cuh"
#include "state.cuh"

constexpr int ROW_THREADS = 128, RUN = 8;  // values that a thread moves at once

template <typename T>
struct __align__(8) Run {  // of table values; 8 bytes for int8, 16 for 16-bit types
  T value[RUN];
};

struct Piece {  // rows that are here: ids first .. first + rows - 1 of 0 .. vocab - 1
  int first, rows, vocab;
};

__device__ __forceinline__ float widened(half v) { return Element<half>::to_float(v); }
__device__ __forceinline__ float widened(__nv_bfloat16 v) { return Element<__nv_bfloat16>::to_float(v); }
__device__ __forceinline__ float widened(signed char v) { return static_cast<float>(v); }

// This block's part of one row: out[...] = table row * scale (scale is 1 for tables of floats).
template <typename T>
__device__ __forceinline__ void widen_row(const T* row, float scale, float* out, int hidden) {
  const int first = (blockIdx.y * ROW_THREADS + threadIdx.x) * RUN;
  if (first >= hidden) return;
  const Run<T> run = *reinterpret_cast<const Run<T>*>(row + first);
  float4* to = reinterpret_cast<float4*>(out + first);
  to[0] = make_float4(widened(run.value[0]) * scale, widened(run.value[1]) * scale, widened(run.value[2]) * scale,
                      widened(run.value[3]) * scale);
  to[1] = make_float4(widened(run.value[4]) * scale, widened(run.value[5]) * scale, widened(run.value[6]) * scale,
                      widened(run.value[7]) * scale);
}

__device__ __forceinline__ void copy_row(const float* row, float* out, int hidden) {
  const int first = (blockIdx.y * ROW_THREADS + threadIdx.x) * RUN;
  if (first >= hidden) return;
  const float4* from = reinterpret_cast<const float4*>(row + first);
  float4* to = reinterpret_cast<float4*>(out + first);
  to[0] = from[0];
  to[1] = from[1];
}

__device__ __forceinline__ void report(DecodeState* state, int bit) {
  if (blockIdx.y == 0 && threadIdx.x == 0) atomicOr(&state->status, bit);
}

template <typename T>
__device__ __forceinline__ void token_row(int id, const T* table, const float* scales, Piece piece, DecodeState* state,
                                          float* out, int hidden) {
  if (id < 0 || id >= piece.vocab) return report(state, STATUS_BAD_TOKEN);
  const int row = id - piece.first;
  if (row < 0 || row >= piece.rows) return;
  widen_row(table + static_cast<size_t>(row) * hidden, scales ? scales[row] : 1.f, out, hidden);
}

// Tokens of this step: residual f32 [M][hidden] from state->token[m]. Grid (M, ceil(hidden / 1024)).
template <typename T>
__device__ __forceinline__ void embed(const T* table, const float* scales, Piece piece, DecodeState* state,
                                      float* residual, int hidden) {
  const int m = blockIdx.x;
  token_row(state->token[m], table, scales, piece, state, residual + static_cast<size_t>(m) * hidden, hidden);
}

// A prompt: out f32 [S][hidden] from ids i32 [S]; id >= 0 is a token, -1 - j is row j of images f32
// [image_rows][hidden]. Grid (S, ceil(hidden / 1024)).
template <typename T>
__device__ __forceinline__ void fuse(const int* ids, const T* table, const float* scales, Piece piece,
                                     const float* images, int image_rows, float* out, DecodeState* state, int hidden) {
  const int position = blockIdx.x, id = ids[position];
  float* to = out + static_cast<size_t>(position) * hidden;
  if (id >= 0) return token_row(id, table, scales, piece, state, to, hidden);
  const int row = -1 - id;
  if (row >= image_rows) return report(state, STATUS_BAD_IMAGE_ROW);
  copy_row(images + static_cast<size_t>(row) * hidden, to, hidden);
}

#define EMBED(name, T)                                                                                                \
  extern "C" __global__ void __launch_bounds__(ROW_THREADS)                                                           \
      name(const T* table, const float* scales, int first, int rows, int vocab, DecodeState* state, float* residual,  \
           int hidden) {                                                                                              \
    embed<T>(table, scales, Piece{first, rows, vocab}, state, residual, hidden);                                      \
  }                                                                                                                   \
  CUDA_KERNEL_EXPORT(name)

#define FUSE_IMAGE_TEXT(name, T)                                                                                      \
  extern "C" __global__ void __launch_bounds__(ROW_THREADS)                                                           \
      name(const int* ids, const T* table, const float* scales, int first, int rows, int vocab, const float* images,  \
           int image_rows, float* out, DecodeState* state, int hidden) {                                              \
    fuse<T>(ids, table, scales, Piece{first, rows, vocab}, images, image_rows, out, state, hidden);                   \
  }                                                                                                                   \
  CUDA_KERNEL_EXPORT(name)

EMBED(embed_f16_f16, half)
EMBED(embed_f16_bf16, __nv_bfloat16)
EMBED(embed_i8, signed char)
FUSE_IMAGE_TEXT(fuse_image_text_f16, half)
FUSE_IMAGE_TEXT(fuse_image_text_bf16, __nv_bfloat16)
FUSE_IMAGE_TEXT(fuse_image_text_i8, signed char)
