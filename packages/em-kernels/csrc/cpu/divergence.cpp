// Divergence between prediction and target on the CPU: each tensor is read once each way.
#include "divergence.hpp"

#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "isa.hpp"
#include "tensors.hpp"

#define EM_BODY "divergence_tiles.hpp"
#include "for_each_isa.hpp"

namespace em {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> divergence_forward(
    const Tensor& prediction_any, const Tensor& target_any, bool target_is_logits,
    const std::optional<Tensor>& mask_any, double temperature, double target_temperature,
    bool per_sample) {
  const Tensor prediction = regular(prediction_any), target = regular(target_any);
  const std::optional<Tensor> mask = dense(mask_any);
  Layout at = *find_layout(prediction), at_target = *find_layout(target);
  const std::int64_t B = at.B, K = at.K, groups = per_sample ? B : 1;
  if (!per_sample) join_samples({&at, &at_target});
  const DivergenceJob job{K,
                          at.S,
                          pixels_in(prediction, at),
                          pixels_in(target, at_target),
                          mask_data(mask),
                          1.0 / temperature,
                          1.0 / target_temperature};
  const Isa isa = isa_in_use();
  const std::int64_t columns = 4 + 2 * K;
  std::vector<double> sums;
  dispatch_storage(prediction, [&](auto storage) {
    using T = decltype(storage);
    sums = sum_chunks<compute_t<T>>(
        groups, per_sample ? at.S : at.B * at.S, columns, 2 * K * (kTileRow + kVectorRow),
        [&](std::int64_t begin, std::int64_t end, double* chunk, compute_t<T>* scratch) {
          if (target_is_logits) {
            EM_DISPATCH_ISA(isa, divergence_chunk<T, true>(job, begin, end, chunk, scratch))
          } else {
            EM_DISPATCH_ISA(isa,
                            divergence_chunk<T, false>(job, begin, end, chunk, scratch))
          }
        });
  });

  const ScalarType type = sum_type(prediction);
  Tensor scalars[3], marginals[2];
  for (Tensor& x : scalars) x = new_tensor(prediction, {}, type);
  for (Tensor& x : marginals)
    x = per_sample ? new_tensor(prediction, {B, K}, type) : new_tensor(prediction, {K}, type);
  const Tensor count =
      per_sample ? new_tensor(prediction, {B}, type) : new_tensor(prediction, {}, type);
  double totals[3] = {};
  for (std::int64_t group = 0; group < groups; ++group) {
    const double* row = &sums[group * columns];
    for (int i = 0; i < 3; ++i) totals[i] += row[i];
    put_numbers(count, group, row + 3, 1);
    for (int i = 0; i < 2; ++i) put_numbers(marginals[i], group * K, row + 4 + i * K, K);
  }
  for (int i = 0; i < 3; ++i) put_numbers(scalars[i], 0, &totals[i], 1);
  return {scalars[0], scalars[1], marginals[0], scalars[2], marginals[1], count};
}

std::tuple<Tensor, Tensor> divergence_backward(
    const Tensor& grad_cross_entropy, const Tensor& grad_entropy, const Tensor& grad_marginal_any,
    const Tensor& grad_target_entropy, const Tensor& grad_target_marginal_any,
    const Tensor& prediction_any, const Tensor& target_any, bool target_is_logits,
    const std::optional<Tensor>& mask_any, double temperature, double target_temperature,
    bool per_sample, bool need_prediction, bool need_target) {
  const Tensor prediction = regular(prediction_any), target = regular(target_any);
  const std::optional<Tensor> mask = dense(mask_any);
  const Tensor grad_marginal = torch::stable::contiguous(grad_marginal_any);
  const Tensor grad_target_marginal = torch::stable::contiguous(grad_target_marginal_any);
  const auto fresh = [](const Tensor& like, bool needed) {
    const Tensor grad =
        needed ? torch::stable::empty_like(like) : new_tensor(like, {0, 0}, like.scalar_type());
    claim_pages(grad);
    return grad;
  };
  const Tensor grad = fresh(prediction_any, need_prediction);
  const Tensor grad_target = fresh(target_any, need_target);
  Written written(grad), written_target(grad_target);
  Layout at = *find_layout(prediction), at_target = *find_layout(target);
  Layout to = need_prediction ? *find_layout(written.tensor()) : at;
  Layout to_target = need_target ? *find_layout(written_target.tensor()) : at_target;
  if (!per_sample) join_samples({&at, &at_target, &to, &to_target});
  const auto place = [](const Written& x, const Layout& layout, bool needed) {
    PixelsOut out;
    if (needed) out = pixels_out(x.tensor(), layout);
    out.past_cache = needed && goes_past_cache(x.tensor());
    return out;
  };
  const DivergenceGradJob job{
      {at.K, at.S, pixels_in(prediction, at), pixels_in(target, at_target), mask_data(mask),
       1.0 / temperature, 1.0 / target_temperature},
      get_number(grad_cross_entropy),
      get_number(grad_entropy),
      get_number(grad_target_entropy),
      grad_marginal.const_data_ptr(),
      grad_target_marginal.const_data_ptr(),
      per_sample ? at.K : 0,
      place(written, to, need_prediction),
      place(written_target, to_target, need_target),
  };
  const Isa isa = isa_in_use();
  dispatch_storage(prediction, [&](auto storage) {
    using T = decltype(storage);
    for_each_run<compute_t<T>>(
        at.B * at.S, 4 * at.K * kTileRow,
        [&](std::int64_t begin, std::int64_t end, compute_t<T>* scratch) {
          if (target_is_logits) {
            EM_DISPATCH_ISA(isa, divergence_grad_chunk<T, true>(job, begin, end, scratch))
          } else {
            EM_DISPATCH_ISA(isa, divergence_grad_chunk<T, false>(job, begin, end, scratch))
          }
        });
  });
  if (need_prediction) written.finish();
  if (need_target) written_target.finish();
  return {grad, grad_target};
}

}  // namespace em

STABLE_TORCH_LIBRARY_IMPL(em_kernels, CPU, m) {
  m.impl("divergence_forward", TORCH_BOX(&em::divergence_forward));
  m.impl("divergence_backward", TORCH_BOX(&em::divergence_backward));
}
