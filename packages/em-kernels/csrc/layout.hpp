// How operators on (B, K, spatial…) tensors see their memory, on every device.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "pixels.hpp"

namespace em {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Sample, class and pixel strides in elements; S pixels per sample.
struct Layout {
  std::int64_t B, K, S;
  std::int64_t sb, sk, sp;
};

// The layout of x, or nothing where its spatial dimensions do not lie at one stride.
inline std::optional<Layout> find_layout(const Tensor& x) {
  Layout at{x.size(0), x.size(1), 1, x.stride(0), x.stride(1), 1};
  if (x.numel() == 0) {  // whatever its strides, it has no copy that is more regular
    at.S = 0;
    return at;
  }
  for (std::int64_t d = x.dim() - 1; d >= 2; --d) {
    if (x.size(d) == 1) continue;
    if (at.S == 1) {
      at.sp = x.stride(d);
    } else if (x.stride(d) != at.sp * at.S) {
      return std::nullopt;
    }
    at.S *= x.size(d);
  }
  return at;
}

// x itself, or a dense copy where its layout is too irregular for the kernels.
inline Tensor regular(const Tensor& x) {
  return find_layout(x) ? x : torch::stable::contiguous(x);
}

// Joins the samples into one where the pixels of all lie at one stride (channels last, or one
// pixel per sample), so that the work is not cut at every sample; in all of the tensors, or none.
inline void join_samples(std::initializer_list<Layout*> tensors) {
  for (const Layout* at : tensors)
    if (at->S != 1 && at->sb != at->S * at->sp) return;
  for (Layout* at : tensors) {
    if (at->S == 1) at->sp = at->sb;
    at->S *= at->B;
    at->B = 1;
  }
}

inline PixelsIn pixels_in(const Tensor& x, const Layout& at) {
  return {x.const_data_ptr(), at.sb, at.sk, at.sp};
}

inline PixelsOut pixels_out(const Tensor& x, const Layout& at) {
  return {x.mutable_data_ptr(), at.sb, at.sk, at.sp};
}

inline const bool* mask_data(const std::optional<Tensor>& mask) {
  return mask ? static_cast<const bool*>(mask->const_data_ptr()) : nullptr;
}

inline Tensor new_tensor(const Tensor& like, std::initializer_list<std::int64_t> sizes,
                         ScalarType type) {
  return torch::stable::new_empty(like, sizes, type);
}

inline std::optional<Tensor> dense(const std::optional<Tensor>& x) {
  if (!x) return std::nullopt;
  return torch::stable::contiguous(*x);
}

// A tensor that a kernel writes: x itself where its layout serves, else a dense one whose values
// finish() copies into x.
class Written {
 public:
  explicit Written(const Tensor& x)
      : x_(x),
        direct_(find_layout(x).has_value()),
        to_(direct_ ? x : torch::stable::new_empty(x, x.sizes())) {}
  const Tensor& tensor() const { return to_; }
  void finish() {
    if (!direct_) torch::stable::copy_(x_, to_);
  }

 private:
  Tensor x_;
  bool direct_;
  Tensor to_;
};

}  // namespace em
