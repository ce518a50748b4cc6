// The instruction set of CPU kernels, found once at run time.
#include <c10/util/Exception.h>

#include <cstdlib>
#include <string>

#include "../ops.h"

namespace sparsesteer {

namespace {

std::string best_level() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx512 ? "avx512" : avx2 ? "avx2" : "portable";
#else
  return "portable";
#endif
}

int rank(const std::string& level) { return level == "avx512" ? 2 : level == "avx2" ? 1 : level == "portable" ? 0 : -1; }

std::string chosen_level() {
  const std::string best = best_level();
  const char* asked = std::getenv("SPARSESTEER_SIMD");
  if (!asked || !*asked) return best;
  TORCH_CHECK(rank(asked) >= 0, "SPARSESTEER_SIMD=", asked, " is unknown; use avx512, avx2 or portable");
  TORCH_CHECK(rank(asked) <= rank(best), "SPARSESTEER_SIMD=", asked, ": this machine has ", best, " at most");
  return asked;
}

}  // namespace

const char* simd_level() {
  static const std::string level = chosen_level();
  return level.c_str();
}

}  // namespace sparsesteer
