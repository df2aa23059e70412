// Entropy kernels for CUDA: one thread per pixel, its logits in registers.
//
// With t = logit − max, e = exp(t/τ), Z = Σe and s = Σe·t of a pixel, its entropy is
// H = log Z − s/(τ·Z), and p = e/Z. The gradient of a·H + Σ b·p is
// e/(τ·Z) · (b − a·t/τ + (a·s/τ − Σe·b)/Z): log Z cancels.
//
// The file includes nothing of torch, so that it also compiles for the CPU under an emulation.
#pragma once

#include "sums.cuh"

namespace em {

struct EntropyView {
  std::int64_t B, K, S;
  PixelsIn logits;
  const bool* mask;  // (B, S) dense, or null
  float inv_temperature;
  PixelsOut probabilities;  // or null

  __device__ bool counts(std::int64_t b, std::int64_t s) const {
    return mask == nullptr || mask[b * S + s];
  }
};

struct EntropyGradView {
  EntropyView in;
  const float* grad_entropy;       // ()
  const float* grad_marginal;      // (K), or (B, K)
  std::int64_t grad_marginal_sb;   // 0, or K
  PixelsIn grad_probabilities;     // or null
  PixelsOut grad;
};

// Resident blocks that leave a thread the registers for twice KMAX values without spilling.
constexpr int min_blocks(int kmax) { return kmax <= 32 ? 4 : kmax <= 50 ? 3 : 1; }

// exp2f that the compiler may not replace by an earlier value: recomputing costs less than keeping
// one more register per class.
__device__ inline float exp2_again(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

// The sums over e of one pixel.
struct PixelSums {
  float Z = 0, S = 0;
  __device__ float entropy(float inv_temperature) const {
    return logf(Z) - S * inv_temperature / Z;
  }
};

// Stands for the logit of a class beyond K: its exponential is 0, and 0 times it is 0.
constexpr float kNoClass = -1e30f;

// Reads up to KMAX logits of one pixel as t = logit − max.
template <class T, int KMAX>
__device__ inline void read_pixel(const T* x, std::int64_t K, std::int64_t sk, float (&t)[KMAX]) {
  float largest = -INFINITY;
#pragma unroll
  for (int k = 0; k < KMAX; ++k) {
    t[k] = k < K ? static_cast<float>(x[k * sk]) : kNoClass;
  }
#pragma unroll
  for (int k = 0; k < KMAX; ++k) largest = t[k] > largest ? t[k] : largest;
#pragma unroll
  for (int k = 0; k < KMAX; ++k) t[k] -= largest;
}

template <class T, int KMAX>
__global__ void __launch_bounds__(kThreads, min_blocks(KMAX))
    entropy_forward_kernel(EntropyView view, Partials partials) {
  const float scale = view.inv_temperature * kLog2eF;
  const std::int64_t step = std::int64_t(gridDim.x) * kThreads;
  for (std::int64_t b = blockIdx.y; b < view.B; b += gridDim.y) {
    float marginal[KMAX];
    float entropy = 0, count = 0;
#pragma unroll
    for (int k = 0; k < KMAX; ++k) marginal[k] = 0;
    for (std::int64_t s = std::int64_t(blockIdx.x) * kThreads + threadIdx.x; s < view.S;
         s += step) {
      float t[KMAX];
      read_pixel(pixel_of<T>(view.logits, b, s), view.K, view.logits.sk, t);
      PixelSums sums;
#pragma unroll
      for (int k = 0; k < KMAX; ++k) {
        const float e = exp2f(t[k] * scale);
        sums.Z += e;
        sums.S += e * t[k];
        t[k] = e;
      }
      const float inv_Z = 1.0f / sums.Z;
      if (view.counts(b, s)) {
        entropy += sums.entropy(view.inv_temperature);
        count += 1;
#pragma unroll
        for (int k = 0; k < KMAX; ++k) marginal[k] += t[k] * inv_Z;
      }
      if (view.probabilities.data != nullptr) {
        T* p = pixel_of<T>(view.probabilities, b, s);
#pragma unroll
        for (int k = 0; k < KMAX; ++k) {
          if (k < view.K) p[k * view.probabilities.sk] = static_cast<T>(t[k] * inv_Z);
        }
      }
    }
    partials.put(b, 0, entropy);
    partials.put(b, 1, count);
#pragma unroll
    for (int k = 0; k < KMAX; ++k) {
      if (k < view.K) partials.put(b, 2 + k, marginal[k]);
    }
  }
}

// The pixel sums by reading the logits twice, for any number of classes.
template <class T>
__device__ inline float read_sums(const T* x, std::int64_t K, std::int64_t sk, float scale,
                                  PixelSums& sums) {
  float largest = -INFINITY;
  for (std::int64_t k = 0; k < K; ++k) {
    const float value = static_cast<float>(x[k * sk]);
    largest = value > largest ? value : largest;
  }
  for (std::int64_t k = 0; k < K; ++k) {
    const float t = static_cast<float>(x[k * sk]) - largest;
    const float e = exp2f(t * scale);
    sums.Z += e;
    sums.S += e * t;
  }
  return largest;
}

template <class T>
__global__ void __launch_bounds__(kThreads, 3)
    entropy_forward_any_kernel(EntropyView view, Partials partials) {
  const float scale = view.inv_temperature * kLog2eF;
  const std::int64_t step = std::int64_t(gridDim.x) * kThreads;
  const std::int64_t first = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  for (std::int64_t b = blockIdx.y; b < view.B; b += gridDim.y) {
    float largest[kPixelsPerThread], inv_Z[kPixelsPerThread];
    bool counts[kPixelsPerThread];
    float entropy = 0, count = 0;
#pragma unroll
    for (int i = 0; i < kPixelsPerThread; ++i) {
      const std::int64_t s = first + i * step;
      counts[i] = s < view.S && view.counts(b, s);
      if (s >= view.S) continue;
      PixelSums sums;
      largest[i] =
          read_sums(pixel_of<T>(view.logits, b, s), view.K, view.logits.sk, scale, sums);
      inv_Z[i] = 1.0f / sums.Z;
      if (!counts[i]) continue;
      entropy += sums.entropy(view.inv_temperature);
      count += 1;
    }
    partials.put(b, 0, entropy);
    partials.put(b, 1, count);
    for (std::int64_t k = 0; k < view.K; ++k) {
      float marginal = 0;
#pragma unroll
      for (int i = 0; i < kPixelsPerThread; ++i) {
        const std::int64_t s = first + i * step;
        if (s >= view.S) continue;
        const T* x = pixel_of<T>(view.logits, b, s) + k * view.logits.sk;
        const float p = exp2f((static_cast<float>(*x) - largest[i]) * scale) * inv_Z[i];
        if (counts[i]) marginal += p;
        if (view.probabilities.data != nullptr) {
          pixel_of<T>(view.probabilities, b, s)[k * view.probabilities.sk] = static_cast<T>(p);
        }
      }
      partials.put(b, 2 + k, marginal);
    }
  }
}

// What the gradient of one pixel needs beside e and t: the sums through which every class acts on
// every other, of the sums' gradients and of the probabilities' own.
struct PixelGradient {
  float factor, shift, through;
  bool counts;

  __device__ PixelGradient(const EntropyGradView& view, const PixelSums& sums, float weighted,
                           float weighted_given, bool counted)
      : factor(view.in.inv_temperature / sums.Z),
        shift((*view.grad_entropy * view.in.inv_temperature * sums.S - weighted) / sums.Z),
        through(weighted_given / sums.Z),
        counts(counted) {}

  __device__ float of(float e, float t, float a, float b, float given, bool has_given) const {
    const float g = counts ? e * factor * (shift + b - a * t) : 0.0f;
    return has_given ? g + e * factor * (given - through) : g;
  }
};

template <class T, int KMAX>
__global__ void __launch_bounds__(kThreads, min_blocks(KMAX))
    entropy_backward_kernel(EntropyGradView view) {
  const EntropyView& in = view.in;
  const float scale = in.inv_temperature * kLog2eF;
  const float a = *view.grad_entropy * in.inv_temperature;
  const bool has_given = view.grad_probabilities.data != nullptr;
  const std::int64_t s = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (s >= in.S) return;
  for (std::int64_t b = blockIdx.y; b < in.B; b += gridDim.y) {
    const float* grad_marginal = view.grad_marginal + b * view.grad_marginal_sb;
    const T* given = pixel_of<T>(view.grad_probabilities, b, s);
    float t[KMAX];
    read_pixel(pixel_of<T>(in.logits, b, s), in.K, in.logits.sk, t);
    PixelSums sums;
    float weighted = 0, weighted_given = 0;
#pragma unroll
    for (int k = 0; k < KMAX; ++k) {
      const float e = exp2f(t[k] * scale);
      sums.Z += e;
      sums.S += e * t[k];
      if (k < in.K) {
        weighted += e * grad_marginal[k];
        if (has_given) {
          weighted_given += e * static_cast<float>(given[k * view.grad_probabilities.sk]);
        }
      }
    }
    const PixelGradient pixel(view, sums, weighted, weighted_given, in.counts(b, s));
    T* grad = pixel_of<T>(view.grad, b, s);
#pragma unroll
    for (int k = 0; k < KMAX; ++k) {
      if (k < in.K) {
        const float own =
            has_given ? static_cast<float>(given[k * view.grad_probabilities.sk]) : 0.0f;
        const float e = exp2_again(t[k] * scale);
        grad[k * view.grad.sk] =
            static_cast<T>(pixel.of(e, t[k], a, grad_marginal[k], own, has_given));
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) entropy_backward_any_kernel(EntropyGradView view) {
  const EntropyView& in = view.in;
  const float scale = in.inv_temperature * kLog2eF;
  const float a = *view.grad_entropy * in.inv_temperature;
  const bool has_given = view.grad_probabilities.data != nullptr;
  const std::int64_t s = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (s >= in.S) return;
  for (std::int64_t b = blockIdx.y; b < in.B; b += gridDim.y) {
    const T* x = pixel_of<T>(in.logits, b, s);
    const T* given = pixel_of<T>(view.grad_probabilities, b, s);
    const float* grad_marginal = view.grad_marginal + b * view.grad_marginal_sb;
    PixelSums sums;
    const float largest = read_sums(x, in.K, in.logits.sk, scale, sums);
    float weighted = 0, weighted_given = 0;
    for (std::int64_t k = 0; k < in.K; ++k) {
      const float e = exp2f((static_cast<float>(x[k * in.logits.sk]) - largest) * scale);
      weighted += e * grad_marginal[k];
      if (has_given) {
        weighted_given += e * static_cast<float>(given[k * view.grad_probabilities.sk]);
      }
    }
    const PixelGradient pixel(view, sums, weighted, weighted_given, in.counts(b, s));
    T* grad = pixel_of<T>(view.grad, b, s);
    for (std::int64_t k = 0; k < in.K; ++k) {
      const float own =
          has_given ? static_cast<float>(given[k * view.grad_probabilities.sk]) : 0.0f;
      const float t = static_cast<float>(x[k * in.logits.sk]) - largest;
      grad[k * view.grad.sk] =
          static_cast<T>(pixel.of(exp2f(t * scale), t, a, grad_marginal[k], own, has_given));
    }
  }
}

}  // namespace em
