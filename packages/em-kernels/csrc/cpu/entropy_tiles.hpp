// The entropy kernels over one chunk of pixels.
// Included once per instruction set by for_each_isa.hpp, hence without an include guard.
//
// With t = logit − max, e = exp(t/τ), Z = Σe and s = Σe·t of a pixel, its entropy is
// H = log Z − s/(τ·Z), and p = e/Z. With w = e·(b − a·t/τ), the gradient of a·H + Σ b·p is
// (w − e·Σw/Z)/(τ·Z): log Z cancels.

namespace em::EM_ISA {

// Adds to sums: the entropies, K probabilities and the number of pixels [begin, end), and writes
// the probabilities of each pixel, counted or not, where asked. scratch: K·(2 tiles + lanes).
template <class T, class C = compute_t<T>>
void entropy_chunk(const EntropyJob& job, std::int64_t begin, std::int64_t end, double* sums,
                   C* scratch) {
  using V = vec_t<C>;
  constexpr int W = kTile<C>;
  constexpr int lanes = Vec<C>::lanes;
  const std::int64_t K = job.K;
  const C inv_t = job.inv_temperature;
  const C scale = job.inv_temperature * kLog2e;
  TileReader<T> logits(job.logits, K, scratch);
  C* marginal = scratch + 2 * K * W;
  V entropy{};
  for (std::int64_t i = 0; i < K * lanes; ++i) marginal[i] = 0;

  int unflushed = 0;
  for (std::int64_t pixel = begin; pixel < end;) {
    const Place at = find_place(pixel, end, job.S, W);
    const bool* mask = job.mask == nullptr ? nullptr : job.mask + pixel;
    const bool all = at.n == W && mask == nullptr;
    pixel += at.n;

    V Z[kVectors], S[kVectors];
    logits.start(at);
    C* tile = logits.tile;
    for (int v = 0; v < kVectors; ++v) Z[v] = S[v] = V{};
    for (std::int64_t k = 0; k < K; ++k) {
      for (int v = 0; v < kVectors; ++v) {
        const V t = logits.take(k, v) - logits.m[v];
        const V e = exp2_scaled(t, scale);
        Z[v] += e;
        S[v] += e * t;
        store(tile + k * W + v * lanes, e);
      }
    }

    V inv_Z[kVectors];
    mask_t<C> counted[kVectors];
    if (!all) sums[K + 1] += read_counted<C>(at.n, mask, counted);
    for (int v = 0; v < kVectors; ++v) {
      inv_Z[v] = C(1) / Z[v];
      const V H = log_normal(Z[v]) - S[v] * inv_t * inv_Z[v];
      entropy += all ? H : only(counted[v], H);
    }
    if (all) sums[K + 1] += W;

    const PixelsOut& out = job.probabilities;
    T* to = static_cast<T*>(out.data) + at.b * out.sb + at.s * out.sp;
    const bool past_cache = out.past_cache && on_lines(to, out.sk);
    for (std::int64_t k = 0; k < K; ++k) {
      V p[kVectors], sum{};
      for (int v = 0; v < kVectors; ++v) {
        p[v] = load(tile + k * W + v * lanes) * inv_Z[v];
        sum += all ? p[v] : only(counted[v], p[v]);
      }
      store(marginal + k * lanes, load(marginal + k * lanes) + sum);
      if (out.data != nullptr) write_row(to + k * out.sk, out.sp, at.n, past_cache, p);
    }
    if (++unflushed == kTilesPerFlush || pixel == end) {
      sums[0] += lane_sum(entropy);
      entropy = V{};
      for (std::int64_t k = 0; k < K; ++k) {
        sums[1 + k] += lane_sum(load(marginal + k * lanes));
        store(marginal + k * lanes, V{});
      }
      unflushed = 0;
    }
  }
}

// Writes the gradient of pixels [begin, end). scratch: 3·K·tile
// elements, 4·K·tile with a gradient of the probabilities.
template <class T, class C = compute_t<T>>
void entropy_grad_chunk(const EntropyGradJob& job, std::int64_t begin, std::int64_t end,
                        C* scratch) {
  using V = vec_t<C>;
  constexpr int W = kTile<C>;
  constexpr int lanes = Vec<C>::lanes;
  const std::int64_t K = job.K;
  const C inv_t = job.inv_temperature;
  const C scale = job.inv_temperature * kLog2e;
  const C a = job.grad_entropy * job.inv_temperature;
  const PixelsIn& given = job.grad_probabilities;
  const PixelsOut& out = job.grad;
  TileReader<T> logits(job.logits, K, scratch);
  C* tile_e = scratch + 2 * K * W;
  C* tile_g = scratch + 3 * K * W;  // gradient of the probabilities

  for (std::int64_t pixel = begin; pixel < end;) {
    const Place at = find_place(pixel, end, job.S, W);
    const bool* mask = job.mask == nullptr ? nullptr : job.mask + pixel;
    const C* b = static_cast<const C*>(job.grad_marginal) + at.b * job.grad_marginal_sb;
    T* to = static_cast<T*>(out.data) + at.b * out.sb + at.s * out.sp;
    const bool past_cache = out.past_cache && on_lines(to, out.sk);
    pixel += at.n;

    V Z[kVectors], sum[kVectors];
    logits.start(at);
    C* tile = logits.tile;  // then w
    for (int v = 0; v < kVectors; ++v) Z[v] = sum[v] = V{};
    for (std::int64_t k = 0; k < K; ++k) {
      for (int v = 0; v < kVectors; ++v) {
        const V t = logits.take(k, v) - logits.m[v];
        const V e = exp2_scaled(t, scale);
        const V w = e * (b[k] - a * t);
        Z[v] += e;
        sum[v] += w;
        store(tile_e + k * W + v * lanes, e);
        store(tile + k * W + v * lanes, w);
      }
    }

    V factor[kVectors], shift[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      factor[v] = inv_t / Z[v];
      shift[v] = sum[v] / Z[v];
    }
    if (mask == nullptr && given.data == nullptr) {
      for (std::int64_t k = 0; k < K; ++k) {
        V row[kVectors];
        for (int v = 0; v < kVectors; ++v) {
          const V e = load(tile_e + k * W + v * lanes);
          row[v] = (load(tile + k * W + v * lanes) - e * shift[v]) * factor[v];
        }
        write_row(to + k * out.sk, out.sp, at.n, past_cache, row);
      }
    } else {
      // A pixel that does not count has no gradient from the sums, but has one from its
      // probabilities.
      mask_t<C> counted[kVectors];
      read_counted<C>(at.n, mask, counted);
      V through[kVectors], unused[kVectors];  // through: Σ p·g
      for (int v = 0; v < kVectors; ++v) through[v] = V{};
      if (given.data != nullptr) {
        const T* g = static_cast<const T*>(given.data) + at.b * given.sb + at.s * given.sp;
        read_tile(g, K, given.sk, given.sp, at.n, tile_g, unused);
        for (std::int64_t k = 0; k < K; ++k)
          for (int v = 0; v < kVectors; ++v)
            through[v] += load(tile_e + k * W + v * lanes) * load(tile_g + k * W + v * lanes);
        for (int v = 0; v < kVectors; ++v) through[v] = through[v] / Z[v];
      }
      for (std::int64_t k = 0; k < K; ++k) {
        V row[kVectors];
        for (int v = 0; v < kVectors; ++v) {
          const V e = load(tile_e + k * W + v * lanes);
          const V w = load(tile + k * W + v * lanes);
          row[v] = only(counted[v], (w - e * shift[v]) * factor[v]);
          if (given.data != nullptr)
            row[v] += e * factor[v] * (load(tile_g + k * W + v * lanes) - through[v]);
        }
        write_row(to + k * out.sk, out.sp, at.n, past_cache, row);
      }
    }
  }
}

}  // namespace em::EM_ISA
