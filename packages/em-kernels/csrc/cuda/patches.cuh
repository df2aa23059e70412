// Patches of a volume on CUDA: a thread per value where values are only moved, a block per token
// where they are summed.
//
// The file includes nothing of torch, so that it also compiles for the CPU under an emulation.
#pragma once

#include "patches.hpp"
#include "sums.cuh"

namespace em {

// A token's number, or −1 where the caller named one that does not exist.
__device__ inline std::int64_t token_at(const Patches& at, std::int64_t slot) {
  const std::int64_t token = at.tokens == nullptr ? slot % at.V : at.tokens[slot];
  return token >= 0 && token < at.all() ? token : -1;
}

template <class T, class U>
__global__ void __launch_bounds__(kThreads)
    patchify_kernel(Patches at, const T* volume, float scale, float shift, U* out) {
  const std::int64_t D = at.values(), total = at.B * at.V * D;
  const std::int64_t step = std::int64_t(gridDim.x) * kThreads;
  for (std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x; i < total; i += step) {
    const std::int64_t slot = i / D, token = token_at(at, slot);
    const float value =
        token < 0 ? NAN
                  : static_cast<float>(volume[at.corner(slot / at.V, token) + at.offset(i % D)]) *
                            scale +
                        shift;
    out[i] = static_cast<U>(value);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    unpatchify_kernel(Patches at, const T* patches, T* volume) {
  const std::int64_t D = at.values(), total = at.B * at.V * D;
  const std::int64_t step = std::int64_t(gridDim.x) * kThreads;
  for (std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x; i < total; i += step) {
    const std::int64_t slot = i / D, token = token_at(at, slot);
    if (token >= 0) volume[at.corner(slot / at.V, token) + at.offset(i % D)] = patches[i];
  }
}

// The sum over the threads of a block, in a fixed order, given to all of them.
__device__ inline float block_sum(float value) {
  __shared__ float sums[kThreads / kWarp];
  const float sum = warp_sum(value);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = sum;
  __syncthreads();
  float total = 0;
  for (int warp = 0; warp < kThreads / kWarp; ++warp) total += sums[warp];
  return total;
}

// How one token's raw values become its target: (raw − mean)·factor + offset.
struct Target {
  float mean, factor, offset;
  float scaled_mean, scaled_variance;

  template <class T>
  __device__ static Target of(const Patches& at, const T* corner, float scale, float shift,
                              bool normalize, float eps) {
    if (!normalize) return {0, scale, shift, 0, 0};
    const std::int64_t D = at.values();
    float sum = 0, squares = 0;
    for (std::int64_t d = threadIdx.x; d < D; d += kThreads)
      sum += static_cast<float>(corner[at.offset(d)]);
    const float mean = block_sum(sum) / D;
    for (std::int64_t d = threadIdx.x; d < D; d += kThreads) {
      const float difference = static_cast<float>(corner[at.offset(d)]) - mean;
      squares += difference * difference;
    }
    const float variance = block_sum(squares) / (D - 1) * scale * scale;
    return {mean, scale / sqrtf(variance + eps), 0, mean * scale + shift, variance};
  }
  template <class T>
  __device__ float value(const T& raw) const {
    return (static_cast<float>(raw) - mean) * factor + offset;
  }
};

template <class T, class U>
__global__ void __launch_bounds__(kThreads)
    patch_targets_kernel(Patches at, const T* volume, float scale, float shift, float eps, U* out,
                         float* mean, float* variance) {
  const std::int64_t D = at.values();
  for (std::int64_t slot = blockIdx.x; slot < at.B * at.V; slot += gridDim.x) {
    const std::int64_t token = token_at(at, slot);
    const T* corner = volume + at.corner(slot / at.V, token < 0 ? 0 : token);
    const Target target = Target::of(at, corner, scale, shift, true, eps);
    for (std::int64_t d = threadIdx.x; d < D; d += kThreads)
      out[slot * D + d] = static_cast<U>(token < 0 ? NAN : target.value(corner[at.offset(d)]));
    if (threadIdx.x == 0) {
      mean[slot] = target.scaled_mean;
      variance[slot] = target.scaled_variance;
    }
  }
}

// One squared error per token in `errors`, or with a gradient 2·g·(prediction − target) in `out`.
template <class T, class U>
__global__ void __launch_bounds__(kThreads)
    reconstruction_kernel(Patches at, const T* volume, float scale, float shift, bool normalize,
                          float eps, const U* prediction, const float* gradient, float* errors,
                          U* out) {
  const std::int64_t D = at.values();
  for (std::int64_t slot = blockIdx.x; slot < at.B * at.V; slot += gridDim.x) {
    const std::int64_t token = token_at(at, slot);
    const T* corner = volume + at.corner(slot / at.V, token < 0 ? 0 : token);
    const Target target = Target::of(at, corner, scale, shift, normalize, eps);
    float squares = 0;
    for (std::int64_t d = threadIdx.x; d < D; d += kThreads) {
      const float wanted = token < 0 ? NAN : target.value(corner[at.offset(d)]);
      const float difference = static_cast<float>(prediction[slot * D + d]) - wanted;
      squares += difference * difference;
      if (out != nullptr) out[slot * D + d] = static_cast<U>(2 * *gradient * difference);
    }
    if (errors == nullptr) continue;
    const float sum = block_sum(squares);
    if (threadIdx.x == 0) errors[slot] = sum;
  }
}

// Adds up the errors in a fixed order; one block.
static __global__ void __launch_bounds__(kThreads)
    reduce_errors_kernel(const float* errors, std::int64_t n, float* total) {
  __shared__ double shared[kThreads];
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < n; i += kThreads) sum += errors[i];
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kThreads; ++i) sum += shared[i];
  *total = static_cast<float>(sum);
}

}  // namespace em
