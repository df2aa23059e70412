// What the CUDA operators share on the host: the stream, and the choice of a compiled variant.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include "layout.hpp"
#include "sums.cuh"

namespace em {

// The second dimension of a grid; kernels step over what is more.
inline unsigned clamp_grid(std::int64_t n) {
  return static_cast<unsigned>(std::min<std::int64_t>(n, 65535));
}

inline std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

inline cudaStream_t current_stream(const Tensor& x) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Calls f with a value of the storage type of x.
template <class F>
void dispatch_storage(const Tensor& x, F&& f) {
  switch (x.scalar_type()) {
    case ScalarType::Float: f(float{}); break;
    case ScalarType::BFloat16: f(__nv_bfloat16{}); break;
    case ScalarType::Half: f(__half{}); break;
    default: STD_TORCH_CHECK(false, "em_kernels: this element type has no CUDA kernel");
  }
}

// Calls f with the smallest compiled number of classes that holds K, or any for more than 128.
template <class F, class G>
void dispatch_classes(std::int64_t K, F&& f, G&& any) {
  if (K <= 16) return f(std::integral_constant<int, 16>{});
  if (K <= 32) return f(std::integral_constant<int, 32>{});
  if (K <= 50) return f(std::integral_constant<int, 50>{});
  if (K <= 64) return f(std::integral_constant<int, 64>{});
  if (K <= 128) return f(std::integral_constant<int, 128>{});
  any();
}

// The memory of partial sums over the pixels of a layout, and the grid that fills it.
class PartialBuffer {
 public:
  PartialBuffer(const Tensor& like, const Layout& at, std::int64_t columns)
      : B_(at.B),
        columns_(columns),
        blocks_(divide_up(at.S, kThreads * kPixelsPerThread)),
        sums_(new_tensor(like, {at.B, columns, blocks_ * (kThreads / kWarp)}, ScalarType::Float)) {}
  Partials partials() const {
    return {static_cast<float*>(sums_.mutable_data_ptr()), columns_, blocks_ * (kThreads / kWarp)};
  }
  dim3 grid() const { return dim3(blocks_, clamp_grid(B_)); }

 private:
  std::int64_t B_, columns_, blocks_;
  Tensor sums_;
};

// Adds up partial sums into float32 tensors.
inline void reduce_sums(const Partials& partials, std::int64_t B, std::int64_t K,
                        std::int64_t groups, bool per_sample,
                        std::initializer_list<const Tensor*> scalars, const Tensor& count,
                        std::initializer_list<const Tensor*> marginals, cudaStream_t stream) {
  const auto data = [](const Tensor& x) { return static_cast<float*>(x.mutable_data_ptr()); };
  if (groups == 0) {  // no sample: only the scalars have elements
    for (const Tensor* x : scalars) {
      Tensor zero = *x;
      torch::stable::zero_(zero);
    }
    return;
  }
  SumOutputs outputs{static_cast<int>(scalars.size()), {}, data(count), {}};
  std::transform(scalars.begin(), scalars.end(), outputs.scalar,
                 [&](const Tensor* x) { return data(*x); });
  std::transform(marginals.begin(), marginals.end(), outputs.marginal,
                 [&](const Tensor* x) { return data(*x); });
  const dim3 grid(partials.columns, clamp_grid(groups));
  reduce_sums_kernel<<<grid, kThreads, 0, stream>>>(partials, B, K, per_sample, outputs);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace em
