// Finds the instruction set of this machine and reads EM_KERNELS_ISA.
#include "isa.hpp"

#include <cstdlib>
#include <string>

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

namespace em {

Isa isa_available() {
#if EM_WIDE_BODIES
  static const Isa found = [] {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      return Isa::avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
    return Isa::baseline;
  }();
  return found;
#else
  return Isa::baseline;
#endif
}

Isa isa_in_use() {
  const char* forced = std::getenv("EM_KERNELS_ISA");
  if (forced == nullptr || *forced == '\0') return isa_available();
  const std::string name(forced);
  const Isa wanted = name == "avx512" ? Isa::avx512 : name == "avx2" ? Isa::avx2 : Isa::baseline;
  STD_TORCH_CHECK(
      wanted != Isa::baseline || name == "baseline",
      "EM_KERNELS_ISA must be avx512, avx2 or baseline, got '", name, "'; correct or unset it");
  STD_TORCH_CHECK(
      wanted <= isa_available(),
      "EM_KERNELS_ISA=", name, " asks for instructions that this machine lacks; unset it");
  return wanted;
}

int64_t isa_available_number() { return static_cast<int64_t>(isa_available()); }
int64_t isa_in_use_number() { return static_cast<int64_t>(isa_in_use()); }

}  // namespace em

STABLE_TORCH_LIBRARY_IMPL(em_kernels, CompositeExplicitAutograd, m) {
  m.impl("isa_available", TORCH_BOX(&em::isa_available_number));
  m.impl("isa_in_use", TORCH_BOX(&em::isa_in_use_number));
}
