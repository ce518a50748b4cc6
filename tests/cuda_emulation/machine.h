// A machine that runs the threads of a kernel one after another, each until it has to wait: fibers of one OS thread,
// the same order every time. The order is a choice, and warps run as far ahead of each other as barriers allow: code
// that lacks a barrier works in one order and fails in another.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

namespace emulation {

enum class Order { RISING, FALLING, SHUFFLED };

// What the emulated device is like; tests set it.
struct Device {
  int multiprocessors = 3;
  size_t shared_bytes = 96 << 10;
  Order order = Order::RISING;
};
Device& device();

struct Index {
  unsigned x;
};

class Machine {
 public:
  Index thread, block, threads, blocks;

  int lane() const { return int(thread.x) % 32; }
  void wait_for_warp();
  void wait_for_block();
  void wait_for_grid();

  // What every lane of the warp gives, by lane. All lanes of the warp must take part.
  template <typename T>
  std::array<T, 32> exchange(unsigned lanes, T value) {
    static_assert(sizeof(T) <= sizeof(uint64_t));
    std::array<T, 32> all;
    uint64_t slot = 0;
    std::memcpy(&slot, &value, sizeof(T));
    const uint64_t* slots = exchange_bits(lanes, slot);
    for (int i = 0; i < 32; ++i) std::memcpy(&all[i], &slots[i], sizeof(T));
    return all;
  }

 private:
  const uint64_t* exchange_bits(unsigned lanes, uint64_t value);
};
Machine& machine();

// Runs `body` once for each thread. Aborts, saying why, if threads wait for what cannot come.
void run(unsigned blocks, unsigned threads, bool together, const std::function<void()>& body);

}  // namespace emulation
