// The instruction set of CPU kernels: the machine's best, or a lower one that SPARSESTEER_SIMD asks for.
#include <c10/util/Exception.h>

#include <atomic>
#include <cstdlib>

#include "../ops.h"

namespace sparsesteer {

namespace {

constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512_bf16"};

SimdLevel best_level() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  const auto has = [](auto... found) { return (found && ...); };
  const bool avx2 = has(__builtin_cpu_supports("avx2"), __builtin_cpu_supports("fma"), __builtin_cpu_supports("f16c"));
  const bool avx512 = has(avx2, __builtin_cpu_supports("avx512f"), __builtin_cpu_supports("avx512bw"),
                          __builtin_cpu_supports("avx512dq"), __builtin_cpu_supports("avx512vl"));
  if (has(avx512, __builtin_cpu_supports("avx512bf16"))) return SimdLevel::AVX512_BF16;
  return avx512 ? SimdLevel::AVX512 : avx2 ? SimdLevel::AVX2 : SimdLevel::PORTABLE;
#else
  return SimdLevel::PORTABLE;
#endif
}

SimdLevel level_named(const std::string& name) {
  for (int level = 0; level <= int(SimdLevel::AVX512_BF16); ++level) {
    if (name != kNames[level]) continue;
    TORCH_CHECK(level <= int(best_level()), "SIMD level ", name, ": this machine has ", kNames[int(best_level())],
                " at most");
    return SimdLevel(level);
  }
  TORCH_CHECK(false, "SIMD level ", name, " is unknown; use avx512_bf16, avx512, avx2 or portable");
}

SimdLevel first_level() {
  const char* asked = std::getenv("SPARSESTEER_SIMD");
  return asked && *asked ? level_named(asked) : best_level();
}

std::atomic<SimdLevel>& current() {
  static std::atomic<SimdLevel> level(first_level());
  return level;
}

}  // namespace

SimdLevel simd_level() { return current().load(std::memory_order_relaxed); }

std::string simd_name() { return kNames[int(simd_level())]; }

void set_simd_level(const std::string& name) { current() = level_named(name); }

}  // namespace sparsesteer
