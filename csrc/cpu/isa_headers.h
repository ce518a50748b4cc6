// What kernels include, before the pragma of an instruction set: an inline function of a standard header compiled for
// one could be linked into code that runs on any machine.
#pragma once

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>
