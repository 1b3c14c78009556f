// The switch from one stack to another: saves what a function has to preserve, and nothing else.
#pragma once
#include <cstddef>
#include <cstdint>

// Saves the present stack pointer in *save and goes on where `load` was saved.
extern "C" __attribute__((visibility("hidden"))) void emulator_switch(void** save, void* load);

#if defined(__x86_64__)
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch,@function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch, .-emulator_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch,%function
emulator_switch:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size emulator_switch, .-emulator_switch
)");
#else
#error "the emulator has no stack switch for this CPU: add one to stack_switch.h"
#endif

namespace emulator {

// Prepares a stack so that the first switch to the result calls `start`, which never returns.
inline void* fresh_stack(char* top, void (*start)()) {
  void** p = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t{15});
#if defined(__x86_64__)
  *--p = nullptr;  // where a return address would be: keeps the alignment that a called function expects
  *--p = reinterpret_cast<void*>(start);
  for (int i = 0; i < 6; i++) *--p = nullptr;
#else
  p -= 20;
  for (int i = 0; i < 20; i++) p[i] = nullptr;
  p[11] = reinterpret_cast<void*>(start);  // x30
#endif
  return p;
}

}  // namespace emulator
