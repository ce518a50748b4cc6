#include "machine.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "cuda_runtime.h"

// The shared memory of the block that runs; csrc/cuda/common.cuh declares it.
namespace sparsesteer::cuda {
float4 shared_memory[(256 << 10) / sizeof(float4)];
}

namespace emulation {

namespace {

using sparsesteer::cuda::shared_memory;

constexpr size_t kStack = 64 << 10;

[[noreturn]] void fail(const char* why) {
  std::fprintf(stderr, "emulated kernel: %s\n", why);
  std::abort();
}

// Threads that wait for each other: `arrived` of `expected`, and how often all of them have.
struct Barrier {
  unsigned expected, arrived = 0, rounds = 0;
};

struct Warp {
  Barrier barrier{32};
  uint64_t slots[2][32];  // of this exchange and the one before, which slow lanes still read
};

struct Fiber {
  char* stack = nullptr;
  jmp_buf state;
  bool started = false, done = false;
  const Barrier* waits_for = nullptr;
  unsigned round = 0;  // of the barrier, when the fiber came
  unsigned exchanges = 0;

  bool can_run() const { return !done && (!waits_for || waits_for->rounds != round); }
};

struct Block {
  std::vector<Fiber*> fibers;
  std::vector<Warp> warps;
  Barrier barrier;
  std::vector<char> shared;
};

std::vector<std::unique_ptr<Fiber>> all_fibers;
std::vector<Block> all_blocks;
Barrier grid;
jmp_buf scheduler;
Fiber* running = nullptr;
const std::function<void()>* kernel = nullptr;

void wait_at(Barrier& barrier) {
  running->round = barrier.rounds;
  running->waits_for = &barrier;
  if (++barrier.arrived == barrier.expected) barrier.arrived = 0, ++barrier.rounds;
  if (!running->can_run() && _setjmp(running->state) == 0) _longjmp(scheduler, 1);
  running->waits_for = nullptr;
}

void enter() {
  (*kernel)();
  running->done = true;
  _longjmp(scheduler, 1);
}

void start(Fiber& fiber) {
  fiber.started = true;
  if (!fiber.stack) {
    fiber.stack = static_cast<char*>(
        mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (fiber.stack == MAP_FAILED) fail("no memory for another stack");
  }
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack, context.uc_stack.ss_size = kStack, context.uc_link = nullptr;
  makecontext(&context, enter, 0);
  setcontext(&context);
}

void resume(Fiber& fiber) {
  running = &fiber;
  if (_setjmp(scheduler) != 0) return;
  if (!fiber.started) start(fiber);
  _longjmp(fiber.state, 1);
}

std::vector<unsigned> order_of(unsigned n, std::mt19937& random) {
  std::vector<unsigned> order(n);
  for (unsigned i = 0; i < n; ++i) order[i] = device().order == Order::FALLING ? n - 1 - i : i;
  if (device().order == Order::SHUFFLED) std::shuffle(order.begin(), order.end(), random);
  return order;
}

// Runs a warp until all of its threads wait for other warps or are done. Returns true if any thread ran.
bool run_warp(Block& block, unsigned warp, std::mt19937& random) {
  bool any = false;
  for (bool progress = true; progress; any |= progress) {
    progress = false;
    for (unsigned lane : order_of(32, random)) {
      Fiber& fiber = *block.fibers[warp * 32 + lane];
      if (!fiber.can_run()) continue;
      machine().thread = {warp * 32 + lane};
      resume(fiber);
      progress = true;
    }
  }
  return any;
}

// The same of a block. A warp gets as far ahead of the others as it can.
bool run_block(unsigned number, std::mt19937& random) {
  Block& block = all_blocks[number];
  machine().block = {number};
  std::memcpy(shared_memory, block.shared.data(), block.shared.size());
  bool any = false;
  for (bool progress = true; progress; any |= progress) {
    progress = false;
    for (unsigned warp : order_of(unsigned(block.warps.size()), random)) progress |= run_warp(block, warp, random);
  }
  std::memcpy(block.shared.data(), shared_memory, block.shared.size());
  return any;
}

void prepare(unsigned blocks, unsigned threads) {
  if (threads % 32 != 0) fail("blocks must be made of whole warps");
  while (all_fibers.size() < size_t(blocks) * threads) all_fibers.push_back(std::make_unique<Fiber>());
  all_blocks.assign(blocks, {});
  grid = {blocks * threads};
  for (unsigned b = 0; b < blocks; ++b) {
    Block& block = all_blocks[b];
    block.warps.resize(threads / 32);
    block.barrier = {threads};
    block.shared.assign(device().shared_bytes, char(0xff));  // NaN
    for (unsigned t = 0; t < threads; ++t) {
      Fiber& fiber = *all_fibers[size_t(b) * threads + t];
      fiber.started = fiber.done = false, fiber.waits_for = nullptr, fiber.exchanges = 0;
      block.fibers.push_back(&fiber);
    }
  }
}

bool all_done(const Block& block) {
  return std::all_of(block.fibers.begin(), block.fibers.end(), [](const Fiber* fiber) { return fiber->done; });
}

}  // namespace

Device& device() {
  static Device instance;
  return instance;
}

Machine& machine() {
  static Machine instance;
  return instance;
}

void Machine::wait_for_warp() { wait_at(all_blocks[block.x].warps[thread.x / 32].barrier); }
void Machine::wait_for_block() { wait_at(all_blocks[block.x].barrier); }
void Machine::wait_for_grid() { wait_at(grid); }

const uint64_t* Machine::exchange_bits(unsigned lanes, uint64_t value) {
  if (lanes != 0xffffffffu) fail("a warp's exchange without all lanes is not emulated");
  uint64_t* slots = all_blocks[block.x].warps[thread.x / 32].slots[running->exchanges++ % 2];
  slots[lane()] = value;
  wait_for_warp();
  return slots;
}

void run(unsigned blocks, unsigned threads, bool together, const std::function<void()>& body) {
  std::mt19937 random(blocks * 1009 + threads);
  prepare(blocks, threads);
  kernel = &body;
  machine().blocks = {blocks}, machine().threads = {threads};
  bool progress = true;
  while (progress) {
    progress = false;
    for (unsigned b : order_of(blocks, random)) progress |= run_block(b, random);
  }
  for (const Block& block : all_blocks)
    if (!all_done(block)) fail("threads wait for threads that never come");
  if (!together && grid.rounds > 0) fail("blocks waited for each other in a launch that does not run them together");
}

}  // namespace emulation
