"""The planted bugs: kinds of mistakes that such kernels are prone to, each in kernels of at least two families."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Where a kind is planted: the only occurrence of ``old`` in ``file`` becomes ``new``. sources: as in Mutant."""

    file: str
    old: str
    new: str
    sources: tuple[str, ...] = ()


REFILL = """    const int ahead = step + STAGES - 1;
    if (ahead < steps) gemm_copy<T, TOKENS>(stages + ahead % STAGES * GEMM_STAGE<TOKENS>, x, w.qw, shape, ahead);
"""
LANDED = (
    "    __syncthreads();  // this stage has landed for all threads, "
    "and all are done with the one that is filled next\n"
)
ADDED = """n = blockIdx.x * T16_ROWS + row;
    if (n >= N) continue;
    residual"""
BINNED = """      atomicAdd(reinterpret_cast<unsigned long long*>(&scratch.bins[bin]),
                static_cast<unsigned long long>(measure(depth)));"""

KINDS: dict[str, tuple[Place, ...]] = {
    "no barrier before a sum across warps": (
        Place("gemv_tile.cuh", "= sums[3];\n  __syncthreads();", "= sums[3];", ("gemv.cu",)),
        Place("rmsnorm.cu", "= value;\n  __syncthreads();", "= value;"),
    ),
    "no barrier in the pipeline": (
        Place(
            "gemm_tile.cuh",
            "    __syncthreads();  // this stage has landed",
            "    // this stage has landed",
            ("gemm.cu",),
        ),
        Place("attn_prefill.cu", "    __syncthreads();  // this stage is there", "    // this stage is there"),
    ),
    "no barrier before a merge": (
        Place("attn_decode.cu", "sums[group] = sum;\n  __syncthreads();", "sums[group] = sum;"),
        Place("rank.cuh", "scratch.of_warp[warp] = sum;\n  __syncthreads();", "scratch.of_warp[warp] = sum;"),
    ),
    "no wait for copies": (
        Place("gemm_tile.cuh", "    cp_async_wait<STAGES - 2>();\n", "", ("gemm_swiglu.cu",)),
        Place(
            "attn_prefill.cu", "    cp_async_wait<0>();\n    __syncthreads();  // this", "    __syncthreads();  // this"
        ),
    ),
    "wait one group short": (
        Place("gemm_tile.cuh", "cp_async_wait<STAGES - 2>", "cp_async_wait<STAGES - 1>", ("gemm.cu",)),
        Place("attn_decode.cu", "cp_async_wait<1>", "cp_async_wait<2>"),
    ),
    "refills the stage in use": (
        Place("gemm_tile.cuh", "stages + ahead % STAGES", "stages + step % STAGES", ("gemm.cu",)),
        Place("attn_prefill.cu", "copy_tile<D>(tiles.k(stage ^ 1), keys", "copy_tile<D>(tiles.k(stage), keys"),
    ),
    "refill issued before the barrier": (
        Place("gemm_tile.cuh", LANDED + REFILL, REFILL + LANDED, ("gemm.cu",)),
        Place(
            "attn_prefill.cu",
            "    if (base > 0) __syncthreads();  // everybody has used the tile before\n"
            "    positions.template store<T>(tiles.k(0), tiles.v(0), tiles.k_scales());\n",
            "    positions.template store<T>(tiles.k(0), tiles.v(0), tiles.k_scales());\n"
            "    if (base > 0) __syncthreads();\n",
        ),
    ),
    "loads one tile past the end": (
        Place("gemm_tile.cuh", "    if (ahead < steps) gemm_copy", "    if (ahead <= steps) gemm_copy", ("gemm.cu",)),
        Place("gemv_tile.cuh", "at, first, min(first + share, steps))", "at, first, min(first + share, steps + 1))"),
    ),
    "reads one row past the end": (
        Place("attn.cuh", "copy.row + row < valid);", "copy.row + row <= valid);", ("attn_decode.cu",)),
        Place("gemm_tile.cuh", "token + i * AT_ONCE < shape.M", "token + i * AT_ONCE <= shape.M", ("gemm.cu",)),
        Place("embed.cu", "if (row >= image_rows)", "if (row > image_rows)"),
    ),
    "no row guard on the store": (
        Place("gemv.cu", "    if (n >= N) continue;\n    const float v", "    const float v"),
        Place("gemm_tile.cuh", "      if (token >= shape.M) continue;\n", "", ("gemm_swiglu.cu",)),
    ),
    "shared array one row short": (
        Place("gemv_tile.cuh", "float[GEMV_WARPS][GEMV_TOKENS]", "float[GEMV_WARPS - 1][GEMV_TOKENS]", ("gemv.cu",)),
        Place("attn_decode.cu", "__shared__ float sums[GROUPS];", "__shared__ float sums[GROUPS - 1];"),
    ),
    "16-byte load at 8-byte alignment": (
        Place("gemv_tile.cuh", "* K + q * 8};", "* K + q * 8 - 4 * (q == 3)};", ("gemv.cu",)),
        Place("attn_decode.cu", "(in + i * (D + 4) + lane * 4)", "(in + i * (D + 4) + lane * 4 - 2 * (lane == 3))"),
    ),
    "swizzle differs between store and load": (
        Place("gemm_tile.cuh", "(chunk ^ (row % 2 * 4))", "(chunk ^ (row % 2 * 2))", ("gemm.cu",)),
        Place("attn.cuh", "+ (lane >> 4) * 8, d + ((lane >> 3) & 1)", "+ (lane >> 4) * 8, (d ^ 2) + ((lane >> 3) & 1)"),
    ),
    "fragment registers swapped": (
        Place(
            "t16.cuh",
            "bits_as<half2>(and_or(word, 0x00f000f0u",
            "bits_as<half2>(and_or(upper, 0x00f000f0u",
            ("gemv.cu",),
        ),
        Place(
            "t16.cuh",
            "bits_as<half2>(and_or(upper, 0x000f000fu",
            "bits_as<half2>(and_or(word, 0x000f000fu",
            ("gemm.cu",),
        ),
        Place("attn.cuh", "mma(s[n], a, {b[0], b[1]})", "mma(s[n], a, {b[1], b[0]})", ("attn_prefill.cu",)),
    ),
    "zero point of the wrong row": (
        Place("gemm_tile.cuh", "zp[j] = w.zp[at];", "zp[j] = w.zp[at ^ 1];", ("gemm.cu",)),
        Place("gemv_tile.cuh", "zeros[i] = __ldg(zp + i * 8);", "zeros[i] = __ldg(zp + i * 8) >> 4;", ("gemv.cu",)),
    ),
    "key counted that is not seen": (
        Place("attn_decode.cu", "if (t >= seen) value", "if (t > seen) value"),
        Place("attn_prefill.cu", "(n & 1) >= seen)", "(n & 1) > seen)"),
    ),
    "rescale factor forgotten": (
        Place("attn_decode.cu", "sum += c * stats.y;", "sum += stats.y;"),
        Place("attn_prefill.cu", "    run.sum[i] *= shrink;\n", ""),
    ),
    "shuffle mask names half a warp": (
        Place(
            "rmsnorm.cu", "__shfl_xor_sync(0xffffffffu, value, distance)", "__shfl_xor_sync(0xffffu, value, distance)"
        ),
        Place("attn_decode.cu", "__shfl_xor_sync(0xffffffffu, sum, 1)", "__shfl_xor_sync(0xffffu, sum, 1)"),
    ),
    "lanes leave before a full-mask shuffle": (
        Place(
            "rmsnorm.cu",
            "float* of_warp) {\n#pragma unroll",
            "float* of_warp) {\n  if ((threadIdx.x & 31) > 29) return value;\n#pragma unroll",
        ),
        Place(
            "kv_quantize.cu",
            "  const float scale = row_scale(v);",
            "  if (lane > 29) return;\n  const float scale = row_scale(v);",
        ),
    ),
    "barriers in both branches": (
        Place(
            "gemv_tile.cuh",
            "= sums[3];\n  __syncthreads();",
            "= sums[3];\n  if (warp == 0) {\n    __syncthreads();\n  } else {\n    __syncthreads();\n  }",
            ("gemv.cu",),
        ),
        Place(
            "rmsnorm.cu",
            "= value;\n  __syncthreads();",
            "= value;\n  if (threadIdx.x < 32) {\n    __syncthreads();\n  } else {\n    __syncthreads();\n  }",
        ),
    ),
    "barrier skipped by some warps": (
        Place(
            "gemv_tile.cuh",
            "= sums[3];\n  __syncthreads();",
            "= sums[3];\n  if (warp != 1) __syncthreads();",
            ("gemv.cu",),
        ),
        Place("rmsnorm.cu", "= value;\n  __syncthreads();", "= value;\n  if (threadIdx.x >> 5 != 1) __syncthreads();"),
    ),
    "blocks write one place unordered": (
        Place("rmsnorm.cu", "const size_t token = blockIdx.x;", "const size_t token = blockIdx.x / 2;"),
        Place("gemv.cu", ADDED, ADDED.replace("blockIdx.x *", "blockIdx.x / 2 *")),
    ),
    "plain update instead of an atomic": (
        Place("rank.cuh", BINNED, "      scratch.bins[bin] += measure(depth);"),
        Place("embed.cu", "atomicOr(&state->status, bit)", "state->status |= bit"),
    ),
    "a loop that never ends": (
        Place("rank.cuh", "    if (low == high) return {low,", "    if (low > high) return {low,"),
        Place("attn_prefill.cu", "base += ATTN_KEYS, stage ^= 1", "stage ^= 1"),
    ),
}
