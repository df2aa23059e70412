// The element types of tensors in memory, and the type that each is computed in.
#pragma once

#include <cstdint>
#include <cstring>

namespace em {

struct Bf16 {
  std::uint16_t bits;
};
struct Fp16 {
  std::uint16_t bits;
};

template <class T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};
template <class T>
using compute_t = typename Compute<T>::type;

}  // namespace em
