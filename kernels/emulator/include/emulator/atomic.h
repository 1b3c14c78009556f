// Atomic functions. One thread of the CPU runs everything, but TSan has to see them as atomic; they order nothing.
#pragma once
#include <type_traits>

#include "emulator/float16.h"
#include "emulator/scheduler.h"

namespace emulator {

constexpr int IDLE_ATOMICS = 64;

// A thread whose atomics change nothing may be waiting for another one: let that one run now and then.
EMULATOR_UNSEEN void note_atomic(bool changed, const Site* site) {
  Fiber* self = current;
  self->idle_atomics = changed ? 0 : self->idle_atomics + 1;
  if (self->idle_atomics >= IDLE_ATOMICS) {
    self->idle_atomics = 0;
    wait_for_others(site);
  }
}

template <class T, class Operation>
inline T update(T* address, Operation operation, const Site* site) {
  using Word = std::conditional_t<sizeof(T) == 2, uint16_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>;
  static_assert(sizeof(T) == sizeof(Word), "atomics take 2, 4 or 8 bytes");
  Word* word = reinterpret_cast<Word*>(address);
  Word before = __atomic_load_n(word, __ATOMIC_RELAXED), after;
  do {
    after = same_bits<Word>(static_cast<T>(operation(same_bits<T>(before))));
  } while (!__atomic_compare_exchange_n(word, &before, after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  note_atomic(before != after, site);
  return same_bits<T>(before);
}

template <class T>
struct Same {  // keeps an argument from taking part in deduction: the pointer decides the type
  using type = T;
};
template <class T>
using same = typename Same<T>::type;

#define EMULATOR_ATOMIC(NAME, EXPRESSION)                                                    \
  template <class T>                                                                         \
  inline T NAME(const Site* site, T* address, same<T> value) {                               \
    return update(address, [value](T old) -> T { return EXPRESSION; }, site);                \
  }
EMULATOR_ATOMIC(atomic_add, old + value)
EMULATOR_ATOMIC(atomic_sub, old - value)
EMULATOR_ATOMIC(atomic_max, old > value ? old : value)
EMULATOR_ATOMIC(atomic_min, old < value ? old : value)
EMULATOR_ATOMIC(atomic_and, old& value)
EMULATOR_ATOMIC(atomic_or, old | value)
EMULATOR_ATOMIC(atomic_xor, old ^ value)
EMULATOR_ATOMIC(atomic_exch, ((void)old, value))
EMULATOR_ATOMIC(atomic_inc, old >= value ? 0 : old + 1)
EMULATOR_ATOMIC(atomic_dec, old == 0 || old > value ? value : old - 1)
#undef EMULATOR_ATOMIC

template <class Format>
inline emulated::Float16x2<Format> atomic_add(const Site* site, emulated::Float16x2<Format>* address, same<emulated::Float16x2<Format>> value) {
  return update(address, [value](emulated::Float16x2<Format> old) { return __hadd2(old, value); }, site);
}

template <class T>
inline T atomic_cas(const Site* site, T* address, same<T> compare, same<T> value) {
  return update(address, [=](T old) { return old == compare ? value : old; }, site);
}

}  // namespace emulator

#define atomicAdd(...) emulator::atomic_add(EMULATOR_SITE("atomicAdd"), __VA_ARGS__)
#define atomicSub(...) emulator::atomic_sub(EMULATOR_SITE("atomicSub"), __VA_ARGS__)
#define atomicMax(...) emulator::atomic_max(EMULATOR_SITE("atomicMax"), __VA_ARGS__)
#define atomicMin(...) emulator::atomic_min(EMULATOR_SITE("atomicMin"), __VA_ARGS__)
#define atomicAnd(...) emulator::atomic_and(EMULATOR_SITE("atomicAnd"), __VA_ARGS__)
#define atomicOr(...) emulator::atomic_or(EMULATOR_SITE("atomicOr"), __VA_ARGS__)
#define atomicXor(...) emulator::atomic_xor(EMULATOR_SITE("atomicXor"), __VA_ARGS__)
#define atomicExch(...) emulator::atomic_exch(EMULATOR_SITE("atomicExch"), __VA_ARGS__)
#define atomicInc(...) emulator::atomic_inc(EMULATOR_SITE("atomicInc"), __VA_ARGS__)
#define atomicDec(...) emulator::atomic_dec(EMULATOR_SITE("atomicDec"), __VA_ARGS__)
#define atomicCAS(...) emulator::atomic_cas(EMULATOR_SITE("atomicCAS"), __VA_ARGS__)
