// Patches of a volume on the CPU: cut, put back, normalized, and compared with a prediction.
#include "patches.hpp"

#include <algorithm>
#include <tuple>
#include <type_traits>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "cuts.hpp"
#include "isa.hpp"
#include "tensors.hpp"

#define EM_BODY "patches_tiles.hpp"
#include "for_each_isa.hpp"

namespace em {

using Numbers = std::vector<std::int64_t>;

// Values of one run: what fits the first cache beside the rows that it is read from.
constexpr std::int64_t kRunValues = 8192;

template <class F>
static void dispatch_raw(const Tensor& x, F&& f) {
  switch (x.scalar_type()) {
    case ScalarType::Byte: f(std::uint8_t{}); break;
    case ScalarType::UInt16: f(std::uint16_t{}); break;
    default: dispatch_storage(x, f);
  }
}

// Calls f(volume element, other element) for the pairs that have a kernel: float64 goes with
// float64 and integers.
template <class F>
static void dispatch_pair(const Tensor& volume, const Tensor& other, F&& f) {
  dispatch_raw(volume, [&](auto t) {
    dispatch_storage(other, [&](auto u) {
      using T = decltype(t);
      using U = decltype(u);
      if constexpr (std::is_integral_v<T> || std::is_same_v<T, double> == std::is_same_v<U, double>)
        f(t, u);
      else
        STD_TORCH_CHECK(false, "em_kernels: float64 goes with float64 only");
    });
  });
}

static void check_tokens(const Patches& at) {
  if (at.tokens == nullptr) return;
  for (std::int64_t i = 0; i < at.B * at.V; ++i)
    STD_TORCH_CHECK(at.tokens[i] >= 0 && at.tokens[i] < at.all(), "tokens must lie in [0, ",
                    at.all(), ") for this volume and patch, got ", at.tokens[i]);
}

// Calls f(first slot, token, count, row, values) for runs of tokens that are neighbours in x; a
// slot is a token's place in (B, V). Scratch holds one run and one row of voxels.
template <class C, class F>
static void for_each_token_run(const Patches& at, const F& f) {
  if (at.B * at.V == 0) return;
  const std::int64_t D = at.values();
  std::int64_t longest = 1;
  if (at.tokens == nullptr)
    longest = std::clamp<std::int64_t>(kRunValues / D / 2 * 2, 1, at.across());  // pairs
  const std::int64_t runs = (at.across() + longest - 1) / longest;  // per row of tokens
  const std::int64_t rows = at.tokens == nullptr ? at.all() / at.across() : at.V;
  const std::int64_t per_row = at.tokens == nullptr ? runs : 1;
  torch::stable::parallel_for(
      0, at.B * rows * per_row, 16, [&](std::int64_t first, std::int64_t last) {
        std::vector<C> scratch(longest * (D + at.px) + 64);
        C* values = scratch.data() + longest * at.px;
        for (std::int64_t i = first; i < last; ++i) {
          std::int64_t slot = i, count = 1;
          if (at.tokens == nullptr) {
            const std::int64_t x = i % per_row * longest;
            slot = i / per_row * at.across() + x;
            count = std::min(longest, at.across() - x);
          }
          const std::int64_t token = at.tokens == nullptr ? slot % at.V : at.tokens[slot];
          f(slot, token, count, scratch.data(), values);
        }
        fence_streams();
      });
}

void patchify_out(const Tensor& volume_any, const std::optional<Tensor>& tokens_any,
                  const Numbers& patch, double scale, double shift, bool channels_last,
                  const Tensor& out) {
  const Tensor volume = dense_rows(volume_any);
  const std::optional<Tensor> tokens = dense(tokens_any);
  const Patches at = describe(volume, tokens, patch, channels_last);
  check_tokens(at);
  const std::int64_t D = at.values();
  const bool past_cache = goes_past_cache(out);
  const Isa isa = isa_in_use();
  dispatch_pair(volume, out, [&](auto t, auto u) {
    using T = decltype(t);
    using U = decltype(u);
    const T* from = static_cast<const T*>(volume.const_data_ptr());
    U* to = static_cast<U*>(out.mutable_data_ptr());
    for_each_token_run<compute_t<U>>(
        at,
        [&](std::int64_t slot, std::int64_t token, std::int64_t count, auto* row, auto* values) {
          const T* corner = from + at.corner(slot / at.V, token);
          EM_DISPATCH_ISA(isa, patchify_run<T, U>(at, corner, count, Affine{scale, shift}, row,
                                                  values, past_cache, to + slot * D))
        });
  });
}

Tensor patchify(const Tensor& volume, const std::optional<Tensor>& tokens, const Numbers& patch,
                double scale, double shift, bool channels_last, ScalarType dtype) {
  const Patches at = describe(volume, tokens, patch, channels_last);
  const Tensor out = new_tensor(volume, {at.B, at.V, at.values()}, dtype);
  claim_pages(out);
  patchify_out(volume, tokens, patch, scale, shift, channels_last, out);
  return out;
}

void unpatchify_out(const Tensor& patches_any, const std::optional<Tensor>& tokens_any,
                    const Numbers& patch, bool channels_last, const Tensor& volume) {
  const Tensor patches = torch::stable::contiguous(patches_any);
  const std::optional<Tensor> tokens = dense(tokens_any);
  if (tokens) {
    Tensor zero = volume;
    torch::stable::zero_(zero);
  }
  const Patches at = describe(volume, tokens, patch, channels_last);
  check_tokens(at);
  const std::int64_t D = at.values();
  const bool past_cache = !tokens && goes_past_cache(volume);
  const Isa isa = isa_in_use();
  dispatch_storage(patches, [&](auto t) {
    using T = decltype(t);
    const T* from = static_cast<const T*>(patches.const_data_ptr());
    T* to = static_cast<T*>(volume.mutable_data_ptr());
    for_each_token_run<compute_t<T>>(
        at,
        [&](std::int64_t slot, std::int64_t token, std::int64_t count, auto* row, auto* values) {
          T* corner = to + at.corner(slot / at.V, token);
          EM_DISPATCH_ISA(isa, unpatchify_run<T>(at, from + slot * D, count, row, values,
                                                 past_cache, corner))
        });
  });
}

Tensor unpatchify(const Tensor& patches, const std::optional<Tensor>& tokens,
                  const Numbers& patch, const Numbers& size, bool channels_last) {
  const Tensor volume = new_tensor(
      patches, {patches.size(0), size[0], size[1], size[2], size[3]}, patches.scalar_type());
  claim_pages(volume);
  unpatchify_out(patches, tokens, patch, channels_last, volume);
  return volume;
}

std::tuple<Tensor, Tensor, Tensor> patch_targets(const Tensor& volume_any,
                                                 const std::optional<Tensor>& tokens_any,
                                                 const Numbers& patch, double scale, double shift,
                                                 bool channels_last, double eps,
                                                 ScalarType dtype) {
  const Tensor volume = dense_rows(volume_any);
  const std::optional<Tensor> tokens = dense(tokens_any);
  const Patches at = describe(volume, tokens, patch, channels_last);
  check_tokens(at);
  const std::int64_t D = at.values();
  const Tensor out = new_tensor(volume, {at.B, at.V, D}, dtype);
  const Tensor mean = new_tensor(volume, {at.B, at.V}, sum_type(out));
  const Tensor variance = new_tensor(volume, {at.B, at.V}, sum_type(out));
  claim_pages(out);
  const bool past_cache = goes_past_cache(out);
  std::vector<double> means(at.B * at.V), variances(at.B * at.V);
  const Isa isa = isa_in_use();
  dispatch_pair(volume, out, [&](auto t, auto u) {
    using T = decltype(t);
    using U = decltype(u);
    const T* from = static_cast<const T*>(volume.const_data_ptr());
    U* to = static_cast<U*>(out.mutable_data_ptr());
    for_each_token_run<compute_t<U>>(
        at,
        [&](std::int64_t slot, std::int64_t token, std::int64_t count, auto* row, auto* values) {
          const T* corner = from + at.corner(slot / at.V, token);
          EM_DISPATCH_ISA(isa, target_run<T, U>(at, corner, count, Affine{scale, shift}, eps, row,
                                                values, past_cache, to + slot * D, &means[slot],
                                                &variances[slot]))
        });
  });
  put_numbers(mean, 0, means.data(), at.B * at.V);
  put_numbers(variance, 0, variances.data(), at.B * at.V);
  return {out, mean, variance};
}

Tensor reconstruction_forward(const Tensor& prediction_any, const Tensor& volume_any,
                              const std::optional<Tensor>& tokens_any, const Numbers& patch,
                              double scale, double shift, bool channels_last, bool normalize,
                              double eps) {
  const Tensor volume = dense_rows(volume_any);
  const Tensor prediction = torch::stable::contiguous(prediction_any);
  const std::optional<Tensor> tokens = dense(tokens_any);
  const Patches at = describe(volume, tokens, patch, channels_last);
  check_tokens(at);
  const std::int64_t D = at.values();
  const Tensor sum = new_tensor(prediction, {}, sum_type(prediction));
  std::vector<double> errors(at.B * at.V);
  const Isa isa = isa_in_use();
  dispatch_pair(volume, prediction, [&](auto t, auto u) {
    using T = decltype(t);
    using U = decltype(u);
    const T* from = static_cast<const T*>(volume.const_data_ptr());
    const U* guess = static_cast<const U*>(prediction.const_data_ptr());
    for_each_token_run<compute_t<U>>(
        at,
        [&](std::int64_t slot, std::int64_t token, std::int64_t count, auto* row, auto* values) {
          const T* corner = from + at.corner(slot / at.V, token);
          EM_DISPATCH_ISA(isa, error_run<T, U>(at, corner, count, Affine{scale, shift}, normalize,
                                               eps, row, values, guess + slot * D, &errors[slot]))
        });
  });
  double total = 0;
  for (const double error : errors) total += error;
  put_numbers(sum, 0, &total, 1);
  return sum;
}

Tensor reconstruction_backward(const Tensor& grad, const Tensor& prediction_any,
                               const Tensor& volume_any, const std::optional<Tensor>& tokens_any,
                               const Numbers& patch, double scale, double shift,
                               bool channels_last, bool normalize, double eps) {
  const Tensor volume = dense_rows(volume_any);
  const Tensor prediction = torch::stable::contiguous(prediction_any);
  const std::optional<Tensor> tokens = dense(tokens_any);
  const Patches at = describe(volume, tokens, patch, channels_last);
  const std::int64_t D = at.values();
  const Tensor out = torch::stable::empty_like(prediction);
  claim_pages(out);
  const bool past_cache = goes_past_cache(out);
  const double factor = 2 * get_number(grad);
  const Isa isa = isa_in_use();
  dispatch_pair(volume, prediction, [&](auto t, auto u) {
    using T = decltype(t);
    using U = decltype(u);
    using C = compute_t<U>;
    const T* from = static_cast<const T*>(volume.const_data_ptr());
    const U* guess = static_cast<const U*>(prediction.const_data_ptr());
    U* to = static_cast<U*>(out.mutable_data_ptr());
    for_each_token_run<C>(
        at,
        [&](std::int64_t slot, std::int64_t token, std::int64_t count, auto* row, auto* values) {
          const T* corner = from + at.corner(slot / at.V, token);
          EM_DISPATCH_ISA(isa, error_grad_run<T, U>(at, corner, count, Affine{scale, shift},
                                                    normalize, eps, row, values, guess + slot * D,
                                                    static_cast<C>(factor), past_cache,
                                                    to + slot * D))
        });
  });
  return out;
}

}  // namespace em

STABLE_TORCH_LIBRARY_IMPL(em_kernels, CPU, m) {
  m.impl("patchify", TORCH_BOX(&em::patchify));
  m.impl("patchify_out", TORCH_BOX(&em::patchify_out));
  m.impl("unpatchify", TORCH_BOX(&em::unpatchify));
  m.impl("unpatchify_out", TORCH_BOX(&em::unpatchify_out));
  m.impl("patch_targets", TORCH_BOX(&em::patch_targets));
  m.impl("reconstruction_forward", TORCH_BOX(&em::reconstruction_forward));
  m.impl("reconstruction_backward", TORCH_BOX(&em::reconstruction_backward));
}
