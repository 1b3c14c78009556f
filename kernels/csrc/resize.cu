// A picture to normalised tiles as Pillow resizes it: two passes with 22-bit fixed-point weights, rounded to 8 bits
// after each. The first pass writes planes of bytes; the second one makes the tiles' pixels, only where tiles lie, and
// turns each byte into its normalised value. Which axis goes first is the caller's choice.
#include "element.cuh"

constexpr int RESIZE_THREADS = 128, CHANNELS = 3, WEIGHT_BITS = 22;

__device__ __forceinline__ void store(float* to, float value) { *to = value; }
__device__ __forceinline__ void store(half* to, float value) { *to = Element<half>::from_float(value); }
__device__ __forceinline__ void store(__nv_bfloat16* to, float value) {
  *to = Element<__nv_bfloat16>::from_float(value);
}

// Where the results of one axis come from, i32 [2 + taps][length]: first source, number of sources, their weights.
struct Axis {
  const int* table;
  int length;
};

// Bytes that a pass reads. Along the axis that it resizes, sources begin .. end - 1 are there; others have the colour
// of the canvas that the picture lies on (0xRRGGBB).
struct Source {
  const unsigned char* data;
  long long along, across, channel;  // strides
  int begin, end, colour;
};

struct Pixel {
  int value[CHANNELS];
};

// Result `place` of the axis, at `across` of the other one.
__device__ __forceinline__ Pixel resized(const Source& source, const Axis& axis, int place, int across) {
  const int first = axis.table[place], count = axis.table[axis.length + place];
  const int* weights = axis.table + 2 * axis.length + place;
  const unsigned char* line = source.data + across * source.across;
  int sum[CHANNELS];
#pragma unroll
  for (int c = 0; c < CHANNELS; c++) sum[c] = 1 << (WEIGHT_BITS - 1);
  for (int tap = 0; tap < count; tap++) {
    const int at = first + tap - source.begin, weight = weights[static_cast<long long>(tap) * axis.length];
    const bool inside = at >= 0 && at < source.end - source.begin;
#pragma unroll
    for (int c = 0; c < CHANNELS; c++) {
      const int shift = 8 * (CHANNELS - 1 - c);
      sum[c] += weight * (inside ? line[at * source.along + c * source.channel] : source.colour >> shift & 255);
    }
  }
  Pixel pixel;
#pragma unroll
  for (int c = 0; c < CHANNELS; c++) pixel.value[c] = min(max(sum[c] >> WEIGHT_BITS, 0), 255);
  return pixel;
}

// The first pass: out u8 [3][height][width], along x, or along y when `vertical`. The other axis keeps its pixels,
// from `skip` on. Grid (ceil(width / 128), up to height).
extern "C" __global__ void __launch_bounds__(RESIZE_THREADS)
    resize_normalize_first(const unsigned char* data, long long along, long long across, long long channel, int begin,
                           int end, int colour, int skip, const int* table, int length, int vertical,
                           unsigned char* out, int height, int width) {
  const int x = blockIdx.x * RESIZE_THREADS + threadIdx.x;
  if (x >= width) return;
  const Source source = {data, along, across, channel, begin, end, colour};
  const Axis axis = {table, length};
  for (int y = blockIdx.y; y < height; y += gridDim.y) {
    const Pixel pixel = vertical ? resized(source, axis, y, x + skip) : resized(source, axis, x, y + skip);
#pragma unroll
    for (int c = 0; c < CHANNELS; c++)
      out[(static_cast<size_t>(c) * height + y) * width + x] = static_cast<unsigned char>(pixel.value[c]);
  }
}
CUDA_KERNEL_EXPORT(resize_normalize_first)

// The second pass: tiles T [n][3][side][side]. places i32 [gridDim.z][3]: number of the tile, its top and left in
// results of the axes. values f32 [3][256]: what a byte becomes. Grid (ceil(side / 128), side, tiles of this size).
template <typename T>
__device__ __forceinline__ void normalised_tile(const Source& source, const Axis& axis, int vertical, const int* places,
                                                const float* values, T* tiles, int side) {
  const int x = blockIdx.x * RESIZE_THREADS + threadIdx.x, y = blockIdx.y;
  if (x >= side) return;
  const int* place = places + blockIdx.z * 3;
  const int row = place[1] + y, column = place[2] + x;
  const Pixel pixel = vertical ? resized(source, axis, row, column) : resized(source, axis, column, row);
#pragma unroll
  for (int c = 0; c < CHANNELS; c++) {
    const size_t plane = static_cast<size_t>(place[0]) * CHANNELS + c;
    store(tiles + (plane * side + y) * side + x, values[c * 256 + pixel.value[c]]);
  }
}

#define RESIZE_NORMALIZE(name, T)                                                                                     \
  extern "C" __global__ void __launch_bounds__(RESIZE_THREADS)                                                        \
      name(const unsigned char* data, long long along, long long across, long long channel, int begin, int end,       \
           int colour, const int* table, int length, int vertical, const int* places, const float* values, T* tiles,  \
           int side) {                                                                                                \
    const Source source = {data, along, across, channel, begin, end, colour};                                         \
    normalised_tile<T>(source, Axis{table, length}, vertical, places, values, tiles, side);                           \
  }                                                                                                                   \
  CUDA_KERNEL_EXPORT(name)

RESIZE_NORMALIZE(resize_normalize_f32, float)
RESIZE_NORMALIZE(resize_normalize_f16, half)
RESIZE_NORMALIZE(resize_normalize_bf16, __nv_bfloat16)
