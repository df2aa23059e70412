// What the divergence kernels of every instruction set are given.
#pragma once

#include <cstdint>

#include "pixels.hpp"

namespace em {

struct DivergenceJob {
  std::int64_t K, S;
  PixelsIn prediction, target;
  const bool* mask;  // (B, S) dense, or null
  double inv_temperature, inv_target_temperature;
};

// Gradients of the sums. Marginals: K in the compute type for each sample, or one K for all.
struct DivergenceGradJob {
  DivergenceJob in;
  double cross_entropy, entropy, target_entropy;
  const void* marginal;
  const void* target_marginal;
  std::int64_t marginal_sb;  // K, or 0
  PixelsOut prediction, target;  // either may be null
};

}  // namespace em
