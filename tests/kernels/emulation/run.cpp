// Runs the CUDA kernels under the emulation, on numbers drawn here, and compares them with float64
// formulas written out here. Exits with 1 where they differ.
#include "cuda_runtime.h"

#include <algorithm>
#include <cstdio>
#include <random>

#include "cuda/divergence.cuh"
#include "cuda/entropy.cuh"
#include "cuda/patches.cuh"

using namespace em;
using Floats = std::vector<float>;
using Doubles = std::vector<double>;

static std::mt19937 generator(0);
static int failures = 0;

static Floats draw(std::size_t n, float sigma) {
  std::normal_distribution<float> normal(0, sigma);
  Floats x(n);
  for (float& v : x) v = normal(generator);
  return x;
}

template <class A, class B>
static void compare(const char* name, std::int64_t K, const A& got, const B& wanted, double bound) {
  double worst = 0, largest = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    worst = std::max(worst, std::abs(got[i] - wanted[i]));
    largest = std::max(largest, std::abs(double(wanted[i])));
  }
  const bool good = worst <= bound * largest;
  std::printf("%-28s K or D = %4ld  error %.1e  %s\n", name, long(K), worst / largest,
              good ? "ok" : "WRONG");
  failures += !good;
}

// Probabilities of one pixel, and their logarithms.
static void softmax(const float* x, std::int64_t K, std::int64_t sk, double inv_t, Doubles& p,
                    Doubles& log_p) {
  double m = x[0], Z = 0;
  for (std::int64_t k = 0; k < K; ++k) m = std::max<double>(m, x[k * sk]);
  for (std::int64_t k = 0; k < K; ++k) Z += std::exp((x[k * sk] - m) * inv_t);
  p.assign(K, 0), log_p.assign(K, 0);
  for (std::int64_t k = 0; k < K; ++k) {
    log_p[k] = (x[k * sk] - m) * inv_t - std::log(Z);
    p[k] = std::exp(log_p[k]);
  }
}

struct Sums {
  Floats partial, scalars = Floats(3), count, marginal, target_marginal;
};

// Reduces partial sums of `scalars` numbers for the batch, counts, and one or two marginals.
static void reduce(const Partials& partials, std::int64_t B, std::int64_t K, bool per_sample,
                   int scalars, Sums& sums) {
  const std::int64_t groups = per_sample ? B : 1;
  sums.count.resize(groups), sums.marginal.resize(groups * K);
  sums.target_marginal.resize(groups * K);
  const SumOutputs outputs{scalars,
                           {&sums.scalars[0], &sums.scalars[1], &sums.scalars[2]},
                           sums.count.data(),
                           {sums.marginal.data(), sums.target_marginal.data()}};
  launch(dim3(partials.columns, groups), kThreads,
         [&] { reduce_sums_kernel(partials, B, K, per_sample, outputs); });
}

static Partials make_partials(std::int64_t B, std::int64_t columns, std::int64_t blocks, Sums& sums) {
  const std::int64_t warps = blocks * (kThreads / kWarp);
  sums.partial.assign(B * columns * warps, NAN);
  return {sums.partial.data(), columns, warps};
}

template <int KMAX>
static void check_entropy(std::int64_t K, bool per_sample, bool masked) {
  const std::int64_t B = 2, S = 1100, n = B * K * S;
  const float inv_t = 2;
  const Floats logits = draw(n, 4), given = draw(n, 1), b = draw(B * K, 1);
  const float a = 0.7f;
  std::vector<char> mask(B * S, 1);
  if (masked)
    for (char& m : mask) m = generator() % 3 != 0;
  Floats p(n), grad(n);
  const PixelsIn in{logits.data(), K * S, S, 1};
  const EntropyView view{B,     K, S, in, masked ? reinterpret_cast<const bool*>(mask.data()) : nullptr,
                         inv_t, {p.data(), K * S, S, 1}};
  Sums sums;
  const std::int64_t blocks = (S + kThreads * kPixelsPerThread - 1) / (kThreads * kPixelsPerThread);
  const Partials partials = make_partials(B, K + 2, blocks, sums);
  launch(dim3(blocks, B), kThreads, [&] {
    if constexpr (KMAX > 0)
      entropy_forward_kernel<float, KMAX>(view, partials);
    else
      entropy_forward_any_kernel<float>(view, partials);
  });
  reduce(partials, B, K, per_sample, 1, sums);
  const EntropyGradView grad_view{view,
                                  &a,
                                  b.data(),
                                  per_sample ? K : 0,
                                  {given.data(), K * S, S, 1},
                                  {grad.data(), K * S, S, 1}};
  launch(dim3((S + kThreads - 1) / kThreads, B), kThreads, [&] {
    if constexpr (KMAX > 0)
      entropy_backward_kernel<float, KMAX>(grad_view);
    else
      entropy_backward_any_kernel<float>(grad_view);
  });

  Doubles entropy(1), count(per_sample ? B : 1), marginal(count.size() * K), all_p(n), all_grad(n);
  Doubles q, log_q;
  for (std::int64_t i = 0; i < B * S; ++i) {
    const std::int64_t sample = i / S, at = sample * K * S + i % S, group = per_sample ? sample : 0;
    softmax(&logits[at], K, S, inv_t, q, log_q);
    const double counts = !masked || mask[i];
    count[group] += counts;
    double through = 0;
    Doubles u(K);
    for (std::int64_t k = 0; k < K; ++k) {
      entropy[0] -= counts * q[k] * log_q[k];
      marginal[group * K + k] += counts * q[k];
      all_p[at + k * S] = q[k];
      u[k] = counts * (b[(per_sample ? sample * K : 0) + k] - a * log_q[k]) + given[at + k * S];
      through += q[k] * u[k];
    }
    for (std::int64_t k = 0; k < K; ++k) all_grad[at + k * S] = inv_t * q[k] * (u[k] - through);
  }
  compare("entropy", K, Floats(1, sums.scalars[0]), entropy, 2e-6);
  compare("entropy count", K, sums.count, count, 0);
  compare("entropy marginal", K, sums.marginal, marginal, 2e-6);
  compare("entropy probabilities", K, p, all_p, 1e-6);
  compare("entropy gradient", K, grad, all_grad, 1e-5);
}

template <bool kLogits>
static void check_divergence(std::int64_t K) {
  const std::int64_t B = 2, S = 300, n = B * K * S;
  const float inv_t = 1.5f, inv_target = kLogits ? 2 : 1;
  const Floats x = draw(n, 3);
  Floats y = draw(n, 3), grad(n), grad_target(n);
  Doubles p, log_p, q, log_q;
  for (std::int64_t i = 0; !kLogits && i < B * S; ++i) {
    const std::int64_t at = i / S * K * S + i % S;
    softmax(&y[at], K, S, 1, p, log_p);
    for (std::int64_t k = 0; k < K; ++k) y[at + k * S] = p[k];
  }
  const DivergenceView view{B, K, S, {x.data(), K * S, S, 1}, {y.data(), K * S, S, 1}, nullptr,
                            inv_t, inv_target};
  Sums sums;
  const Partials partials = make_partials(B, 4 + 2 * K, 1, sums);
  launch(dim3(1, B), kThreads, [&] { divergence_forward_kernel<float, kLogits>(view, partials); });
  reduce(partials, B, K, false, 3, sums);
  const float c = 1.1f, a = 0.4f, a_target = -0.3f;
  const Floats b = draw(K, 1), b_target = draw(K, 1);
  const DivergenceGradView grad_view{view, &c, &a, &a_target, b.data(), b_target.data(), 0,
                                     {grad.data(), K * S, S, 1}, {grad_target.data(), K * S, S, 1}};
  launch(dim3((S + kThreads - 1) / kThreads, B), kThreads,
         [&] { divergence_backward_kernel<float, kLogits>(grad_view); });

  Doubles scalars(3), marginal(K), target_marginal(K), wanted(n), wanted_target(n);
  for (std::int64_t i = 0; i < B * S; ++i) {
    const std::int64_t at = i / S * K * S + i % S;
    softmax(&x[at], K, S, inv_t, q, log_q);
    softmax(&y[at], K, S, inv_target, p, log_p);
    double P = 0;
    for (std::int64_t k = 0; k < K; ++k) {
      if (!kLogits) p[k] = y[at + k * S], log_p[k] = std::log(p[k]);
      P += p[k];
    }
    double through = 0, through_target = 0;
    Doubles u(K), v(K);
    for (std::int64_t k = 0; k < K; ++k) {
      scalars[0] -= p[k] * log_q[k];
      scalars[1] -= q[k] * log_q[k];
      scalars[2] -= p[k] * log_p[k];
      marginal[k] += q[k];
      target_marginal[k] += p[k];
      u[k] = b[k] - a * log_q[k];
      v[k] = b_target[k] - a_target * (log_p[k] + !kLogits) - c * log_q[k];
      through += q[k] * u[k];
      through_target += p[k] * v[k];
    }
    for (std::int64_t k = 0; k < K; ++k) {
      wanted[at + k * S] = inv_t * (q[k] * (u[k] - through) + c * (P * q[k] - p[k]));
      wanted_target[at + k * S] = kLogits ? inv_target * p[k] * (v[k] - through_target) : v[k];
    }
  }
  compare("divergence", K, sums.scalars, scalars, 2e-6);
  compare("divergence marginal", K, sums.marginal, marginal, 2e-6);
  compare("divergence target marginal", K, sums.target_marginal, target_marginal, 2e-6);
  compare("divergence gradient", K, grad, wanted, 1e-5);
  compare("divergence target gradient", K, grad_target, wanted_target, 1e-5);
}

static void check_patches(bool channels_last, bool chosen) {
  const std::int64_t B = 2, C = 2, Z = 4, Y = 6, X = 20;
  Patches at{B, C, Z, Y, X, 2, 3, 5, C * Z * Y * X, Z * Y * X, Y * X, X, channels_last, nullptr, 0};
  const std::int64_t tokens[] = {3, 0, 15, 7, 7, 1, 2, 14}, D = at.values();
  at.V = chosen ? 4 : at.all();
  if (chosen) at.tokens = tokens;
  std::vector<std::uint16_t> volume(B * C * Z * Y * X);
  for (auto& v : volume) v = generator() % 60000;
  const float scale = 1 / 300.f, shift = -3;
  const std::int64_t n = B * at.V * D;
  const Floats prediction = draw(n, 1);
  Floats cut(n), target(n), mean(B * at.V), variance(B * at.V), errors(B * at.V), grad(n), total(1);
  Floats back(volume.size());
  const dim3 grid((n + kThreads - 1) / kThreads);
  const float g = 0.5f;
  launch(grid, kThreads, [&] { patchify_kernel(at, volume.data(), scale, shift, cut.data()); });
  launch(grid, kThreads, [&] { unpatchify_kernel(at, cut.data(), back.data()); });
  launch(dim3(B * at.V), kThreads, [&] {
    patch_targets_kernel(at, volume.data(), scale, shift, 1e-6f, target.data(), mean.data(),
                         variance.data());
  });
  launch(dim3(B * at.V), kThreads, [&] {
    reconstruction_kernel<std::uint16_t, float>(at, volume.data(), scale, shift, true, 1e-6f,
                                                prediction.data(), nullptr, errors.data(), nullptr);
  });
  launch(dim3(1), kThreads, [&] { reduce_errors_kernel(errors.data(), B * at.V, total.data()); });
  launch(dim3(B * at.V), kThreads, [&] {
    reconstruction_kernel<std::uint16_t, float>(at, volume.data(), scale, shift, true, 1e-6f,
                                                prediction.data(), &g, nullptr, grad.data());
  });

  Doubles wanted(n), normal(n), moments(B * at.V), wanted_grad(n), sum(1), wanted_back(volume.size());
  for (std::int64_t slot = 0; slot < B * at.V; ++slot) {
    const std::int64_t b = slot / at.V, token = chosen ? tokens[slot] : slot % at.V;
    const std::int64_t x = token % 4, y = token / 4 % 2, z = token / 8;
    double m = 0, v = 0;
    for (std::int64_t c = 0; c < C; ++c)
      for (std::int64_t i = 0; i < 30; ++i) {
        const std::int64_t from = ((b * C + c) * Z + z * 2 + i / 15) * Y * X +
                                  (y * 3 + i / 5 % 3) * X + x * 5 + i % 5;
        const std::int64_t to = slot * D + (channels_last ? i * C + c : c * 30 + i);
        wanted[to] = volume[from] * double(scale) + shift;
        wanted_back[from] = wanted[to];
        m += wanted[to] / D;
      }
    for (std::int64_t d = 0; d < D; ++d) v += std::pow(wanted[slot * D + d] - m, 2) / (D - 1);
    moments[slot] = m;
    for (std::int64_t i = slot * D; i < (slot + 1) * D; ++i) {
      normal[i] = (wanted[i] - m) / std::sqrt(v + 1e-6);
      wanted_grad[i] = 2 * g * (prediction[i] - normal[i]);
      sum[0] += std::pow(prediction[i] - normal[i], 2);
    }
  }
  compare("patchify", D, cut, wanted, 1e-6);
  compare("unpatchify", D, back, wanted_back, 1e-6);
  compare("patch targets", D, target, normal, 1e-5);
  compare("patch mean", D, mean, moments, 1e-5);
  compare("reconstruction", D, total, sum, 1e-5);
  compare("reconstruction gradient", D, grad, wanted_grad, 1e-5);
}

int main() {
  check_entropy<16>(2, false, false);
  check_entropy<16>(16, true, true);
  check_entropy<50>(50, false, true);
  check_entropy<64>(51, true, false);
  check_entropy<128>(128, false, false);
  check_entropy<0>(130, false, true);
  check_entropy<0>(7, true, false);
  check_divergence<true>(50);
  check_divergence<false>(50);
  check_divergence<true>(3);
  for (const bool channels_last : {false, true})
    for (const bool chosen : {false, true}) check_patches(channels_last, chosen);
  return failures != 0;
}
