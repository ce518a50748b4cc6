// Vectors of one instruction set: loads that widen, stores that round, sums in a fixed order.
// Included by cpu/steer_<isa>.cpp after its target pragma; everything lives in that file's own namespace.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

namespace sparsesteer::SPARSESTEER_ISA {

#define SPARSESTEER_INLINE inline __attribute__((always_inline))

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

template <typename C>
struct VectorOf {
  typedef C type __attribute__((vector_size(SPARSESTEER_VECTOR_BYTES)));
};
template <typename C>
using Vec = typename VectorOf<C>::type;
template <typename C>
constexpr int64_t kLanes = SPARSESTEER_VECTOR_BYTES / sizeof(C);

typedef uint16_t Bits16 __attribute__((vector_size(SPARSESTEER_VECTOR_BYTES / 2)));
typedef uint32_t Bits32 __attribute__((vector_size(SPARSESTEER_VECTOR_BYTES)));

template <typename To, typename From>
SPARSESTEER_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

SPARSESTEER_INLINE float half_to_float(uint16_t bits) {
  // the exponent moves by a multiplication, so that subnormals come out right
  const uint32_t shifted = uint32_t(bits & 0x7fff) << 13;
  const bool special = (bits & 0x7c00) == 0x7c00;
  const float magnitude =
      special ? bit_cast<float>(shifted | 0x7f800000u) : bit_cast<float>(shifted) * bit_cast<float>(0x77800000u);
  return bit_cast<float>(bit_cast<uint32_t>(magnitude) | uint32_t(bits & 0x8000) << 16);
}

SPARSESTEER_INLINE uint16_t float_to_half(float value) {
  const uint32_t all = bit_cast<uint32_t>(value), sign = all >> 16 & 0x8000, magnitude = all & 0x7fffffff;
  if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);
  if (magnitude < 0x38800000)  // a subnormal: adding 0.5 leaves its bits, rounded, in the low end
    return uint16_t(sign | (bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u));
  return uint16_t(sign | ((magnitude - 0x38000000u + 0xfff + (magnitude >> 13 & 1)) >> 13));
}

SPARSESTEER_INLINE Vec<float> load(const float* p) {
  Vec<float> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

SPARSESTEER_INLINE Vec<double> load(const double* p) {
  Vec<double> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// The compiler splits a conversion of vectors in two: intrinsics where there are any.
SPARSESTEER_INLINE Bits32 widen(Bits16 bits) {
#if SPARSESTEER_VECTOR_BYTES == 64
  return bit_cast<Bits32>(_mm512_cvtepu16_epi32(bit_cast<__m256i>(bits)));
#elif SPARSESTEER_VECTOR_BYTES == 32
  return bit_cast<Bits32>(_mm256_cvtepu16_epi32(bit_cast<__m128i>(bits)));
#else
  return __builtin_convertvector(bits, Bits32);
#endif
}

// Of numbers below 2^16.
SPARSESTEER_INLINE Bits16 narrow(Bits32 bits) {
#if SPARSESTEER_VECTOR_BYTES == 64
  return bit_cast<Bits16>(_mm512_cvtepi32_epi16(bit_cast<__m512i>(bits)));
#elif SPARSESTEER_VECTOR_BYTES == 32
  const __m256i pairs = _mm256_packus_epi32(bit_cast<__m256i>(bits), bit_cast<__m256i>(bits));
  return bit_cast<Bits16>(_mm256_castsi256_si128(_mm256_permute4x64_epi64(pairs, 0b1000)));
#else
  return __builtin_convertvector(bits, Bits16);
#endif
}

SPARSESTEER_INLINE Vec<float> load(const BFloat16* p) {
  Bits16 bits;
  std::memcpy(&bits, p, sizeof bits);
  return bit_cast<Vec<float>>(widen(bits) << 16);
}

SPARSESTEER_INLINE Vec<float> load(const Half* p) {
#if SPARSESTEER_VECTOR_BYTES == 64
  return bit_cast<Vec<float>>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif SPARSESTEER_VECTOR_BYTES == 32
  return bit_cast<Vec<float>>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  Vec<float> v;
  for (int64_t i = 0; i < kLanes<float>; ++i) v[i] = half_to_float(p[i].bits);
  return v;
#endif
}

SPARSESTEER_INLINE Vec<float> load(const int8_t* p) {
#if SPARSESTEER_VECTOR_BYTES == 64
  return bit_cast<Vec<float>>(
      _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))));
#elif SPARSESTEER_VECTOR_BYTES == 32
  return bit_cast<Vec<float>>(
      _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))));
#else
  Vec<float> v;
  for (int64_t i = 0; i < kLanes<float>; ++i) v[i] = p[i];
  return v;
#endif
}

SPARSESTEER_INLINE void store(float* p, Vec<float> v) { std::memcpy(p, &v, sizeof v); }

SPARSESTEER_INLINE void store(double* p, Vec<double> v) { std::memcpy(p, &v, sizeof v); }

SPARSESTEER_INLINE void store(BFloat16* p, Vec<float> v) {
  const Bits32 bits = bit_cast<Bits32>(v);
  const Bits32 rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const Bits32 is_nan = bit_cast<Bits32>((bits & 0x7fffffff) > 0x7f800000);
  const Bits16 rounded_bits = narrow((is_nan & 0x7fc0) | (~is_nan & rounded));
  std::memcpy(p, &rounded_bits, sizeof rounded_bits);
}

SPARSESTEER_INLINE void store(Half* p, Vec<float> v) {
#if SPARSESTEER_VECTOR_BYTES == 64
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(bit_cast<__m512>(v), 0));
#elif SPARSESTEER_VECTOR_BYTES == 32
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(bit_cast<__m256>(v), 0));
#else
  for (int64_t i = 0; i < kLanes<float>; ++i) p[i].bits = float_to_half(v[i]);
#endif
}

template <typename C>
SPARSESTEER_INLINE Vec<C> broadcast(C value) {
  Vec<C> v;
  for (int64_t i = 0; i < kLanes<C>; ++i) v[i] = value;
  return v;
}

// The first n lanes, the others 0.
template <typename C, typename S>
SPARSESTEER_INLINE Vec<C> load_part(const S* p, int64_t n) {
  S padded[kLanes<C>] = {};
  std::memcpy(padded, p, n * sizeof(S));
  return load(padded);
}

template <typename C, typename S>
SPARSESTEER_INLINE void store_part(S* p, Vec<C> v, int64_t n) {
  S padded[kLanes<C>];
  store(padded, v);
  std::memcpy(p, padded, n * sizeof(S));
}

template <int First, typename V, size_t... Lane>
SPARSESTEER_INLINE auto lanes(V v, std::index_sequence<Lane...>) {
  return __builtin_shufflevector(v, v, (First + int(Lane))...);
}

// Lane i is added to lane i + half, until one is left.
template <typename C, int N = kLanes<C>, typename V>
SPARSESTEER_INLINE C sum(V v) {
  if constexpr (N == 2) {
    return v[0] + v[1];
  } else {
    const auto half = std::make_index_sequence<N / 2>();
    return sum<C, N / 2>(lanes<0>(v, half) + lanes<N / 2>(v, half));
  }
}

// A whole vector, or the first n lanes of one.
template <typename C, typename S>
SPARSESTEER_INLINE Vec<C> part(const S* p, int64_t n) {
  return n == kLanes<C> ? load(p) : load_part<C>(p, n);
}

template <typename C, typename S>
SPARSESTEER_INLINE void put(S* p, Vec<C> v, int64_t n) {
  n == kLanes<C> ? store(p, v) : store_part<C>(p, v, n);
}

// visit(first, count) for every vector of a row, the last one in part.
template <typename C, typename F>
SPARSESTEER_INLINE void each_vector(int64_t width, F&& visit) {
  int64_t c = 0;
  for (; c + kLanes<C> <= width; c += kLanes<C>) visit(c, kLanes<C>);
  if (c < width) visit(c, width - c);
}

}  // namespace sparsesteer::SPARSESTEER_ISA
