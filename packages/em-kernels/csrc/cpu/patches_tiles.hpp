// Patches read from a volume or written to it, a run of neighbouring tokens at a time.
// Included once per instruction set by for_each_isa.hpp, hence without an include guard.

namespace em::EM_ISA {

template <class C, class T>
EM_INLINE vec_t<C> load_as(const T* from) {
  if constexpr (std::is_integral_v<T> && std::is_same_v<C, double>) {
    vec_t<C> v;
    for (int i = 0; i < Vec<C>::lanes; ++i) v[i] = from[i];
    return v;
  } else {
    return load(from);
  }
}

template <class C, class T>
EM_INLINE C load_one_as(const T* from) {
  if constexpr (std::is_integral_v<T>) {
    return *from;
  } else {
    return load_one(from);
  }
}

#if EM_LANES >= 8
EM_INLINE __m256 load_eight(const float* from) { return _mm256_loadu_ps(from); }
EM_INLINE __m256 load_eight(const std::uint8_t* from) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadu_si64(from)));
}
EM_INLINE __m256 load_eight(const std::uint16_t* from) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(read<__m128i>(from)));
}
#endif

// Converts n adjacent elements to raw·scale + shift in the compute type.
template <class T, class C>
EM_INLINE void convert_row(const T* from, std::int64_t n, C scale, C shift, C* to) {
  constexpr int lanes = Vec<C>::lanes;
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) store(to + i, load_as<C>(from + i) * scale + shift);
#if EM_LANES == 16
  if constexpr (std::is_same_v<C, float> && (std::is_integral_v<T> || std::is_same_v<T, float>)) {
    if (i + 8 <= n) {  // a row of the usual patch
      _mm256_storeu_ps(to + i, load_eight(from + i) * scale + shift);
      i += 8;
    }
  }
#endif
  for (; i < n; ++i) to[i] = load_one_as<C>(from + i) * scale + shift;
}

// Copies n elements in pieces that lie a stride apart on either side. The usual pieces are known
// at compile time, so that each is a few moves instead of a call.
template <int kPiece, class C>
EM_INLINE void copy_pieces(const C* from, std::int64_t from_stride, std::int64_t n,
                           std::int64_t piece, C* to, std::int64_t to_stride) {
  const std::int64_t size = kPiece > 0 ? kPiece : piece;
  for (std::int64_t i = 0; i < n; i += size, from += from_stride, to += to_stride)
    __builtin_memcpy(to, from, size * sizeof(C));
}
template <class C>
EM_INLINE void copy_strided(const C* from, std::int64_t from_stride, std::int64_t n,
                            std::int64_t piece, C* to, std::int64_t to_stride) {
  switch (piece) {
    case 4: return copy_pieces<4>(from, from_stride, n, piece, to, to_stride);
    case 8: return copy_pieces<8>(from, from_stride, n, piece, to, to_stride);
    case 16: return copy_pieces<16>(from, from_stride, n, piece, to, to_stride);
    default: return copy_pieces<0>(from, from_stride, n, piece, to, to_stride);
  }
}

// Fetches n elements into the second cache.
template <class T>
EM_INLINE void prefetch(const T* x, std::int64_t n) {
  const char* bytes = reinterpret_cast<const char*>(x);
  for (std::int64_t i = 0; i < n * std::int64_t(sizeof(T)); i += 64)
    __builtin_prefetch(bytes + i, 0, 1);
}

// --- float32 patches of whole cache lines ------------------------------------------------------
//
// 16 values are a line: two rows of 8 voxels of one token, or a part of one longer row. Lines are
// moved whole, with few branches: short loops of unknown length are predicted badly on a busy
// machine, and then cost more than the memory.

template <bool kStream>
EM_INLINE void put(float* to, f32 v) {
  if constexpr (kStream) {
    stream(to, v);
  } else {
    store(to, v);
  }
}

template <bool kScaled, class T>
EM_INLINE f32 load_scaled(const T* from, float scale, float shift) {
  return kScaled ? load(from) * scale + shift : load(from);
}

template <class T>
EM_INLINE void prefetch_line(const T* x) {
  __builtin_prefetch(x, 0, 1);
}

// Two pieces of 8 at `from` and two a step further become the first pieces of both, then the
// second: rows of two tokens into tokens of two rows, and the other way.
template <bool kStream, bool kScaled, class T>
EM_INLINE void turn_block(const T* from, std::int64_t from_step, float scale, float shift,
                          float* to, std::int64_t to_step) {
#if EM_LANES == 16
  const __m512 a = load_scaled<kScaled>(from, scale, shift);
  const __m512 b = load_scaled<kScaled>(from + from_step, scale, shift);
  put<kStream>(to, _mm512_shuffle_f32x4(a, b, 0x44));
  put<kStream>(to + to_step, _mm512_shuffle_f32x4(a, b, 0xee));
#else
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2; ++j)
      for (int x = 0; x < 8; x += EM_LANES)
        put<kStream>(to + i * to_step + j * 8 + x,
                     load_scaled<kScaled>(from + j * from_step + i * 8 + x, scale, shift));
#endif
}

template <bool kStream, bool kScaled, class T>
EM_INLINE void move_line(const T* from, float scale, float shift, float* to) {
  for (int x = 0; x < 16; x += EM_LANES)
    put<kStream>(to + x, load_scaled<kScaled>(from + x, scale, shift));
}

// How many of `count` neighbouring tokens are whole lines, for themselves or in pairs.
EM_INLINE std::int64_t count_lined(const Patches& at, std::int64_t count) {
  if (at.channels_last) return 0;
  return at.px % 16 == 0 ? count : at.px == 8 && at.py % 2 == 0 ? count / 2 * 2 : 0;
}

// Whether every row of the volume starts on a line where this one does.
EM_INLINE bool on_lines(const Patches& at, const float* corner) {
  return (at.sc | at.sz | at.sy) % 16 == 0 && reinterpret_cast<std::uintptr_t>(corner) % 64 == 0;
}

template <bool kStream, bool kScaled, class T>
EM_INLINE void cut_lines_scaled(const Patches& at, const T* corner, std::int64_t count,
                                Affine affine, float* out) {
  const std::int64_t D = at.values();
  const float scale = affine.scale, shift = affine.shift;
  for (std::int64_t c = 0; c < at.C; ++c) {
    for (std::int64_t z = 0; z < at.pz; ++z, out += at.py * at.px) {
      const T* from = corner + c * at.sc + z * at.sz;
      // The next slice of these patches, or the first of the patches below, lies on another page,
      // where the processor does not look ahead by itself.
      const std::int64_t next = z + 1 < at.pz ? at.sz : at.py * at.sy - z * at.sz;
      if (at.px == 8) {
        for (std::int64_t y = 0; y < at.py; y += 2, from += 2 * at.sy) {
          for (std::int64_t t = 0; t < count; t += 2) {
            const T* block = from + t * 8;
            prefetch_line(block + next);
            prefetch_line(block + next + at.sy);
            turn_block<kStream, kScaled>(block, at.sy, scale, shift, out + t * D + y * 8, D);
          }
        }
      } else {
        for (std::int64_t y = 0; y < at.py; ++y, from += at.sy) {
          for (std::int64_t t = 0; t < count; ++t) {
            const T* row = from + t * at.px;
            for (std::int64_t x = 0; x < at.px; x += 16) {
              prefetch_line(row + next + x);
              move_line<kStream, kScaled>(row + x, scale, shift, out + t * D + y * at.px + x);
            }
          }
        }
      }
    }
  }
}

// Cuts the first tokens of a run into out[count][D]; returns how many: those that are whole lines.
template <bool kStream, class T>
EM_INLINE std::int64_t cut_lines(const Patches& at, const T* corner, std::int64_t count,
                                 Affine affine, float* out) {
  count = count_lined(at, count);
  if (count == 0) return 0;
  if (affine.scale == 1 && affine.shift == 0) {
    cut_lines_scaled<kStream, false>(at, corner, count, affine, out);
  } else {
    cut_lines_scaled<kStream, true>(at, corner, count, affine, out);
  }
  return count;
}

// Puts the first tokens of patches[count][D] into the volume; returns how many.
template <bool kStream>
EM_INLINE std::int64_t join_lines(const Patches& at, const float* patches, std::int64_t count,
                                  float* corner) {
  count = count_lined(at, count);
  const std::int64_t D = at.values();
  const float* ahead = patches + count * D;  // the run after this one, line by line
  for (std::int64_t c = 0; count > 0 && c < at.C; ++c) {
    for (std::int64_t z = 0; z < at.pz; ++z) {
      float* to = corner + c * at.sc + z * at.sz;
      if (at.px == 8) {
        for (std::int64_t y = 0; y < at.py; y += 2, patches += 16, to += 2 * at.sy) {
          for (std::int64_t t = 0; t < count; t += 2, ahead += 32) {
            prefetch_line(ahead);
            prefetch_line(ahead + 16);
            turn_block<kStream, false>(patches + t * D, D, 1, 0, to + t * 8, at.sy);
          }
        }
      } else {
        for (std::int64_t y = 0; y < at.py; ++y, patches += at.px, to += at.sy) {
          for (std::int64_t t = 0; t < count; ++t) {
            for (std::int64_t x = 0; x < at.px; x += 16, ahead += 16) {
              prefetch_line(ahead);
              move_line<kStream, false>(patches + t * D + x, 1, 0, to + t * at.px + x);
            }
          }
        }
      }
    }
  }
  return count;
}

// Reads `count` tokens that are neighbours in x into values[count][D]; row holds count·px elements.
template <class T, class C>
void read_run(const Patches& at, const T* corner, std::int64_t count, Affine affine, C* row,
              C* values) {
  if constexpr (std::is_same_v<C, float>) {
    const std::int64_t done = cut_lines<false>(at, corner, count, affine, values);
    corner += done * at.px, values += done * at.values(), count -= done;
  }
  if (count == 0) return;
  const std::int64_t D = at.values(), voxels = at.pz * at.py * at.px, n = count * at.px;
  const C scale = affine.scale, shift = affine.shift;
  [[maybe_unused]] const bool plain = scale == 1 && shift == 0;
  for (std::int64_t c = 0; c < at.C; ++c) {
    for (std::int64_t z = 0; z < at.pz; ++z) {
      for (std::int64_t y = 0; y < at.py; ++y) {
        const T* from = corner + c * at.sc + z * at.sz + y * at.sy;
        // The next slice of this patch, or the first of the patch below, lies on another page,
        // where the processor does not look ahead by itself.
        prefetch(z + 1 < at.pz ? from + at.sz : from - z * at.sz + at.py * at.sy, n);
        const std::int64_t i = (z * at.py + y) * at.px;
        if constexpr (std::is_same_v<T, C>) {
          if (plain && !at.channels_last) {
            copy_strided(from, at.px, n, at.px, values + c * voxels + i, D);
            continue;
          }
        }
        convert_row(from, n, scale, shift, row);
        if (at.channels_last) {
          for (std::int64_t j = 0; j < n; ++j)
            values[j / at.px * D + (i + j % at.px) * at.C + c] = row[j];
        } else {
          copy_strided(row, at.px, n, at.px, values + c * voxels + i, D);
        }
      }
    }
  }
}

// Writes n adjacent values, past the cache where they start on a line.
template <class T, class C>
EM_INLINE void write_values(const C* from, std::int64_t n, bool past_cache, T* to) {
  constexpr int lanes = Vec<C>::lanes;
  std::int64_t i = 0;
  if (past_cache && reinterpret_cast<std::uintptr_t>(to) % 64 == 0) {
    for (; i + lanes <= n; i += lanes) stream(to + i, load(from + i));
  } else {
    for (; i + lanes <= n; i += lanes) store(to + i, load(from + i));
  }
  for (; i < n; ++i) store_one(to + i, from[i]);
}

// volume → out[count][D].
template <class T, class U, class C = compute_t<U>>
void patchify_run(const Patches& at, const T* corner, std::int64_t count, Affine affine, C* row,
                  C* values, bool past_cache, U* out) {
  if constexpr (std::is_same_v<U, float>) {
    if (past_cache && reinterpret_cast<std::uintptr_t>(out) % 64 == 0) {
      const std::int64_t done = cut_lines<true>(at, corner, count, affine, out);
      corner += done * at.px, out += done * at.values(), count -= done;
    }
  }
  if (count == 0) return;
  read_run(at, corner, count, affine, row, values);
  write_values(values, count * at.values(), past_cache, out);
}

// patches[count][D] → the volume at the corner.
template <class T, class C = compute_t<T>>
void unpatchify_run(const Patches& at, const T* patches, std::int64_t count, C* row, C* values,
                    bool past_cache, T* corner) {
  const std::int64_t D = at.values(), voxels = at.pz * at.py * at.px;
  if constexpr (std::is_same_v<T, float>) {
    const std::int64_t done = past_cache && on_lines(at, corner)
                                  ? join_lines<true>(at, patches, count, corner)
                                  : join_lines<false>(at, patches, count, corner);
    corner += done * at.px, patches += done * D, count -= done;
  }
  const std::int64_t n = count * at.px;
  const C* from = values;
  if constexpr (std::is_same_v<T, C>) {
    from = patches;
  } else {
    convert_row(patches, count * D, C(1), C(0), values);
  }
  for (std::int64_t c = 0; count > 0 && c < at.C; ++c) {
    for (std::int64_t z = 0; z < at.pz; ++z) {
      for (std::int64_t y = 0; y < at.py; ++y) {
        const std::int64_t i = (z * at.py + y) * at.px;
        prefetch(patches + count * D + (c * voxels + i) * count, n);
        if (at.channels_last) {
          for (std::int64_t j = 0; j < n; ++j)
            row[j] = from[j / at.px * D + (i + j % at.px) * at.C + c];
        } else {
          copy_strided(from + c * voxels + i, D, n, at.px, row, at.px);
        }
        write_values(row, n, past_cache, corner + c * at.sc + z * at.sz + y * at.sy);
      }
    }
  }
}

// Mean and variance (over D − 1) of one patch.
template <class C>
EM_INLINE void moments(const C* values, std::int64_t D, double& mean, double& variance) {
  using V = vec_t<C>;
  constexpr int lanes = Vec<C>::lanes;
  V sum{}, squares{};
  std::int64_t d = 0;
  for (; d + lanes <= D; d += lanes) sum += load(values + d);
  double total = lane_sum(sum);
  for (; d < D; ++d) total += values[d];
  mean = total / D;
  const C m = mean;
  for (d = 0; d + lanes <= D; d += lanes) {
    const V difference = load(values + d) - m;
    squares += difference * difference;
  }
  total = lane_sum(squares);
  for (; d < D; ++d) total += (values[d] - m) * (values[d] - m);
  variance = total / (D - 1);
}

// Reads `count` tokens, raw where they are to be normalized: moments of raw values keep what
// scale and shift would round away.
template <class T, class C>
EM_INLINE void read_targets(const Patches& at, const T* corner, std::int64_t count, Affine affine,
                            bool normalize, C* row, C* values) {
  read_run(at, corner, count, normalize ? Affine{1, 0} : affine, row, values);
}

// Normalizes the raw values of one patch, and gives the moments that they have when scaled.
template <class C>
EM_INLINE void normalize_patch(C* values, std::int64_t D, Affine affine, double eps, double& mean,
                               double& variance) {
  using V = vec_t<C>;
  constexpr int lanes = Vec<C>::lanes;
  moments(values, D, mean, variance);
  const C m = mean, rest = mean - static_cast<double>(m);
  const C factor = affine.scale / __builtin_sqrt(variance * affine.scale * affine.scale + eps);
  std::int64_t d = 0;
  for (; d + lanes <= D; d += lanes) {
    const V centred = load(values + d) - m - rest;
    store(values + d, centred * factor);
  }
  for (; d < D; ++d) values[d] = (values[d] - m - rest) * factor;
  mean = mean * affine.scale + affine.shift;
  variance *= affine.scale * affine.scale;
}

// volume → the normalized out[count][D], with their moments.
template <class T, class U, class C = compute_t<U>>
void target_run(const Patches& at, const T* corner, std::int64_t count, Affine affine, double eps,
                C* row, C* values, bool past_cache, U* out, double* mean, double* variance) {
  const std::int64_t D = at.values();
  read_targets(at, corner, count, affine, true, row, values);
  for (std::int64_t t = 0; t < count; ++t)
    normalize_patch(values + t * D, D, affine, eps, mean[t], variance[t]);
  write_values(values, count * D, past_cache, out);
}

// Sums of (prediction − target)² of each patch.
template <class T, class U, class C = compute_t<U>>
void error_run(const Patches& at, const T* corner, std::int64_t count, Affine affine,
               bool normalize, double eps, C* row, C* values, const U* prediction, double* sums) {
  using V = vec_t<C>;
  constexpr int lanes = Vec<C>::lanes;
  const std::int64_t D = at.values();
  read_targets(at, corner, count, affine, normalize, row, values);
  for (std::int64_t t = 0; t < count; ++t, values += D, prediction += D) {
    double mean, variance;
    if (normalize) normalize_patch(values, D, affine, eps, mean, variance);
    V squares{};
    std::int64_t d = 0;
    for (; d + lanes <= D; d += lanes) {
      const V difference = load(prediction + d) - load(values + d);
      squares += difference * difference;
    }
    sums[t] = lane_sum(squares);
    for (; d < D; ++d) {
      const C difference = load_one(prediction + d) - values[d];
      sums[t] += difference * difference;
    }
  }
}

// The gradient factor·(prediction − target) of each patch.
template <class T, class U, class C = compute_t<U>>
void error_grad_run(const Patches& at, const T* corner, std::int64_t count, Affine affine,
                    bool normalize, double eps, C* row, C* values, const U* prediction, C factor,
                    bool past_cache, U* out) {
  using V = vec_t<C>;
  constexpr int lanes = Vec<C>::lanes;
  const std::int64_t D = at.values();
  read_targets(at, corner, count, affine, normalize, row, values);
  for (std::int64_t t = 0; normalize && t < count; ++t) {
    double mean, variance;
    normalize_patch(values + t * D, D, affine, eps, mean, variance);
  }
  std::int64_t d = 0;
  for (; d + lanes <= count * D; d += lanes) {
    const V difference = load(prediction + d) - load(values + d);
    store(values + d, difference * factor);
  }
  for (; d < count * D; ++d) values[d] = (load_one(prediction + d) - values[d]) * factor;
  write_values(values, count * D, past_cache, out);
}

}  // namespace em::EM_ISA
