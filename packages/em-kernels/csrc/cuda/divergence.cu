// Divergence between prediction and target on CUDA, on the current stream.
#include "divergence.cuh"

#include <tuple>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "launch.cuh"

namespace em {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> divergence_forward(
    const Tensor& prediction_any, const Tensor& target_any, bool target_is_logits,
    const std::optional<Tensor>& mask_any, double temperature, double target_temperature,
    bool per_sample) {
  const torch::stable::accelerator::DeviceGuard guard(prediction_any.get_device_index());
  const Tensor prediction = regular(prediction_any), target = regular(target_any);
  const std::optional<Tensor> mask = dense(mask_any);
  Layout at = *find_layout(prediction), at_target = *find_layout(target);
  const std::int64_t B = at.B, K = at.K;
  if (!per_sample) join_samples({&at, &at_target});
  const DivergenceView view{at.B,
                            K,
                            at.S,
                            pixels_in(prediction, at),
                            pixels_in(target, at_target),
                            mask_data(mask),
                            static_cast<float>(1.0 / temperature),
                            static_cast<float>(1.0 / target_temperature)};
  const PartialBuffer buffer(prediction, at, 4 + 2 * K);
  const Partials partials = buffer.partials();
  const cudaStream_t stream = current_stream(prediction);
  if (at.B * at.S > 0) {
    dispatch_storage(prediction, [&](auto storage) {
      using T = decltype(storage);
      const auto kernel = target_is_logits ? divergence_forward_kernel<T, true>
                                           : divergence_forward_kernel<T, false>;
      kernel<<<buffer.grid(), kThreads, 0, stream>>>(view, partials);
    });
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  const ScalarType type = ScalarType::Float;
  Tensor scalars[3], marginals[2];
  for (Tensor& x : scalars) x = new_tensor(prediction, {}, type);
  for (Tensor& x : marginals)
    x = per_sample ? new_tensor(prediction, {B, K}, type) : new_tensor(prediction, {K}, type);
  const Tensor count =
      per_sample ? new_tensor(prediction, {B}, type) : new_tensor(prediction, {}, type);
  reduce_sums(partials, at.B, K, per_sample ? B : 1, per_sample,
              {&scalars[0], &scalars[1], &scalars[2]}, count, {&marginals[0], &marginals[1]},
              stream);
  return {scalars[0], scalars[1], marginals[0], scalars[2], marginals[1], count};
}

std::tuple<Tensor, Tensor> divergence_backward(
    const Tensor& grad_cross_entropy, const Tensor& grad_entropy, const Tensor& grad_marginal_any,
    const Tensor& grad_target_entropy, const Tensor& grad_target_marginal_any,
    const Tensor& prediction_any, const Tensor& target_any, bool target_is_logits,
    const std::optional<Tensor>& mask_any, double temperature, double target_temperature,
    bool per_sample, bool need_prediction, bool need_target) {
  const torch::stable::accelerator::DeviceGuard guard(prediction_any.get_device_index());
  const Tensor prediction = regular(prediction_any), target = regular(target_any);
  const std::optional<Tensor> mask = dense(mask_any);
  const Tensor grad_marginal = torch::stable::contiguous(grad_marginal_any);
  const Tensor grad_target_marginal = torch::stable::contiguous(grad_target_marginal_any);
  const auto fresh = [](const Tensor& like, bool needed) {
    return needed ? torch::stable::empty_like(like)
                  : new_tensor(like, {0, 0}, like.scalar_type());
  };
  const Tensor grad = fresh(prediction_any, need_prediction);
  const Tensor grad_target = fresh(target_any, need_target);
  Written written(grad), written_target(grad_target);
  Layout at = *find_layout(prediction), at_target = *find_layout(target);
  Layout to = need_prediction ? *find_layout(written.tensor()) : at;
  Layout to_target = need_target ? *find_layout(written_target.tensor()) : at_target;
  if (!per_sample) join_samples({&at, &at_target, &to, &to_target});
  const auto numbers = [](const Tensor& x) { return static_cast<const float*>(x.const_data_ptr()); };
  const DivergenceGradView view{
      {at.B, at.K, at.S, pixels_in(prediction, at), pixels_in(target, at_target), mask_data(mask),
       static_cast<float>(1.0 / temperature), static_cast<float>(1.0 / target_temperature)},
      numbers(grad_cross_entropy),
      numbers(grad_entropy),
      numbers(grad_target_entropy),
      numbers(grad_marginal),
      numbers(grad_target_marginal),
      per_sample ? at.K : 0,
      need_prediction ? pixels_out(written.tensor(), to) : PixelsOut{},
      need_target ? pixels_out(written_target.tensor(), to_target) : PixelsOut{},
  };
  if (at.B * at.S > 0) {
    const dim3 grid(divide_up(at.S, kThreads), clamp_grid(at.B));
    dispatch_storage(prediction, [&](auto storage) {
      using T = decltype(storage);
      const auto kernel = target_is_logits ? divergence_backward_kernel<T, true>
                                           : divergence_backward_kernel<T, false>;
      kernel<<<grid, kThreads, 0, current_stream(prediction)>>>(view);
    });
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  if (need_prediction) written.finish();
  if (need_target) written_target.finish();
  return {grad, grad_target};
}

}  // namespace em

STABLE_TORCH_LIBRARY_IMPL(em_kernels, CUDA, m) {
  m.impl("divergence_forward", TORCH_BOX(&em::divergence_forward));
  m.impl("divergence_backward", TORCH_BOX(&em::divergence_backward));
}
