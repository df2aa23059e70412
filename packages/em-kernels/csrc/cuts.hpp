// Reads tensors into the description of patches, on every device.
#pragma once

#include <optional>
#include <vector>

#include "layout.hpp"
#include "patches.hpp"

namespace em {

// A volume whose rows along x are dense.
inline Tensor dense_rows(const Tensor& volume) {
  return volume.stride(4) == 1 || volume.size(4) == 1 ? volume : torch::stable::contiguous(volume);
}

inline Patches describe(const Tensor& volume, const std::optional<Tensor>& tokens,
                        const std::vector<std::int64_t>& patch, bool channels_last) {
  Patches at{};
  at.B = volume.size(0), at.C = volume.size(1);
  at.Z = volume.size(2), at.Y = volume.size(3), at.X = volume.size(4);
  at.pz = patch[0], at.py = patch[1], at.px = patch[2];
  at.sb = volume.stride(0), at.sc = volume.stride(1);
  at.sz = volume.stride(2), at.sy = volume.stride(3);
  at.channels_last = channels_last;
  at.tokens = tokens ? static_cast<const std::int64_t*>(tokens->const_data_ptr()) : nullptr;
  at.V = tokens ? tokens->size(1) : at.all();
  return at;
}

}  // namespace em
