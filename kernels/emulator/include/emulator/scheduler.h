// Which thread runs next. Lanes hand over to each other directly; when no lane of a warp can go on, control returns to
// the launch's own stack, which picks the next warp. Nothing is preempted: a fiber runs until it waits or returns.
#pragma once
#include <cstdarg>
#include <cstdio>
#include <sys/mman.h>

#include "emulator/stack_switch.h"
#include "emulator/state.h"

namespace emulator {

template <class T>
EMULATOR_UNSEEN T* map_memory(size_t bytes = sizeof(T)) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<T*>(memory);
}

// ---- Switching

EMULATOR_UNSEEN void leave([[maybe_unused]] Fiber* to) {
#ifdef EMULATOR_ASAN
  void** keep = current == nullptr ? &runtime->main_asan_stack : &current->asan_stack;
  if (current != nullptr && current->done) keep = nullptr;
  if (to == nullptr)
    __sanitizer_start_switch_fiber(keep, runtime->main_stack, runtime->main_stack_bytes);
  else
    __sanitizer_start_switch_fiber(keep, to->stack, STACK);
#endif
#ifdef EMULATOR_TSAN
  __tsan_switch_to_fiber(to == nullptr ? runtime->main_tsan : to->tsan_fiber, 1);  // 1: orders nothing
#endif
}

EMULATOR_UNSEEN void arrived_on([[maybe_unused]] Fiber* fiber) {
#ifdef EMULATOR_ASAN
  __sanitizer_finish_switch_fiber(fiber == nullptr ? runtime->main_asan_stack : fiber->asan_stack, nullptr, nullptr);
#endif
}

EMULATOR_UNSEEN void switch_to(Fiber* to) {
  Fiber* from = current;
  leave(to);
  current = to;
  emulator_switch(from == nullptr ? &runtime->main_stack_pointer : &from->stack_pointer, to->stack_pointer);
  arrived_on(from);
}

EMULATOR_UNSEEN void switch_to_main() {
  Fiber* from = current;
  leave(nullptr);
  current = nullptr;
  emulator_switch(&from->stack_pointer, runtime->main_stack_pointer);
  arrived_on(from);
}

EMULATOR_UNSEEN bool can_run(const Fiber* fiber) { return *fiber->wait_word != fiber->wait_value; }

// Gives way to the next lane of the warp that can run, or to the launch.
EMULATOR_UNSEEN void give_way() {
  Fiber* self = current;
  for (Fiber* fiber = self->next; fiber != self; fiber = fiber->next)
    if (can_run(fiber)) return switch_to(fiber);
  switch_to_main();
}

// Waits until *word is no longer `value`. Only who changes the word ends the wait.
EMULATOR_UNSEEN void wait_for_change(const uint32_t* word, uint32_t value, const Site* site) {
  Fiber* self = current;
  self->wait_word = word;
  self->wait_value = value;
  self->site = site;
  give_way();
}

// Lets all other threads run before this one polls again.
EMULATOR_UNSEEN void wait_for_others(const Site* site) {
  wait_for_change(&runtime->spin_round, runtime->spin_round, site);
}

// ---- Failing

// Ends the launch with a message. From a fiber it never returns: the fiber is abandoned.
EMULATOR_UNSEEN __attribute__((format(printf, 1, 2))) void fail(const char* format, ...) {
  if (!runtime->failed) {
    runtime->failed = true;
    runtime->code = 1;
    char* text = runtime->error;
    const size_t room = sizeof runtime->error;
    size_t used = static_cast<size_t>(snprintf(text, room, "%s: ", runtime->launch.kernel));
    va_list arguments;
    va_start(arguments, format);
    used += static_cast<size_t>(vsnprintf(text + used, room - used, format, arguments));
    va_end(arguments);
    if (current != nullptr && used < room) {
      const uint3 b = current->block->index, t = current->thread;
      snprintf(text + used, room - used, " [block (%u,%u,%u) thread (%u,%u,%u)]", b.x, b.y, b.z, t.x, t.y, t.z);
    }
  }
  if (current != nullptr)
    for (;;) switch_to_main();
}

// ---- The life of a thread

EMULATOR_UNSEEN void complete(Barrier& barrier) {
  barrier.last_any = barrier.any;
  barrier.last_all = barrier.all;
  barrier.last_count = barrier.count;
  barrier.arrived = barrier.any = barrier.count = 0;
  barrier.all = 1;
  barrier.site = nullptr;
  barrier.generation++;
}

EMULATOR_UNSEEN void returned() {
  Fiber* self = current;
  if (self->copies_count != 0) {
    const Site* site = self->site;
    fail("the thread returned with %d cp.async copies not waited for (last met others at %s:%d)", self->copies_count,
         site ? site->file : "its start", site ? site->line : 0);
  }
  runtime->progress++;
  self->done = true;
  self->wait_word = &runtime->never;
  self->wait_value = runtime->never;
  self->warp->alive &= ~(1u << self->lane);
  Block* block = self->block;
  block->alive--;
  // A thread that has returned no longer counts at a barrier.
  if (block->barrier.arrived != 0 && block->barrier.arrived == block->alive) complete(block->barrier);
}

// Where a fiber's stack begins.
EMULATOR_UNSEEN void thread_main() {
#ifdef EMULATOR_ASAN
  const void** bottom = runtime->main_stack == nullptr ? &runtime->main_stack : nullptr;
  __sanitizer_finish_switch_fiber(current->asan_stack, bottom, bottom ? &runtime->main_stack_bytes : nullptr);
#endif
  acquire(&runtime->start_token);
  runtime->launch.call(runtime->launch.params);
  returned();
  release(&runtime->end_token);
  for (;;) give_way();
}

}  // namespace emulator
