// What the entropy kernels of every instruction set are given.
#pragma once

#include <cstdint>

#include "pixels.hpp"

namespace em {

struct EntropyJob {
  std::int64_t K, S;
  PixelsIn logits;
  const bool* mask;  // (B, S) dense, or null
  double inv_temperature;
  PixelsOut probabilities;  // or null
};

struct EntropyGradJob {
  std::int64_t K, S;
  PixelsIn logits;
  const bool* mask;
  double inv_temperature;
  double grad_entropy;
  const void* grad_marginal;       // K in the compute type for each sample, or one K for all
  std::int64_t grad_marginal_sb;   // K, or 0
  PixelsIn grad_probabilities;     // or null
  PixelsOut grad;
};

}  // namespace em
