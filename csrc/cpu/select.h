// The largest of many: keys that order candidates as the ops rank them, and a list for each token that keeps the best.
#pragma once

#include <algorithm>
#include <functional>
#include <limits>
#include <vector>

#include "simd.h"

namespace sparsesteer::SPARSESTEER_ISA {

template <typename C>
struct KeyOf;
template <>
struct KeyOf<float> {
  using Bits = uint32_t;
  using type = uint64_t;
};
template <>
struct KeyOf<double> {
  using Bits = uint64_t;
  using type = unsigned __int128;
};
template <typename C>
using Bits = typename KeyOf<C>::Bits;

// An integer that orders as the value does.
template <typename C>
SPARSESTEER_INLINE Bits<C> ordered(C value) {
  constexpr Bits<C> sign = Bits<C>(1) << (8 * sizeof(C) - 1);
  const Bits<C> bits = bit_cast<Bits<C>>(value + C(0));  // -0 + 0 = +0: a tie
  return bits & sign ? ~bits : bits | sign;
}

template <typename C>
SPARSESTEER_INLINE C from_ordered(Bits<C> bits) {
  constexpr Bits<C> sign = Bits<C>(1) << (8 * sizeof(C) - 1);
  return bit_cast<C>(bits & sign ? Bits<C>(bits ^ sign) : Bits<C>(~bits));
}

// A value and its index as one integer: the larger value first, the lower index first in ties. Integers, because
// the standard library's templates are compiled for any machine and would call a comparison of ours every time.
template <typename C>
using Key = typename KeyOf<C>::type;

template <typename C>
SPARSESTEER_INLINE Key<C> key_of(C value, int32_t index) {
  return Key<C>(ordered(value)) << 32 | uint32_t(~index);
}

template <typename C>
SPARSESTEER_INLINE C value_of(Key<C> key) {
  return from_ordered<C>(Bits<C>(key >> 32));
}

template <typename C>
SPARSESTEER_INLINE int32_t index_of(Key<C> key) {
  return int32_t(~uint32_t(key));
}

// Bit i is lane i of a comparison's result.
template <typename C, typename Mask>
SPARSESTEER_INLINE uint32_t bits_of(Mask lanes) {
#if SPARSESTEER_VECTOR_BYTES == 64
  if constexpr (sizeof(C) == 4) return _mm512_movepi32_mask(bit_cast<__m512i>(lanes));
  if constexpr (sizeof(C) == 8) return _mm512_movepi64_mask(bit_cast<__m512i>(lanes));
#elif SPARSESTEER_VECTOR_BYTES == 32
  if constexpr (sizeof(C) == 4) return _mm256_movemask_ps(bit_cast<__m256>(lanes));
  if constexpr (sizeof(C) == 8) return _mm256_movemask_pd(bit_cast<__m256d>(lanes));
#else
  uint32_t bits = 0;
  for (int64_t i = 0; i < kLanes<C>; ++i) bits |= uint32_t(lanes[i] != 0) << i;
  return bits;
#endif
}

// The lanes of `wanted` and their numbers, from `first` on, packed; up to kLanes of both are written.
template <typename C>
SPARSESTEER_INLINE void pack(Vec<C> value, uint32_t wanted, int32_t first, C* values, int32_t* indices) {
#if SPARSESTEER_VECTOR_BYTES == 64
  const __m512i numbers = _mm512_add_epi32(_mm512_set1_epi32(first),
                                           _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
  if constexpr (sizeof(C) == 4)
    store(values, bit_cast<Vec<C>>(_mm512_maskz_compress_ps(wanted, bit_cast<__m512>(value))));
  if constexpr (sizeof(C) == 8)
    store(values, bit_cast<Vec<C>>(_mm512_maskz_compress_pd(wanted, bit_cast<__m512d>(value))));
  const __m512i packed = _mm512_maskz_compress_epi32(wanted, numbers);
  std::memcpy(indices, &packed, kLanes<C> * sizeof(int32_t));
#else
  for (; wanted != 0; wanted &= wanted - 1) {
    const int lane = __builtin_ctz(wanted);
    *values++ = value[lane], *indices++ = first + lane;
  }
#endif
}

template <typename C>
int64_t count_above(const C* values, int64_t n, C bar) {
  decltype(Vec<C>{} > bar) found = {};
  int64_t i = 0, count = 0;
  for (; i + kLanes<C> <= n; i += kLanes<C>) found -= load(values + i) > bar;
  for (int lane = 0; lane < kLanes<C>; ++lane) count += found[lane];
  for (; i < n; ++i) count += values[i] > bar;
  return count;
}

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

// The `limit` best of what is pushed, and some more. Only values above the bar have a chance; it rises as the list
// fills. Indices come in rising order, so that a value equal to the bar comes too late.
template <typename C>
class Best {
 public:
  explicit Best(int64_t limit, C bar = -std::numeric_limits<C>::infinity())
      : bar(limit > 0 ? bar : std::numeric_limits<C>::infinity()),
        limit(limit),
        room(limit > kNoLimit / kRoom ? kNoLimit : std::max(kLeastRoom, kRoom * limit)) {}

  // The lanes of `wanted`, whose indices count from `first` on.
  void push(Vec<C> value, uint32_t wanted, int32_t first) {
    if (size + kLanes<C> > int64_t(values.size())) grow();
    pack<C>(value, wanted, first, values.data() + size, indices.data() + size);
    size += __builtin_popcount(wanted);
    if (size >= room) thin_out();
  }

  // Takes over what another list of the same token kept.
  void merge(const Best& other) {
    values.resize(size), indices.resize(size);
    values.insert(values.end(), other.values.begin(), other.values.begin() + other.size);
    indices.insert(indices.end(), other.indices.begin(), other.indices.begin() + other.size);
    size += other.size, count += other.count;
  }

  // The keys of the `limit` best, of which the last stands at [limit - 1] if there are so many; in no order else.
  std::vector<Key<C>> keys() const {
    std::vector<Key<C>> all(size);
    for (int64_t i = 0; i < size; ++i) all[i] = key_of(values[i], indices[i]);
    if (all.empty() || size < limit) return all;
    std::nth_element(all.begin(), all.begin() + (limit - 1), all.end(), std::greater<Key<C>>());
    all.resize(limit);
    return all;
  }

  C bar;
  int64_t count = 0;  // of active features, whether they were pushed or not

 private:
  static constexpr int64_t kLeastRoom = 64, kRoom = 3;

  // Raises the bar by bisection to where little more than `limit` values are above it; exactly, where ties forbid.
  void thin_out() {
    const int64_t enough = limit + limit / 4;
    Bits<C> low = ordered(bar), high = ordered(std::numeric_limits<C>::infinity());
    int64_t above = size;
    while (above > enough && high - low > 1) {
      const Bits<C> middle = low + (high - low) / 2;
      const int64_t found = count_above(values.data(), size, from_ordered<C>(middle));
      if (found >= limit)
        low = middle, above = found;
      else
        high = middle;
    }
    bar = from_ordered<C>(low);
    keep([&](C value, int32_t) { return value > bar; });
    if (size > room / 2) keep_exactly();
  }

  void keep_exactly() {
    const Key<C> last = keys()[limit - 1];
    bar = value_of<C>(last);
    keep([&](C value, int32_t index) { return key_of(value, index) >= last; });
  }

  template <typename Wanted>
  SPARSESTEER_INLINE void keep(Wanted&& wanted) {
    int64_t kept = 0;
    for (int64_t i = 0; i < size; ++i) {
      values[kept] = values[i], indices[kept] = indices[i];
      kept += wanted(values[i], indices[i]);
    }
    size = kept;
  }

  void grow() {
    const size_t more = 2 * (size + kLanes<C>);
    values.resize(more), indices.resize(more);
  }

  int64_t limit, room, size = 0;
  std::vector<C> values;
  std::vector<int32_t> indices;
};

}  // namespace sparsesteer::SPARSESTEER_ISA
