// Who does what part of a range, and with which memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "simd.h"

namespace sparsesteer::SPARSESTEER_ISA {

// Scratch that lives as long as its thread, so that a call of one token allocates nothing.
inline char* scratch(size_t bytes) {
  static thread_local std::unique_ptr<char[]> memory;
  static thread_local size_t capacity = 0;
  if (bytes + 64 > capacity) {
    capacity = bytes + 64;
    memory.reset(new char[capacity]);
  }
  const auto address = reinterpret_cast<uintptr_t>(memory.get());
  return memory.get() + (64 - address % 64) % 64;
}

// Bytes for so many numbers that begin on a cache line and leave the next one to others.
template <typename C>
constexpr size_t room(int64_t count) {
  return (count * sizeof(C) + 63) / 64 * 64;
}

struct Range {
  int64_t begin, end;
};

// Part `i` of `parts` of [0, n), its borders multiples of `grain`.
inline Range share(int64_t n, int64_t parts, int64_t i, int64_t grain) {
  const int64_t chunk = ((n + parts - 1) / parts + grain - 1) / grain * grain;
  return {std::min(n, i * chunk), std::min(n, (i + 1) * chunk)};
}

}  // namespace sparsesteer::SPARSESTEER_ISA
