// Divergence kernels for CUDA: one thread per pixel, for any number of classes. The classes of a
// pixel are read from memory once and then again from the caches.
//
// The formulas are those of csrc/cpu/divergence_tiles.hpp.
// The file includes nothing of torch, so that it also compiles for the CPU under an emulation.
#pragma once

#include "sums.cuh"

namespace em {

struct DivergenceView {
  std::int64_t B, K, S;
  PixelsIn prediction, target;
  const bool* mask;  // (B, S) dense, or null
  float inv_temperature, inv_target_temperature;

  __device__ bool counts(std::int64_t b, std::int64_t s) const {
    return mask == nullptr || mask[b * S + s];
  }
};

// Gradients of the sums: scalars, and marginals of K each, for each sample or for all.
struct DivergenceGradView {
  DivergenceView in;
  const float *cross_entropy, *entropy, *target_entropy, *marginal, *target_marginal;
  std::int64_t marginal_sb;      // 0, or K
  PixelsOut prediction, target;  // either may be null
};

// The logarithm of a given probability; 0 for 0, whose p·log p is 0.
__device__ inline float log_given(float p) { return p == 0 ? 0.0f : logf(p); }

// One pixel of both tensors: its largest logits and its sums.
template <class T, bool kLogits>
struct Pair {
  const T *x, *y;
  std::int64_t sk, sk_target;
  float scale, scale_target;
  float largest, largest_target;
  float Z = 0, s = 0, Z_target = 0, s_target = 0, X = 0;

  __device__ Pair(const DivergenceView& view, std::int64_t b, std::int64_t pixel)
      : x(pixel_of<T>(view.prediction, b, pixel)),
        y(pixel_of<T>(view.target, b, pixel)),
        sk(view.prediction.sk),
        sk_target(view.target.sk),
        scale(view.inv_temperature * kLog2eF),
        scale_target(view.inv_target_temperature * kLog2eF),
        largest(static_cast<float>(*x)),
        largest_target(static_cast<float>(*y)) {
    for (std::int64_t k = 0; k < view.K; ++k) {
      const float logit = static_cast<float>(x[k * sk]);
      const float logit_target = static_cast<float>(y[k * sk_target]);
      largest = logit > largest ? logit : largest;
      largest_target = logit_target > largest_target ? logit_target : largest_target;
    }
    for (std::int64_t k = 0; k < view.K; ++k) {
      const float e = exponential(k), e_target = target(k);
      Z += e;
      s += e * t(k);
      Z_target += e_target;
      s_target += e_target * (kLogits ? t_target(k) : log_given(e_target));
      X += e_target * t(k);
    }
  }

  __device__ float t(std::int64_t k) const { return static_cast<float>(x[k * sk]) - largest; }
  __device__ float t_target(std::int64_t k) const {
    return static_cast<float>(y[k * sk_target]) - largest_target;
  }
  __device__ float exponential(std::int64_t k) const { return exp2f(t(k) * scale); }
  __device__ float target(std::int64_t k) const {
    return kLogits ? exp2f(t_target(k) * scale_target) : static_cast<float>(y[k * sk_target]);
  }
  __device__ float inv_target_Z() const { return kLogits ? 1 / Z_target : 1; }
  __device__ float total() const { return kLogits ? 1 : Z_target; }
};

template <class T, bool kLogits>
__global__ void __launch_bounds__(kThreads)
    divergence_forward_kernel(DivergenceView view, Partials partials) {
  const std::int64_t step = std::int64_t(gridDim.x) * kThreads;
  const std::int64_t first = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  for (std::int64_t b = blockIdx.y; b < view.B; b += gridDim.y) {
    float cross = 0, entropy = 0, entropy_target = 0, count = 0;
    float largest[kPixelsPerThread], largest_target[kPixelsPerThread];
    float inv_Z[kPixelsPerThread], inv_target_Z[kPixelsPerThread];
    bool counts[kPixelsPerThread];
#pragma unroll
    for (int i = 0; i < kPixelsPerThread; ++i) {
      const std::int64_t s = first + i * step;
      counts[i] = s < view.S && view.counts(b, s);
      if (!counts[i]) continue;
      const Pair<T, kLogits> pair(view, b, s);
      const float log_Z = logf(pair.Z);
      largest[i] = pair.largest;
      largest_target[i] = pair.largest_target;
      inv_Z[i] = 1 / pair.Z;
      inv_target_Z[i] = pair.inv_target_Z();
      cross += pair.total() * log_Z - pair.X * view.inv_temperature * inv_target_Z[i];
      entropy += log_Z - pair.s * view.inv_temperature * inv_Z[i];
      entropy_target +=
          kLogits ? logf(pair.Z_target) -
                        pair.s_target * view.inv_target_temperature * inv_target_Z[i]
                  : -pair.s_target;
      count += 1;
    }
    partials.put(b, 0, cross);
    partials.put(b, 1, entropy);
    partials.put(b, 2, entropy_target);
    partials.put(b, 3, count);
    for (std::int64_t k = 0; k < view.K; ++k) {
      float q = 0, p = 0;
#pragma unroll
      for (int i = 0; i < kPixelsPerThread; ++i) {
        if (!counts[i]) continue;
        const std::int64_t s = first + i * step;
        const float x =
            static_cast<float>(pixel_of<T>(view.prediction, b, s)[k * view.prediction.sk]);
        const float y = static_cast<float>(pixel_of<T>(view.target, b, s)[k * view.target.sk]);
        q += exp2f((x - largest[i]) * (view.inv_temperature * kLog2eF)) * inv_Z[i];
        p += kLogits ? exp2f((y - largest_target[i]) * (view.inv_target_temperature * kLog2eF)) *
                           inv_target_Z[i]
                     : y;
      }
      partials.put(b, 4 + k, q);
      partials.put(b, 4 + view.K + k, p);
    }
  }
}

template <class T, bool kLogits>
__global__ void __launch_bounds__(kThreads) divergence_backward_kernel(DivergenceGradView view) {
  const DivergenceView& in = view.in;
  const float a = *view.entropy * in.inv_temperature;
  const float c = *view.cross_entropy * in.inv_temperature;
  const float a_target = *view.target_entropy * (kLogits ? in.inv_target_temperature : 1);
  const std::int64_t s = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (s >= in.S) return;
  for (std::int64_t b = blockIdx.y; b < in.B; b += gridDim.y) {
    const float* marginal = view.marginal + b * view.marginal_sb;
    const float* target_marginal = view.target_marginal + b * view.marginal_sb;
    const bool counts = in.counts(b, s);
    const Pair<T, kLogits> pair(in, b, s);
    float sum = 0, sum_target = 0;
    for (std::int64_t k = 0; k < in.K; ++k) {
      const float t = pair.t(k);
      sum += pair.exponential(k) * (marginal[k] - a * t);
      if (kLogits) {
        sum_target +=
            pair.target(k) * (target_marginal[k] - a_target * pair.t_target(k) - c * t);
      }
    }
    const float inv_Z = 1 / pair.Z, inv_target_Z = pair.inv_target_Z();
    const float shift = sum * inv_Z;
    const float shift_target =
        kLogits ? sum_target * inv_target_Z : -*view.cross_entropy * logf(pair.Z);
    for (std::int64_t k = 0; k < in.K; ++k) {
      const float t = pair.t(k), q = pair.exponential(k) * inv_Z;
      const float e_target = pair.target(k), p = e_target * inv_target_Z;
      if (view.prediction.data != nullptr) {
        const float own = q * in.inv_temperature * (marginal[k] - a * t - shift);
        const float g = counts ? own + c * (pair.total() * q - p) : 0.0f;
        pixel_of<T>(view.prediction, b, s)[k * view.prediction.sk] = static_cast<T>(g);
      }
      if (view.target.data != nullptr) {
        const float log_p = kLogits ? pair.t_target(k) : log_given(e_target) + 1;
        const float bracket = target_marginal[k] - a_target * log_p - c * t - shift_target;
        const float g = kLogits ? p * in.inv_target_temperature * bracket : bracket;
        pixel_of<T>(view.target, b, s)[k * view.target.sk] = static_cast<T>(counts ? g : 0.0f);
      }
    }
  }
}

}  // namespace em
