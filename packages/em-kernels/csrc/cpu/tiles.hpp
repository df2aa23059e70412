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

// Reads the tiles of one tensor in order. While one is worked on, the next is copied and the one
// after it is fetched into the cache, a vector with each that is computed. Without kCopies, where
// the first cache has no room for another tile, the next one is fetched.
template <class T, bool kCopies = true, class C = compute_t<T>>
struct TileReader {
  static constexpr int W = kTile<C>, lanes = Vec<C>::lanes;
  const PixelsIn& in;
  std::int64_t K;
  C* tile;        // K·W
  C* tile_ahead;  // K·W, with kCopies
  vec_t<C> m[kVectors];  // the largest logits
  vec_t<C> m_ahead[kVectors];
  const T* next = nullptr;
  const T* soon = nullptr;
  bool ahead = false;

  EM_MEMBER TileReader(const PixelsIn& in, std::int64_t K, C* scratch)
      : in(in), K(K), tile(scratch), tile_ahead(scratch + K * W) {}

  // Makes `tile` and `m` those of a place, and gets ready for the next.
  EM_MEMBER void start(const Place& at) {
    const T* x = static_cast<const T*>(in.data) + at.b * in.sb + at.s * in.sp;
    if (ahead) {
      std::swap(tile, tile_ahead);
      for (int v = 0; v < kVectors; ++v) m[v] = m_ahead[v];
    } else {
      read_tile(x, K, in.sk, in.sp, at.n, tile, m);
    }
    const std::int64_t follow = in.sp == 1 ? at.follow : 0;
    ahead = kCopies && follow > 0;
    next = x + W;
    soon = x + (kCopies ? (follow > 1 ? 2 * W : 0) : (follow > 0 ? W : 0));
    if (ahead) first_row(next, m_ahead);
  }

  // Returns one vector of the tile, and copies and fetches its successors.
  EM_MEMBER vec_t<C> take(std::int64_t k, int v) {
    const std::int64_t i = k * W + v * lanes;
    __builtin_prefetch(soon + k * in.sk + v * lanes, 0, 1);
    if (kCopies && ahead) {
      const vec_t<C> row = load(next + k * in.sk + v * lanes);
      store(tile_ahead + i, row);
      m_ahead[v] = larger(m_ahead[v], row);
    }
    return load(tile + i);
  }
};

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
