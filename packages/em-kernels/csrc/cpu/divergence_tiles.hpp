// The divergence kernels over one chunk of pixels.
// Included once per instruction set by for_each_isa.hpp, hence without an include guard.
//
// Prediction: t = logit − max, e = exp(t/τ), Z = Σe, q = e/Z. Target: p = e′/Z′ from logits in
// the same way, or given, and then e′ = p and Z′ stands for 1. With X = Σ e′·t and P = Σp, the
// cross-entropy of a pixel is −Σ p log q = P·log Z − X/(τ·Z′).

namespace em::EM_ISA {

// Sums of one vector of pixels over its classes.
template <class V>
struct PairSums {
  V Z{}, s{}, Z_target{}, s_target{}, X{};
};

// The logarithm of given probabilities, subnormal ones too; 0 for a probability of 0, whose
// p·log p is 0 and whose gradient stays finite.
template <class V>
EM_INLINE V log_given(V p) {
  const V raised = p < V{} + 0x1p-126f ? p * 0x1p24f : p;
  const V lowered = p < V{} + 0x1p-126f ? V{} + 16.6355323334f : V{};  // 24 log 2
  return p == V{} ? V{} : log_normal(raised) - lowered;
}

// Replaces the logits of column v of both tiles by exponentials, and sums.
template <bool kLogits, class T, class C = compute_t<T>, class V = vec_t<C>>
EM_INLINE PairSums<V> sum_pair(TileReader<T, false>& prediction, TileReader<T, false>& target,
                               int v, C scale, C scale_target) {
  constexpr int W = kTile<C>;
  C* column = prediction.tile + v * Vec<C>::lanes;
  C* column_target = target.tile + v * Vec<C>::lanes;
  PairSums<V> sums;
  for (std::int64_t k = 0; k < prediction.K; ++k) {
    const V t = prediction.take(k, v) - prediction.m[v];
    const V e = exp2_scaled(t, scale);
    sums.Z += e;
    sums.s += e * t;
    store(column + k * W, e);
    V p = target.take(k, v);
    if constexpr (kLogits) {
      const V t_target = p - target.m[v];
      p = exp2_scaled(t_target, scale_target);
      sums.s_target += p * t_target;
      store(column_target + k * W, p);
    } else {
      sums.s_target += p * log_given(p);
    }
    sums.Z_target += p;
    sums.X += p * t;
  }
  return sums;
}

// Adds to sums: cross-entropy, entropy of the prediction and of the target, number of pixels, K
// probabilities of the prediction, K of the target. scratch: K·(2 tiles + 2 lanes).
template <class T, bool kLogits, class C = compute_t<T>>
void divergence_chunk(const DivergenceJob& job, std::int64_t begin, std::int64_t end, double* sums,
                      C* scratch) {
  using V = vec_t<C>;
  constexpr int W = kTile<C>;
  constexpr int lanes = Vec<C>::lanes;
  const std::int64_t K = job.K;
  const C inv_t = job.inv_temperature, inv_target = job.inv_target_temperature;
  const C scale = job.inv_temperature * kLog2e, scale_target = job.inv_target_temperature * kLog2e;
  TileReader<T, false> prediction(job.prediction, K, scratch);
  TileReader<T, false> target(job.target, K, scratch + K * W);
  C* marginals = scratch + 2 * K * W;  // of both, in turn
  V cross{}, entropy{}, entropy_target{};
  for (std::int64_t i = 0; i < 2 * K * lanes; ++i) marginals[i] = 0;

  int unflushed = 0;
  for (std::int64_t pixel = begin; pixel < end;) {
    const Place at = find_place(pixel, end, job.S, W);
    prediction.start(at);
    target.start(at);
    mask_t<C> counted[kVectors];
    sums[3] += read_counted<C>(at.n, job.mask == nullptr ? nullptr : job.mask + pixel, counted);
    pixel += at.n;

    for (int v = 0; v < kVectors; ++v) {
      const PairSums<V> pair = sum_pair<kLogits>(prediction, target, v, scale, scale_target);
      const C* column = prediction.tile + v * lanes;
      const C* column_target = target.tile + v * lanes;
      const V inv_Z = C(1) / pair.Z;
      const V inv_target_Z = kLogits ? C(1) / pair.Z_target : V{} + C(1);
      const V log_Z = log_normal(pair.Z);
      const V P = kLogits ? V{} + C(1) : pair.Z_target;
      cross += only(counted[v], P * log_Z - pair.X * inv_t * inv_target_Z);
      entropy += only(counted[v], log_Z - pair.s * inv_t * inv_Z);
      entropy_target +=
          only(counted[v], kLogits ? log_normal(pair.Z_target) -
                                         pair.s_target * inv_target * inv_target_Z
                                   : -pair.s_target);
      for (std::int64_t k = 0; k < K; ++k) {
        C* sum = marginals + 2 * k * lanes;
        store(sum, load(sum) + only(counted[v], load(column + k * W) * inv_Z));
        sum += lanes;
        store(sum, load(sum) + only(counted[v], load(column_target + k * W) * inv_target_Z));
      }
    }
    if (++unflushed == kTilesPerFlush || pixel == end) {
      sums[0] += lane_sum(cross);
      sums[1] += lane_sum(entropy);
      sums[2] += lane_sum(entropy_target);
      cross = entropy = entropy_target = V{};
      for (std::int64_t k = 0; k < K; ++k) {
        C* sum = marginals + 2 * k * lanes;
        sums[4 + k] += lane_sum(load(sum));
        sums[4 + K + k] += lane_sum(load(sum + lanes));
        store(sum, V{});
        store(sum + lanes, V{});
      }
      unflushed = 0;
    }
  }
}

// Writes the gradients of pixels [begin, end). scratch: 4·K·tile elements.
//
// With c = gradient of the cross-entropy and a, b, a′, b′ those of entropies and marginals:
//   prediction  e/(τZ)·(b − a·t/τ − u) + c/τ·(P·q − p),            u = Σ q·(b − a·t/τ)
//   target      e′/(τ′Z′)·(b′ − a′·t′/τ′ − c·t/τ − u′),            u′ = Σ p·(the same)
//   given       b′ − a′·(log p + 1) + c·(log Z − t/τ)
template <class T, bool kLogits, class C = compute_t<T>>
void divergence_grad_chunk(const DivergenceGradJob& job, std::int64_t begin, std::int64_t end,
                           C* scratch) {
  using V = vec_t<C>;
  constexpr int W = kTile<C>;
  constexpr int lanes = Vec<C>::lanes;
  const DivergenceJob& in = job.in;
  const std::int64_t K = in.K;
  const PixelsOut &out = job.prediction, &out_target = job.target;
  const C inv_t = in.inv_temperature, inv_target = in.inv_target_temperature;
  const C scale = in.inv_temperature * kLog2e, scale_target = in.inv_target_temperature * kLog2e;
  const C a = job.entropy * in.inv_temperature, c = job.cross_entropy * in.inv_temperature;
  const C a_target = kLogits ? job.target_entropy * in.inv_target_temperature : job.target_entropy;
  TileReader<T, false> prediction(in.prediction, K, scratch);
  TileReader<T, false> target(in.target, K, scratch + K * W);
  C* tile_e = scratch + 2 * K * W;
  C* tile_p = scratch + 3 * K * W;  // e′

  for (std::int64_t pixel = begin; pixel < end;) {
    const Place at = find_place(pixel, end, in.S, W);
    const C* b = static_cast<const C*>(job.marginal) + at.b * job.marginal_sb;
    const C* b_target = static_cast<const C*>(job.target_marginal) + at.b * job.marginal_sb;
    T* to = static_cast<T*>(out.data) + at.b * out.sb + at.s * out.sp;
    T* to_target = static_cast<T*>(out_target.data) + at.b * out_target.sb + at.s * out_target.sp;
    prediction.start(at);
    target.start(at);
    C* tile = prediction.tile;     // then e·(b − a·t/τ)
    C* tile_target = target.tile;  // then the target's bracket
    mask_t<C> counted[kVectors];
    read_counted<C>(at.n, in.mask == nullptr ? nullptr : in.mask + pixel, counted);
    pixel += at.n;

    V inv_Z[kVectors], shift[kVectors], P[kVectors];
    V inv_target_Z[kVectors], shift_target[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      V Z{}, sum{}, Z_target{}, sum_target{};
      for (std::int64_t k = 0; k < K; ++k) {
        const std::int64_t i = k * W + v * lanes;
        const V t = prediction.take(k, v) - prediction.m[v];
        const V e = exp2_scaled(t, scale);
        const V w = e * (b[k] - a * t);
        Z += e;
        sum += w;
        store(tile_e + i, e);
        store(tile + i, w);
        V p = target.take(k, v);
        if constexpr (kLogits) {
          const V t_target = p - target.m[v];
          p = exp2_scaled(t_target, scale_target);
          const V bracket = b_target[k] - a_target * t_target - c * t;
          sum_target += p * bracket;
          store(tile_target + i, bracket);
        } else {
          store(tile_target + i, b_target[k] - a_target * (log_given(p) + C(1)) - c * t);
        }
        Z_target += p;
        store(tile_p + i, p);
      }
      inv_Z[v] = C(1) / Z;
      shift[v] = sum * inv_Z[v];
      inv_target_Z[v] = kLogits ? C(1) / Z_target : V{} + C(1);
      // For given probabilities the last term of their gradient, with the sign of a shift.
      shift_target[v] = kLogits ? sum_target * inv_target_Z[v]
                                : -static_cast<C>(job.cross_entropy) * log_normal(Z);
      P[v] = kLogits ? V{} + C(1) : Z_target;
    }
    const bool past_cache = out.past_cache && on_lines(to, out.sk);
    const bool past_cache_target = out_target.past_cache && on_lines(to_target, out_target.sk);
    for (std::int64_t k = 0; k < K; ++k) {
      V row[kVectors], row_target[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        const std::int64_t i = k * W + v * lanes;
        const V e = load(tile_e + i), p = load(tile_p + i) * inv_target_Z[v];
        const V own = (load(tile + i) - e * shift[v]) * inv_Z[v] * inv_t;
        row[v] = only(counted[v], own + c * (P[v] * e * inv_Z[v] - p));
        const V bracket = load(tile_target + i) - shift_target[v];
        row_target[v] = only(counted[v], kLogits ? p * inv_target * bracket : bracket);
      }
      if (out.data != nullptr) write_row(to + k * out.sk, out.sp, at.n, past_cache, row);
      if (out_target.data != nullptr)
        write_row(to_target + k * out_target.sk, out_target.sp, at.n, past_cache_target,
                  row_target);
    }
  }
}

}  // namespace em::EM_ISA
