// Entropy regularizer on CUDA: launches on the current stream, nothing waits for the device.
#include "entropy.cuh"

#include <tuple>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include "layout.hpp"
#include "launch.cuh"

namespace em {

// Writes the sums into tensors of the right sizes, and the probabilities where there is a tensor.
static void entropy_sums(const Tensor& logits_any, const std::optional<Tensor>& mask_any,
                         double temperature, bool per_sample, const Tensor& entropy,
                         const Tensor& marginal, const Tensor& count,
                         const std::optional<Tensor>& probabilities) {
  const torch::stable::accelerator::DeviceGuard guard(logits_any.get_device_index());
  const Tensor logits = regular(logits_any);
  Layout at = *find_layout(logits);
  const std::int64_t groups = per_sample ? at.B : 1;
  const std::optional<Tensor> mask = dense(mask_any);
  std::optional<Written> written;
  Layout to = at;
  if (probabilities) {
    written.emplace(*probabilities);
    to = *find_layout(written->tensor());
  }
  if (!per_sample) join_samples({&at, &to});
  const EntropyView view{
      at.B,
      at.K,
      at.S,
      pixels_in(logits, at),
      mask_data(mask),
      static_cast<float>(1.0 / temperature),
      written ? pixels_out(written->tensor(), to) : PixelsOut{},
  };

  const PartialBuffer buffer(logits, at, at.K + 2);
  const Partials partials = buffer.partials();
  const cudaStream_t stream = current_stream(logits);
  if (at.B * at.S > 0) {
    const dim3 grid = buffer.grid();
    dispatch_storage(logits, [&](auto storage) {
      using T = decltype(storage);
      dispatch_classes(
          at.K,
          [&](auto classes) {
            entropy_forward_kernel<T, decltype(classes)::value>
                <<<grid, kThreads, 0, stream>>>(view, partials);
          },
          [&] { entropy_forward_any_kernel<T><<<grid, kThreads, 0, stream>>>(view, partials); });
    });
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  reduce_sums(partials, at.B, at.K, groups, per_sample, {&entropy}, count, {&marginal}, stream);
  if (written) written->finish();
}

std::tuple<Tensor, Tensor, Tensor, Tensor> entropy_forward(const Tensor& logits,
                                                           const std::optional<Tensor>& mask,
                                                           double temperature, bool per_sample,
                                                           bool with_probabilities) {
  const std::int64_t B = logits.size(0), K = logits.size(1);
  const ScalarType type = ScalarType::Float;
  const Tensor entropy = new_tensor(logits, {}, type);
  const Tensor marginal =
      per_sample ? new_tensor(logits, {B, K}, type) : new_tensor(logits, {K}, type);
  const Tensor count = per_sample ? new_tensor(logits, {B}, type) : new_tensor(logits, {}, type);
  std::optional<Tensor> probabilities;
  if (with_probabilities) probabilities = torch::stable::empty_like(logits);
  entropy_sums(logits, mask, temperature, per_sample, entropy, marginal, count, probabilities);
  return {entropy, marginal, count,
          probabilities ? *probabilities : new_tensor(logits, {0}, logits.scalar_type())};
}

static void entropy_gradient(const Tensor& grad_entropy, const Tensor& grad_marginal_any,
                             const std::optional<Tensor>& grad_probabilities,
                             const Tensor& logits_any, const std::optional<Tensor>& mask_any,
                             double temperature, bool per_sample, const Tensor& grad) {
  const torch::stable::accelerator::DeviceGuard guard(logits_any.get_device_index());
  const Tensor logits = regular(logits_any);
  const Tensor grad_marginal = torch::stable::contiguous(grad_marginal_any);
  const std::optional<Tensor> mask = dense(mask_any);
  Written written(grad);
  Layout at = *find_layout(logits), to = *find_layout(written.tensor()), from = at;
  std::optional<Tensor> given;
  if (grad_probabilities) {
    given = regular(*grad_probabilities);
    from = *find_layout(*given);
  }
  if (!per_sample) join_samples({&at, &to, &from});
  if (at.B * at.S == 0) return;
  const EntropyGradView view{
      {at.B, at.K, at.S, pixels_in(logits, at), mask_data(mask),
       static_cast<float>(1.0 / temperature), PixelsOut{}},
      static_cast<const float*>(grad_entropy.const_data_ptr()),
      static_cast<const float*>(grad_marginal.const_data_ptr()),
      per_sample ? at.K : 0,
      given ? pixels_in(*given, from) : PixelsIn{},
      pixels_out(written.tensor(), to),
  };
  const dim3 grid(divide_up(at.S, kThreads), clamp_grid(at.B));
  const cudaStream_t stream = current_stream(logits);
  dispatch_storage(logits, [&](auto storage) {
    using T = decltype(storage);
    dispatch_classes(
        at.K,
        [&](auto classes) {
          entropy_backward_kernel<T, decltype(classes)::value>
              <<<grid, kThreads, 0, stream>>>(view);
        },
        [&] { entropy_backward_any_kernel<T><<<grid, kThreads, 0, stream>>>(view); });
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  written.finish();
}

Tensor entropy_backward(const Tensor& grad_entropy, const Tensor& grad_marginal,
                        const std::optional<Tensor>& grad_probabilities, const Tensor& logits,
                        const std::optional<Tensor>& mask, double temperature, bool per_sample) {
  const Tensor grad = torch::stable::empty_like(logits);
  entropy_gradient(grad_entropy, grad_marginal, grad_probabilities, logits, mask, temperature,
                   per_sample, grad);
  return grad;
}

}  // namespace em

STABLE_TORCH_LIBRARY_IMPL(em_kernels, CUDA, m) {
  m.impl("entropy_forward", TORCH_BOX(&em::entropy_forward));
  m.impl("entropy_forward_out", TORCH_BOX(&em::entropy_sums));
  m.impl("entropy_backward", TORCH_BOX(&em::entropy_backward));
  m.impl("entropy_backward_out", TORCH_BOX(&em::entropy_gradient));
}
