// Crops out of a resident block into one batch, for numpy arrays: threads, without the GIL and
// without torch. A pybind11 module, so built once per Python version.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace py = pybind11;

namespace {

struct Crop {
  const char* from;
  char* to;
};

struct Shape {
  std::int64_t C, Z, Y;
  std::int64_t row_bytes;
  std::int64_t sc, sz, sy;  // of the block, in bytes
};

// Rows of kRow bytes, known at compile time so that each is a few moves instead of a call; 0 for
// any other length.
template <int kRow>
void copy_rows(const Shape& at, const Crop& crop) {
  const std::int64_t bytes = kRow > 0 ? kRow : at.row_bytes;
  char* to = crop.to;
  for (std::int64_t c = 0; c < at.C; ++c) {
    for (std::int64_t z = 0; z < at.Z; ++z) {
      const char* from = crop.from + c * at.sc + z * at.sz;
      for (std::int64_t y = 0; y < at.Y; ++y, from += at.sy, to += bytes) {
        // Some rows ahead: they lie too far apart for the processor to look ahead.
        __builtin_prefetch(from + 8 * at.sy);
        __builtin_prefetch(from + 8 * at.sy + bytes - 1);
        std::memcpy(to, from, bytes);
      }
    }
  }
}

void copy_crop(const Shape& at, const Crop& crop) {
  switch (at.row_bytes) {
    case 32: return copy_rows<32>(at, crop);
    case 64: return copy_rows<64>(at, crop);
    case 128: return copy_rows<128>(at, crop);
    case 256: return copy_rows<256>(at, crop);
    default: return copy_rows<0>(at, crop);
  }
}

// block (C, Z, Y, X) with dense rows, origins (N, 3) int64, out (N, C, cz, cy, cx) dense. The face
// in Python has checked types and shapes; the bounds are checked here, where it costs nothing.
void gather(const py::array& block, const py::array_t<std::int64_t, py::array::c_style>& origins,
            py::array out, int threads) {
  const std::int64_t item = block.itemsize(), count = out.shape(0);
  const Shape at{out.shape(1),      out.shape(2),      out.shape(3),     out.shape(4) * item,
                 block.strides(0), block.strides(1), block.strides(2)};
  const std::int64_t crop_bytes = at.C * at.Z * at.Y * at.row_bytes;
  const auto where = origins.unchecked<2>();
  const char* from = static_cast<const char*>(block.data());
  char* to = static_cast<char*>(out.mutable_data());
  std::vector<Crop> crops(count);
  for (std::int64_t i = 0; i < count; ++i) {
    for (int axis = 0; axis < 3; ++axis) {
      const std::int64_t origin = where(i, axis), size = block.shape(1 + axis);
      const std::int64_t length = out.shape(2 + axis);
      if (origin < 0 || origin + length > size)
        throw py::index_error("origins[" + std::to_string(i) + "] = " + std::to_string(origin) +
                              " on " + "zyx"[axis] + ": a crop of " + std::to_string(length) +
                              " must lie in [0, " + std::to_string(size) + ")");
    }
    crops[i] = {from + where(i, 0) * at.sz + where(i, 1) * at.sy + where(i, 2) * item,
                to + i * crop_bytes};
  }

  py::gil_scoped_release released;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t page = 2 << 20;  // most of the time to fill a fresh batch is page faults
  const std::uintptr_t first = (reinterpret_cast<std::uintptr_t>(to) + page - 1) / page * page;
  const std::uintptr_t last =
      (reinterpret_cast<std::uintptr_t>(to) + count * crop_bytes) / page * page;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  std::atomic<std::int64_t> next{0};
  const auto work = [&] {
    for (std::int64_t i; (i = next.fetch_add(1)) < count;) copy_crop(at, crops[i]);
  };
  std::vector<std::thread> helpers;
  for (int i = 1; i < std::min<std::int64_t>(threads, count); ++i) helpers.emplace_back(work);
  work();
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace

PYBIND11_MODULE(_crops, module) {
  module.doc() = "Copies crops out of a block; em_kernels.crops is its face.";
  module.def("gather", &gather);
}
