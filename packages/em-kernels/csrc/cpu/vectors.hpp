// Vectors of one instruction set and the few functions on them: load, store, exp, log.
// Included once per instruction set by for_each_isa.hpp, hence without an include guard.

namespace em::EM_ISA {

using f32 = float __attribute__((vector_size(4 * EM_LANES)));
using i32 = std::int32_t __attribute__((vector_size(4 * EM_LANES)));
using u32 = std::uint32_t __attribute__((vector_size(4 * EM_LANES)));
using u16 = std::uint16_t __attribute__((vector_size(2 * EM_LANES)));
using f64 = double __attribute__((vector_size(4 * EM_LANES)));
using i64 = std::int64_t __attribute__((vector_size(4 * EM_LANES)));

template <class C>
struct Vec;
template <>
struct Vec<float> {
  using type = f32;
  using mask = i32;
  static constexpr int lanes = EM_LANES;
};
template <>
struct Vec<double> {
  using type = f64;
  using mask = i64;
  static constexpr int lanes = EM_LANES / 2;
};
template <class C>
using vec_t = typename Vec<C>::type;
template <class C>
using mask_t = typename Vec<C>::mask;

#define EM_INLINE static inline __attribute__((always_inline))
#define EM_MEMBER inline __attribute__((always_inline))

template <class To, class From>
EM_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

template <class V, class P>
EM_INLINE V read(const P* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}

// Unsigned integers widened to 32 bits. gcc widens by a factor of four element by element, hence
// the intrinsics.
EM_INLINE u32 widen(const std::uint8_t* from) {
#if EM_LANES == 16
  return bits_as<u32>(_mm512_cvtepu8_epi32(read<__m128i>(from)));
#elif EM_LANES == 8
  return bits_as<u32>(_mm256_cvtepu8_epi32(_mm_loadu_si64(from)));
#else
  return u32{from[0], from[1], from[2], from[3]};
#endif
}

EM_INLINE u32 widen(const std::uint16_t* from) {
#if EM_LANES == 16
  return bits_as<u32>(_mm512_cvtepu16_epi32(read<__m256i>(from)));
#elif EM_LANES == 8
  return bits_as<u32>(_mm256_cvtepu16_epi32(read<__m128i>(from)));
#else
  return u32{from[0], from[1], from[2], from[3]};
#endif
}

// --- load: any storage type into its compute type -------------------------------------------

EM_INLINE f32 load(const float* from) { return read<f32>(from); }
EM_INLINE f64 load(const double* from) { return read<f64>(from); }
EM_INLINE f32 load(const std::uint8_t* from) {
  return __builtin_convertvector(bits_as<i32>(widen(from)), f32);
}
EM_INLINE f32 load(const std::uint16_t* from) {
  return __builtin_convertvector(bits_as<i32>(widen(from)), f32);
}

EM_INLINE f32 load(const Bf16* from) {
  return bits_as<f32>(widen(&from->bits) << 16);
}

EM_INLINE f32 load(const Fp16* from) {
  const u32 half = widen(&from->bits);
  const u32 magnitude = half & 0x7fffu;
  // Exponent and mantissa move to their place in fp32; the factor 2^112 corrects the bias and
  // turns fp16 subnormals into normal numbers.
  f32 value = bits_as<f32>(magnitude << 13) * 0x1p112f;
  const u32 special = bits_as<u32>(value) | 0x7f800000u;
  const u32 finite = bits_as<u32>(value);
  const u32 bits = magnitude >= 0x7c00u ? special : finite;
  return bits_as<f32>(bits | ((half & 0x8000u) << 16));
}

// --- store: the compute type into any storage type, rounded to nearest even ------------------

template <class T>
struct Packed;
template <>
struct Packed<float> {
  EM_INLINE f32 pack(f32 v) { return v; }
};
template <>
struct Packed<double> {
  EM_INLINE f64 pack(f64 v) { return v; }
};
template <>
struct Packed<Bf16> {
  EM_INLINE u16 pack(f32 v) {
    const u32 bits = bits_as<u32>(v);
    const u32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const u32 quiet = (bits >> 16) | 0x40u;
    return __builtin_convertvector((v != v) ? quiet : rounded, u16);
  }
};
template <>
struct Packed<Fp16> {
  EM_INLINE u16 pack(f32 v) {
    const u32 bits = bits_as<u32>(v);
    const u32 sign = (bits >> 16) & 0x8000u;
    const u32 magnitude = bits & 0x7fffffffu;
    // Below 2^-14 the result is subnormal: adding 0.5 makes the hardware round at the right bit.
    const u32 tiny = bits_as<u32>(bits_as<f32>(magnitude) + 0.5f) - 0x3f000000u;
    const u32 normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const u32 over = magnitude > 0x7f800000u ? u32{} + 0x7e00u : u32{} + 0x7c00u;
    u32 half = magnitude < 0x38800000u ? tiny : normal;
    half = magnitude >= 0x477ff000u ? over : half;  // rounds to more than 65504
    return __builtin_convertvector(half | sign, u16);
  }
};

template <class T, class V>
EM_INLINE void store(T* to, V v) {
  const auto packed = Packed<T>::pack(v);
  __builtin_memcpy(to, &packed, sizeof(packed));
}

// A store past the cache; `to` is aligned to the vector.
template <class T, class V>
EM_INLINE void stream(T* to, V v) {
  const auto packed = Packed<T>::pack(v);
#if EM_WIDE_BODIES
#if EM_LANES == 16
  if constexpr (sizeof(packed) == 64) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), bits_as<__m512i>(packed));
    return;
  }
#endif
#if EM_LANES >= 8
  if constexpr (sizeof(packed) == 32) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), bits_as<__m256i>(packed));
    return;
  }
#endif
  if constexpr (sizeof(packed) == 16) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(to), bits_as<__m128i>(packed));
    return;
  }
#endif
  __builtin_memcpy(to, &packed, sizeof(packed));
}

// One element, through the same rounding as the vectors.
template <class T>
EM_INLINE compute_t<T> load_one(const T* from) {
  if constexpr (sizeof(T) == sizeof(compute_t<T>)) {
    return *from;
  } else {
    T padded[EM_LANES] = {*from};
    return load(padded)[0];
  }
}

template <class T>
EM_INLINE void store_one(T* to, compute_t<T> value) {
  if constexpr (sizeof(T) == sizeof(compute_t<T>)) {
    *to = value;
  } else {
    to->bits = Packed<T>::pack(f32{} + value)[0];
  }
}

constexpr double kLog2e = 1.4426950408889634;

// --- functions ------------------------------------------------------------------------------

template <class V>
EM_INLINE V larger(V a, V b) {
  return a > b ? a : b;
}

template <class V, class M>
EM_INLINE V only(M where, V v) {
  return where ? v : V{};
}

// 2^(t·scale) for t·scale <= 0: 0 below the normal numbers, NaN for NaN. The polynomial is the
// interpolant of 2^f at the Chebyshev nodes of [-1/2, 1/2], relative error 2e-8.
EM_INLINE f32 exp2_scaled(f32 t, float scale) {
  const float magic = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  const f32 shifted = t * scale + magic;
  const f32 f = t * scale - (shifted - magic);
  f32 p = f * 1.54614447e-4f + 1.34004282e-3f;
  p = p * f + 9.61805668e-3f;
  p = p * f + 5.55032723e-2f;
  p = p * f + 2.40226509e-1f;
  p = p * f + 6.93147207e-1f;
  p = p * f + 1.0f;
  const f32 power = bits_as<f32>(bits_as<i32>(p) + (bits_as<i32>(shifted) << 23));
  return shifted < magic - 125.0f ? f32{} : power;
}

EM_INLINE f64 exp2_scaled(f64 t, double scale) {
  f64 out;
  for (int i = 0; i < EM_LANES / 2; ++i) out[i] = __builtin_exp2(t[i] * scale);
  return out;
}

// Natural logarithm of a normal number; NaN for NaN.
EM_INLINE f32 log_normal(f32 x) {
  const i32 bits = bits_as<i32>(x);
  // The exponent that leaves the mantissa in [sqrt(1/2), sqrt(2)).
  const i32 exponent = (bits - 0x3f3504f3) >> 23;
  const f32 m = bits_as<f32>(bits - (exponent << 23));
  const f32 s = (m - 1.0f) / (m + 1.0f);
  const f32 s2 = s * s;
  f32 p = s2 * (1.0f / 9) + (1.0f / 7);
  p = p * s2 + (1.0f / 5);
  p = p * s2 + (1.0f / 3);
  const f32 series = (s * s2 * p + s) * 2.0f;
  const f32 log = __builtin_convertvector(exponent, f32) * 0.693147181f + series;
  return x != x ? x : log;
}

EM_INLINE f64 log_normal(f64 x) {
  f64 out;
  for (int i = 0; i < EM_LANES / 2; ++i) out[i] = __builtin_log(x[i]);
  return out;
}

// The sum of all lanes in double precision, by halves.
template <class V>
EM_INLINE double lane_sum(V v) {
  constexpr int lanes = sizeof(V) / sizeof(v[0]);
  double sums[lanes];
  for (int i = 0; i < lanes; ++i) sums[i] = v[i];
  for (int half = lanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  return sums[0];
}

}  // namespace em::EM_ISA
