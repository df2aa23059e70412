// The schemas of all operators. Kernels register themselves beside their code, one file per
// operator and device; autograd and the fake (meta) kernels are registered from Python.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(em_kernels, m) {
  m.def("isa_available() -> int");
  m.def("isa_in_use() -> int");

  // `probabilities` is empty where it is not asked for.
  m.def(
      "entropy_forward(Tensor logits, Tensor? mask, float temperature, bool per_sample, "
      "bool with_probabilities) "
      "-> (Tensor entropy, Tensor marginal, Tensor count, Tensor probabilities)");
  m.def(
      "entropy_forward_out(Tensor logits, Tensor? mask, float temperature, bool per_sample, "
      "Tensor(a!) entropy, Tensor(b!) marginal, Tensor(c!) count, Tensor(d!)? probabilities) "
      "-> ()");
  m.def(
      "entropy_backward(Tensor grad_entropy, Tensor grad_marginal, Tensor? grad_probabilities, "
      "Tensor logits, Tensor? mask, float temperature, bool per_sample) -> Tensor");
  // `grad` may be `logits` itself.
  m.def(
      "entropy_backward_out(Tensor grad_entropy, Tensor grad_marginal, "
      "Tensor? grad_probabilities, Tensor logits, Tensor? mask, float temperature, "
      "bool per_sample, Tensor(a!) grad) -> ()");

  m.def(
      "divergence_forward(Tensor prediction, Tensor target, bool target_is_logits, Tensor? mask, "
      "float temperature, float target_temperature, bool per_sample) "
      "-> (Tensor cross_entropy, Tensor entropy, Tensor marginal, Tensor target_entropy, "
      "Tensor target_marginal, Tensor count)");
  // Gradients that are not needed are empty.
  m.def(
      "divergence_backward(Tensor grad_cross_entropy, Tensor grad_entropy, Tensor grad_marginal, "
      "Tensor grad_target_entropy, Tensor grad_target_marginal, Tensor prediction, Tensor target, "
      "bool target_is_logits, Tensor? mask, float temperature, float target_temperature, "
      "bool per_sample, bool need_prediction, bool need_target) -> (Tensor, Tensor)");

  // `tokens` (B, V) names the patches to read; without it, all of them in order.
  m.def(
      "patchify(Tensor volume, Tensor? tokens, int[] patch, float scale, float shift, "
      "bool channels_last, ScalarType dtype) -> Tensor");
  // `size` is (C, Z, Y, X); patches that `tokens` leaves out are zero.
  m.def(
      "unpatchify(Tensor patches, Tensor? tokens, int[] patch, int[] size, bool channels_last) "
      "-> Tensor");
  m.def(
      "patchify_out(Tensor volume, Tensor? tokens, int[] patch, float scale, float shift, "
      "bool channels_last, Tensor(a!) out) -> ()");
  m.def(
      "unpatchify_out(Tensor patches, Tensor? tokens, int[] patch, bool channels_last, "
      "Tensor(a!) out) -> ()");
  m.def(
      "patch_targets(Tensor volume, Tensor? tokens, int[] patch, float scale, float shift, "
      "bool channels_last, float eps, ScalarType dtype) "
      "-> (Tensor target, Tensor mean, Tensor variance)");
  m.def(
      "reconstruction_forward(Tensor prediction, Tensor volume, Tensor? tokens, int[] patch, "
      "float scale, float shift, bool channels_last, bool normalize, float eps) -> Tensor");
  m.def(
      "reconstruction_backward(Tensor grad, Tensor prediction, Tensor volume, Tensor? tokens, "
      "int[] patch, float scale, float shift, bool channels_last, bool normalize, float eps) "
      "-> Tensor");
}
