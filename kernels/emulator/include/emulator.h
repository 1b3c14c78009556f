// CUDA C++ on the CPU: kernel sources, unchanged, compiled by g++ with this folder before all others.
//
// Each CUDA thread is a fiber with its own stack; all run on one thread of the CPU, blocks one after another (or
// EMULATOR_RESIDENT of them at a time, for blocks that wait for each other), in order or, with EMULATOR_SEED=1, 2, ...,
// in a shuffled one. Checked while it runs: threads at different barriers, deadlocks, warp collectives with wrong masks
// or partners, shared memory that is read before it is written (poison), cp.async data that is used before its wait,
// arguments, launch configuration, illegal addresses. Under -fsanitize=thread also data races inside and between
// blocks, under -fsanitize=address,undefined every access out of bounds or misaligned.
//
// It knows nothing of time, caches, registers, bank conflicts or weak memory order.
#pragma once
#include "emulator/arithmetic.h"
#include "emulator/async_copy.h"
#include "emulator/atomic.h"
#include "emulator/barrier.h"
#include "emulator/builtins.h"
#include "emulator/float16.h"
#include "emulator/float16_convert.h"
#include "emulator/launch.h"
#include "emulator/matrix.h"
#include "emulator/qualifiers.h"
#include "emulator/warp.h"
