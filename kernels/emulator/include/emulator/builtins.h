// Where a thread is.
#pragma once
#include "emulator/state.h"

namespace emulator {

EMULATOR_UNSEEN uint3 thread_index() { return current->thread; }
EMULATOR_UNSEEN uint3 block_index() { return current->block->index; }
EMULATOR_UNSEEN dim3 block_size() { return runtime->launch.block; }
EMULATOR_UNSEEN dim3 grid_size() { return runtime->launch.grid; }
EMULATOR_UNSEEN void* dynamic_shared() { return current->block->dynamic; }

}  // namespace emulator

#define threadIdx (emulator::thread_index())
#define blockIdx (emulator::block_index())
#define blockDim (emulator::block_size())
#define gridDim (emulator::grid_size())
#define warpSize 32
