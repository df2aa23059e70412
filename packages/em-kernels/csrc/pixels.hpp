// A tensor of pixels as a kernel sees it, on every device.
#pragma once

#include <cstdint>

namespace em {

// (B, K, S) by address and strides in elements.
struct PixelsIn {
  const void* data = nullptr;
  std::int64_t sb = 0, sk = 0, sp = 0;
};
struct PixelsOut {
  void* data = nullptr;
  std::int64_t sb = 0, sk = 0, sp = 0;
  bool past_cache = false;  // CPU only
};

}  // namespace em
