// Entropy regularizer on the CPU: one pass over the logits forward, one backward.
#include "entropy.hpp"

#include <algorithm>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "isa.hpp"
#include "tensors.hpp"

#define EM_BODY "entropy_tiles.hpp"
#include "for_each_isa.hpp"

namespace em {

// Writes the sums into tensors of the right sizes, and the probabilities where there is a tensor.
static void entropy_sums(const Tensor& logits_any, const std::optional<Tensor>& mask_any,
                         double temperature, bool per_sample, const Tensor& entropy,
                         const Tensor& marginal, const Tensor& count,
                         const std::optional<Tensor>& probabilities) {
  const Tensor logits = regular(logits_any);
  Layout at = *find_layout(logits);
  const std::int64_t groups = per_sample ? at.B : 1, K = at.K;
  const std::optional<Tensor> mask = dense(mask_any);
  std::optional<Written> written;
  Layout to = at;
  if (probabilities) {
    written.emplace(*probabilities);
    to = *find_layout(written->tensor());
  }
  if (!per_sample) join_samples({&at, &to});
  PixelsOut out;
  if (written) {
    out = pixels_out(written->tensor(), to);
    out.past_cache = goes_past_cache(written->tensor());
  }
  const EntropyJob job{K, at.S, pixels_in(logits, at), mask_data(mask), 1.0 / temperature, out};
  const std::int64_t pixels = per_sample ? at.S : at.B * at.S, columns = K + 2;
  const Isa isa = isa_in_use();
  std::vector<double> sums;
  dispatch_storage(logits, [&](auto storage) {
    using T = decltype(storage);
    sums = sum_chunks<compute_t<T>>(
        groups, pixels, columns, K * (2 * kTileRow + kVectorRow),
        [&](std::int64_t begin, std::int64_t end, double* chunk, compute_t<T>* scratch) {
          EM_DISPATCH_ISA(isa, entropy_chunk<T>(job, begin, end, chunk, scratch))
        });
  });
  double total = 0;
  for (std::int64_t group = 0; group < groups; ++group) {
    const double* row = &sums[group * columns];
    total += row[0];
    put_numbers(marginal, group * K, row + 1, K);
    put_numbers(count, group, row + K + 1, 1);
  }
  put_numbers(entropy, 0, &total, 1);
  if (written) written->finish();
}

std::tuple<Tensor, Tensor, Tensor, Tensor> entropy_forward(const Tensor& logits,
                                                           const std::optional<Tensor>& mask,
                                                           double temperature, bool per_sample,
                                                           bool with_probabilities) {
  const std::int64_t B = logits.size(0), K = logits.size(1);
  const ScalarType type = sum_type(logits);
  const Tensor entropy = new_tensor(logits, {}, type);
  const Tensor marginal =
      per_sample ? new_tensor(logits, {B, K}, type) : new_tensor(logits, {K}, type);
  const Tensor count = per_sample ? new_tensor(logits, {B}, type) : new_tensor(logits, {}, type);
  std::optional<Tensor> probabilities;
  if (with_probabilities) {
    probabilities = torch::stable::empty_like(logits);
    claim_pages(*probabilities);
  }
  entropy_sums(logits, mask, temperature, per_sample, entropy, marginal, count, probabilities);
  return {entropy, marginal, count,
          probabilities ? *probabilities : new_tensor(logits, {0}, logits.scalar_type())};
}

static void entropy_gradient(const Tensor& grad_entropy, const Tensor& grad_marginal_any,
                             const std::optional<Tensor>& grad_probabilities,
                             const Tensor& logits_any, const std::optional<Tensor>& mask_any,
                             double temperature, bool per_sample, const Tensor& grad) {
  const Tensor logits = regular(logits_any);
  const Tensor grad_marginal = torch::stable::contiguous(grad_marginal_any);
  const std::optional<Tensor> mask = dense(mask_any);
  const bool in_place = grad.const_data_ptr() == logits.const_data_ptr();
  Written written(grad);
  Layout at = *find_layout(logits), to = *find_layout(written.tensor()), from = at;
  std::optional<Tensor> given;
  if (grad_probabilities) {
    given = regular(*grad_probabilities);
    from = *find_layout(*given);
  }
  if (!per_sample) join_samples({&at, &to, &from});
  EntropyGradJob job{
      at.K,
      at.S,
      pixels_in(logits, at),
      mask_data(mask),
      1.0 / temperature,
      get_number(grad_entropy),
      grad_marginal.const_data_ptr(),
      per_sample ? at.K : 0,
      given ? pixels_in(*given, from) : PixelsIn{},
      pixels_out(written.tensor(), to),
  };
  job.grad.past_cache = !in_place && goes_past_cache(grad);
  const Isa isa = isa_in_use();
  dispatch_storage(logits, [&](auto storage) {
    using T = decltype(storage);
    for_each_run<compute_t<T>>(
        at.B * at.S, at.K * kTileRow * (given ? 4 : 3),
        [&](std::int64_t begin, std::int64_t end, compute_t<T>* scratch) {
          EM_DISPATCH_ISA(isa, entropy_grad_chunk<T>(job, begin, end, scratch))
        });
  });
  written.finish();
}

Tensor entropy_backward(const Tensor& grad_entropy, const Tensor& grad_marginal,
                        const std::optional<Tensor>& grad_probabilities, const Tensor& logits,
                        const std::optional<Tensor>& mask, double temperature, bool per_sample) {
  const Tensor grad = torch::stable::empty_like(logits);
  claim_pages(grad);
  entropy_gradient(grad_entropy, grad_marginal, grad_probabilities, logits, mask, temperature,
                   per_sample, grad);
  return grad;
}

}  // namespace em

STABLE_TORCH_LIBRARY_IMPL(em_kernels, CPU, m) {
  m.impl("entropy_forward", TORCH_BOX(&em::entropy_forward));
  m.impl("entropy_forward_out", TORCH_BOX(&em::entropy_sums));
  m.impl("entropy_backward", TORCH_BOX(&em::entropy_backward));
  m.impl("entropy_backward_out", TORCH_BOX(&em::entropy_gradient));
}
