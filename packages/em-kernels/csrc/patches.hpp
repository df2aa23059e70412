// How a volume is cut into patches, on every device.
#pragma once

#include <cstdint>

namespace em {

// A volume (B, C, Z, Y, X) in patches of (pz, py, px) voxels. A token is a patch, numbered with x
// fastest; its D = C·pz·py·px values lie channel first, (C, pz, py, px), or channel last.
struct Patches {
  std::int64_t B, C, Z, Y, X;
  std::int64_t pz, py, px;
  std::int64_t sb, sc, sz, sy;  // strides in elements; x is dense
  bool channels_last;
  const std::int64_t* tokens;  // (B, V) which patches, or null for all of them
  std::int64_t V;

#ifdef __CUDACC__
#define EM_ANYWHERE __host__ __device__
#else
#define EM_ANYWHERE
#endif
  EM_ANYWHERE std::int64_t across() const { return X / px; }
  EM_ANYWHERE std::int64_t all() const { return (Z / pz) * (Y / py) * across(); }
  EM_ANYWHERE std::int64_t values() const { return C * pz * py * px; }

  // The element of the volume at the first voxel of a patch.
  EM_ANYWHERE std::int64_t corner(std::int64_t b, std::int64_t token) const {
    const std::int64_t x = token % across(), row = token / across();
    const std::int64_t y = row % (Y / py), z = row / (Y / py);
    return b * sb + z * pz * sz + y * py * sy + x * px;
  }
  // The element of the volume, from the corner, that is value d of a token.
  EM_ANYWHERE std::int64_t offset(std::int64_t d) const {
    const std::int64_t voxels = pz * py * px;
    const std::int64_t c = channels_last ? d % C : d / voxels;
    const std::int64_t i = channels_last ? d / C : d % voxels;
    return c * sc + i / (py * px) * sz + i / px % py * sy + i % px;
  }
#undef EM_ANYWHERE
};

// raw · scale + shift.
struct Affine {
  double scale, shift;
};

}  // namespace em
