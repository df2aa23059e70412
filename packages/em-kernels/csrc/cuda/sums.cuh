// Sums over pixels in a fixed order: each warp writes the sum over its own pixels, and a second
// kernel adds these up. No atomics, the same bits every time.
//
// The file includes nothing of torch, so that it also compiles for the CPU under an emulation.
#pragma once

#include <cstdint>

#include "pixels.hpp"

namespace em {

constexpr int kThreads = 128;
constexpr int kWarp = 32;
constexpr int kPixelsPerThread = 8;  // between two warp sums, so that these cost little
constexpr float kLog2eF = 1.44269504f;

template <class T>
__device__ inline const T* pixel_of(const PixelsIn& from, std::int64_t b, std::int64_t s) {
  return static_cast<const T*>(from.data) + b * from.sb + s * from.sp;
}
template <class T>
__device__ inline T* pixel_of(const PixelsOut& to, std::int64_t b, std::int64_t s) {
  return static_cast<T*>(to.data) + b * to.sb + s * to.sp;
}

__device__ inline float warp_sum(float value) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, step);
  }
  return value;
}

// Partial sums lie as [sample][column][warp]; the warps of one sample are numbered over blocks.
// Columns: first those that are one number for the whole batch, then the count, then K
// probabilities for each tensor.
struct Partials {
  float* sums;
  std::int64_t columns, warps;

  __device__ void put(std::int64_t b, std::int64_t column, float value) const {
    const float sum = warp_sum(value);
    const std::int64_t warp = (std::int64_t(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
    if (threadIdx.x % kWarp == 0) sums[(b * columns + column) * warps + warp] = sum;
  }
};

// Where the sums go.
struct SumOutputs {
  int scalars;
  float* scalar[3];
  float* count;
  float* marginal[2];
};

// Adds up one column of the partial sums: block (column, group), a group being one sample or, with
// per_sample false, all of them.
static __global__ void __launch_bounds__(kThreads)
    reduce_sums_kernel(Partials partials, std::int64_t B, std::int64_t K, bool per_sample,
                       SumOutputs outputs) {
  const std::int64_t column = blockIdx.x;
  const bool scalar = column < outputs.scalars;
  for (std::int64_t group = blockIdx.y; group < (per_sample ? B : 1); group += gridDim.y) {
    if (scalar && group > 0) return;
    const bool one_sample = per_sample && !scalar;
    const std::int64_t first = one_sample ? group : 0, last = one_sample ? group + 1 : B;
    const std::int64_t length = (last - first) * partials.warps;
    double sum = 0;
    for (std::int64_t i = threadIdx.x; i < length; i += kThreads) {
      const std::int64_t b = first + i / partials.warps, warp = i % partials.warps;
      sum += partials.sums[(b * partials.columns + column) * partials.warps + warp];
    }
    __shared__ double shared[kThreads];
    shared[threadIdx.x] = sum;
    __syncthreads();
    for (int half = kThreads / 2; half > 0; half /= 2) {
      if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
      __syncthreads();
    }
    if (threadIdx.x == 0) {
      const std::int64_t k = column - outputs.scalars - 1;
      float* to = scalar  ? outputs.scalar[column]
                  : k < 0 ? outputs.count + group
                          : outputs.marginal[k / K] + group * K + k % K;
      *to = static_cast<float>(shared[0]);
    }
    __syncthreads();
  }
}

}  // namespace em
