// A tile is a few vectors of pixels with all their classes, copied dense into the first cache:
// tile[K][4·lanes]. Rows of one tile lie far apart in memory, often at a stride that maps them to
// the same cache sets, so they are read once and worked on here.
// Included once per instruction set by for_each_isa.hpp, hence without an include guard.

namespace em::EM_ISA {

constexpr int kVectors = 4;  // per tile row: enough independent chains, few enough registers

// Sums of single precision are moved to double after this many tiles.
constexpr int kTilesPerFlush = 16;

template <class C>
constexpr int kTile = kVectors * Vec<C>::lanes;

// Fills a tile element by element: any strides, n pixels, zeros beyond them.
template <class T, class C = compute_t<T>>
static void fill_tile(const T* x, std::int64_t K, std::int64_t sk, std::int64_t sp, int n,
                      C* tile) {
  constexpr int W = kTile<C>;
  constexpr int lanes = Vec<C>::lanes;
  for (int p = 0; p < W; ++p) {
    if (p >= n) {
      for (std::int64_t k = 0; k < K; ++k) tile[k * W + p] = 0;
      continue;
    }
    const T* pixel = x + p * sp;
    std::int64_t k = 0;
    if (sk == 1) {
      for (; k + lanes <= K; k += lanes) {
        const vec_t<C> v = load(pixel + k);
        for (int i = 0; i < lanes; ++i) tile[(k + i) * W + p] = v[i];
      }
    }
    for (; k < K; ++k) tile[k * W + p] = load_one(pixel + k * sk);
  }
}

// Copies one full row of adjacent pixels and updates the largest logits.
template <class T, class C = compute_t<T>>
EM_INLINE void copy_row(const T* from, C* to, vec_t<C>* m) {
  constexpr int lanes = Vec<C>::lanes;
  for (int v = 0; v < kVectors; ++v) {
    const vec_t<C> row = load(from + v * lanes);
    store(to + v * lanes, row);
    m[v] = larger(m[v], row);
  }
}

template <class T, class C = compute_t<T>>
EM_INLINE void first_row(const T* from, vec_t<C>* m) {
  for (int v = 0; v < kVectors; ++v) m[v] = load(from + v * Vec<C>::lanes);
}

// Reads one tile and the largest logit of each of its pixels.
template <class T, class C = compute_t<T>>
EM_INLINE void read_tile(const T* x, std::int64_t K, std::int64_t sk, std::int64_t sp, int n,
                         C* tile, vec_t<C>* m) {
  constexpr int W = kTile<C>;
  if (n == W && sp == 1) {
    first_row(x, m);
    for (std::int64_t k = 0; k < K; ++k) copy_row(x + k * sk, tile + k * W, m);
    return;
  }
  fill_tile(x, K, sk, sp, n, tile);
  first_row(tile, m);
  for (std::int64_t k = 0; k < K; ++k) copy_row(tile + k * W, tile + k * W, m);
}

// Which pixels of a tile count, as lanes of all ones and zeros; returns how many.
template <class C>
EM_INLINE int read_counted(int n, const bool* mask, mask_t<C>* counted) {
  C one[kTile<C>];
  int count = 0;
  for (int p = 0; p < kTile<C>; ++p) {
    const bool counts = p < n && (mask == nullptr || mask[p]);
    one[p] = counts;
    count += counts;
  }
  for (int v = 0; v < kVectors; ++v) counted[v] = load(one + v * Vec<C>::lanes) != vec_t<C>{};
  return count;
}

// One tile's place in the work [pixel, end): n pixels of one sample, and how many full tiles of
// the same sample follow.
struct Place {
  std::int64_t b, s;
  int n;
  std::int64_t follow;
};

EM_INLINE Place find_place(std::int64_t pixel, std::int64_t end, std::int64_t S, int width) {
  const std::int64_t b = pixel / S, s = pixel % S;
  const std::int64_t left = S - s < end - pixel ? S - s : end - pixel;
  return {b, s, static_cast<int>(left < width ? left : width), left / width - 1};
}

// Fetches one row of a tile that is read soon, while others are computed.
template <class T>
EM_INLINE void prefetch_row(const T* x) {
  constexpr int bytes = kTile<compute_t<T>> * sizeof(T);
  for (int i = 0; i < bytes; i += 64) __builtin_prefetch(reinterpret_cast<const char*>(x) + i, 0, 1);
}

// Writes a row of n pixels: past the cache where asked, one by one where short or strided.
template <class T, class C = compute_t<T>>
EM_INLINE void write_row(T* to, std::int64_t sp, int n, bool past_cache, const vec_t<C>* row) {
  constexpr int lanes = Vec<C>::lanes;
  if (n == kTile<C> && sp == 1) {
    for (int v = 0; v < kVectors; ++v) {
      if (past_cache) {
        stream(to + v * lanes, row[v]);
      } else {
        store(to + v * lanes, row[v]);
      }
    }
    return;
  }
  for (int p = 0; p < n; ++p) store_one(to + p * sp, row[p / lanes][p % lanes]);
}

// Whether every row of a tile at `to` starts on a cache line, as stores past the cache need.
template <class T>
EM_INLINE bool on_lines(const T* to, std::int64_t sk) {
  return reinterpret_cast<std::uintptr_t>(to) % 64 == 0 && sk * sizeof(T) % 64 == 0;
}

}  // namespace em::EM_ISA
