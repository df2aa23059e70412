// Patches of a volume on CUDA, on the current stream.
#include "patches.cuh"

#include <tuple>
#include <vector>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "cuts.hpp"
#include "launch.cuh"

namespace em {

using Numbers = std::vector<std::int64_t>;
using torch::stable::accelerator::DeviceGuard;

template <class F>
static void dispatch_raw(const Tensor& x, F&& f) {
  switch (x.scalar_type()) {
    case ScalarType::Byte: f(std::uint8_t{}); break;
    case ScalarType::UInt16: f(std::uint16_t{}); break;
    default: dispatch_storage(x, f);
  }
}

// Calls f(volume element, other element, volume data).
template <class F>
static void dispatch_pair(const Tensor& volume, const Tensor& other, F&& f) {
  dispatch_raw(volume, [&](auto t) {
    using T = decltype(t);
    dispatch_storage(
        other, [&](auto u) { f(t, u, static_cast<const T*>(volume.const_data_ptr())); });
  });
}

// Blocks for n units of work; kernels step over what is more.
static unsigned blocks_for(std::int64_t n) {
  return static_cast<unsigned>(std::clamp<std::int64_t>(n, 1, std::int64_t(1) << 20));
}

void patchify_out(const Tensor& volume_any, const std::optional<Tensor>& tokens_any,
                  const Numbers& patch, double scale, double shift, bool channels_last,
                  const Tensor& out) {
  const DeviceGuard guard(volume_any.get_device_index());
  const Tensor volume = dense_rows(volume_any);
  const std::optional<Tensor> tokens = dense(tokens_any);
  const Patches at = describe(volume, tokens, patch, channels_last);
  if (out.numel() == 0) return;
  dispatch_pair(volume, out, [&](auto t, auto u, const auto* data) {
    using U = decltype(u);
    patchify_kernel<decltype(t), U>
        <<<blocks_for(divide_up(out.numel(), kThreads)), kThreads, 0, current_stream(volume)>>>(
            at, data, scale, shift, static_cast<U*>(out.mutable_data_ptr()));
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor patchify(const Tensor& volume, const std::optional<Tensor>& tokens, const Numbers& patch,
                double scale, double shift, bool channels_last, ScalarType dtype) {
  const Patches at = describe(volume, tokens, patch, channels_last);
  const Tensor out = new_tensor(volume, {at.B, at.V, at.values()}, dtype);
  patchify_out(volume, tokens, patch, scale, shift, channels_last, out);
  return out;
}

void unpatchify_out(const Tensor& patches_any, const std::optional<Tensor>& tokens_any,
                    const Numbers& patch, bool channels_last, const Tensor& volume) {
  const DeviceGuard guard(patches_any.get_device_index());
  const Tensor patches = torch::stable::contiguous(patches_any);
  const std::optional<Tensor> tokens = dense(tokens_any);
  if (tokens) {
    Tensor zero = volume;
    torch::stable::zero_(zero);
  }
  if (patches.numel() == 0) return;
  const Patches at = describe(volume, tokens, patch, channels_last);
  dispatch_storage(patches, [&](auto t) {
    using T = decltype(t);
    unpatchify_kernel<T>
        <<<blocks_for(divide_up(patches.numel(), kThreads)), kThreads, 0,
           current_stream(patches)>>>(at, static_cast<const T*>(patches.const_data_ptr()),
                                      static_cast<T*>(volume.mutable_data_ptr()));
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor unpatchify(const Tensor& patches, const std::optional<Tensor>& tokens,
                  const Numbers& patch, const Numbers& size, bool channels_last) {
  const Tensor volume = new_tensor(
      patches, {patches.size(0), size[0], size[1], size[2], size[3]}, patches.scalar_type());
  unpatchify_out(patches, tokens, patch, channels_last, volume);
  return volume;
}

std::tuple<Tensor, Tensor, Tensor> patch_targets(const Tensor& volume_any,
                                                 const std::optional<Tensor>& tokens_any,
                                                 const Numbers& patch, double scale, double shift,
                                                 bool channels_last, double eps,
                                                 ScalarType dtype) {
  const DeviceGuard guard(volume_any.get_device_index());
  const Tensor volume = dense_rows(volume_any);
  const std::optional<Tensor> tokens = dense(tokens_any);
  const Patches at = describe(volume, tokens, patch, channels_last);
  const Tensor out = new_tensor(volume, {at.B, at.V, at.values()}, dtype);
  const Tensor mean = new_tensor(volume, {at.B, at.V}, ScalarType::Float);
  const Tensor variance = new_tensor(volume, {at.B, at.V}, ScalarType::Float);
  if (out.numel() == 0) return {out, mean, variance};
  dispatch_pair(volume, out, [&](auto t, auto u, const auto* data) {
    using U = decltype(u);
    patch_targets_kernel<decltype(t), U>
        <<<blocks_for(at.B * at.V), kThreads, 0, current_stream(volume)>>>(
            at, data, scale, shift, eps, static_cast<U*>(out.mutable_data_ptr()),
            static_cast<float*>(mean.mutable_data_ptr()),
            static_cast<float*>(variance.mutable_data_ptr()));
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {out, mean, variance};
}

// The errors of all tokens, or the gradient of the prediction.
static void reconstruct(const Tensor& prediction, const Tensor& volume_any,
                        const std::optional<Tensor>& tokens_any, const Numbers& patch,
                        double scale, double shift, bool channels_last, bool normalize, double eps,
                        const float* gradient, float* errors, void* out) {
  const Tensor volume = dense_rows(volume_any);
  const std::optional<Tensor> tokens = dense(tokens_any);
  const Patches at = describe(volume, tokens, patch, channels_last);
  if (prediction.numel() == 0) return;
  dispatch_pair(volume, prediction, [&](auto t, auto u, const auto* data) {
    using U = decltype(u);
    reconstruction_kernel<decltype(t), U>
        <<<blocks_for(at.B * at.V), kThreads, 0, current_stream(volume)>>>(
            at, data, scale, shift, normalize, eps,
            static_cast<const U*>(prediction.const_data_ptr()), gradient, errors,
            static_cast<U*>(out));
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor reconstruction_forward(const Tensor& prediction_any, const Tensor& volume,
                              const std::optional<Tensor>& tokens, const Numbers& patch,
                              double scale, double shift, bool channels_last, bool normalize,
                              double eps) {
  const DeviceGuard guard(volume.get_device_index());
  const Tensor prediction = torch::stable::contiguous(prediction_any);
  const std::int64_t n = prediction.size(0) * prediction.size(1);
  const Tensor errors = new_tensor(prediction, {n}, ScalarType::Float);
  const Tensor total = new_tensor(prediction, {}, ScalarType::Float);
  float* data = static_cast<float*>(errors.mutable_data_ptr());
  reconstruct(prediction, volume, tokens, patch, scale, shift, channels_last, normalize, eps,
              nullptr, data, nullptr);
  reduce_errors_kernel<<<1, kThreads, 0, current_stream(prediction)>>>(
      data, n, static_cast<float*>(total.mutable_data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return total;
}

Tensor reconstruction_backward(const Tensor& grad, const Tensor& prediction_any,
                               const Tensor& volume, const std::optional<Tensor>& tokens,
                               const Numbers& patch, double scale, double shift,
                               bool channels_last, bool normalize, double eps) {
  const DeviceGuard guard(volume.get_device_index());
  const Tensor prediction = torch::stable::contiguous(prediction_any);
  const Tensor out = torch::stable::empty_like(prediction);
  reconstruct(prediction, volume, tokens, patch, scale, shift, channels_last, normalize, eps,
              static_cast<const float*>(grad.const_data_ptr()), nullptr, out.mutable_data_ptr());
  return out;
}

}  // namespace em

STABLE_TORCH_LIBRARY_IMPL(em_kernels, CUDA, m) {
  m.impl("patchify", TORCH_BOX(&em::patchify));
  m.impl("patchify_out", TORCH_BOX(&em::patchify_out));
  m.impl("unpatchify", TORCH_BOX(&em::unpatchify));
  m.impl("unpatchify_out", TORCH_BOX(&em::unpatchify_out));
  m.impl("patch_targets", TORCH_BOX(&em::patch_targets));
  m.impl("reconstruction_forward", TORCH_BOX(&em::reconstruction_forward));
  m.impl("reconstruction_backward", TORCH_BOX(&em::reconstruction_backward));
}
