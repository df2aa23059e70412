// Which instruction set the CPU kernels use: the best one of this machine, or the one that the
// environment variable EM_KERNELS_ISA names. It is read at every call, so that a test can force
// each body in one process.
#pragma once

namespace em {

enum class Isa : int { baseline = 0, avx2 = 1, avx512 = 2 };

Isa isa_available();
Isa isa_in_use();

}  // namespace em

// Bodies wider than the baseline need per-function targets, which are written here for gcc.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define EM_WIDE_BODIES 1
#else
#define EM_WIDE_BODIES 0
#endif

// Calls a function template of the body that isa selects.
#if EM_WIDE_BODIES
#define EM_DISPATCH_ISA(isa, ...)                          \
  switch (isa) {                                           \
    case ::em::Isa::avx512:                                \
      ::em::avx512::__VA_ARGS__;                           \
      break;                                               \
    case ::em::Isa::avx2:                                  \
      ::em::avx2::__VA_ARGS__;                             \
      break;                                               \
    default:                                               \
      ::em::baseline::__VA_ARGS__;                         \
  }
#else
#define EM_DISPATCH_ISA(isa, ...) ::em::baseline::__VA_ARGS__;
#endif
