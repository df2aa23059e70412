// What the CPU operators share: a dispatch over element types, chunks over threads, and the pages
// of fresh tensors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include <torch/headeronly/util/Exception.h>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "isa.hpp"
#include "layout.hpp"
#include "storage.hpp"

#if EM_WIDE_BODIES
#include <xmmintrin.h>
#endif

namespace em {

// The type that sums of x are returned in.
inline ScalarType sum_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Calls f with a value of the storage type of x.
template <class F>
void dispatch_storage(const Tensor& x, F&& f) {
  switch (x.scalar_type()) {
    case ScalarType::Float: f(float{}); break;
    case ScalarType::Double: f(double{}); break;
    case ScalarType::BFloat16: f(Bf16{}); break;
    case ScalarType::Half: f(Fp16{}); break;
    default: STD_TORCH_CHECK(false, "em_kernels: this element type has no kernel");
  }
}

// Pixels in one chunk: fixed, so that sums do not depend on the number of threads.
constexpr std::int64_t kChunk = 4096;

// The largest tile row and vector of any body, in elements of one class.
constexpr std::int64_t kTileRow = 64;
constexpr std::int64_t kVectorRow = 16;

inline std::int64_t count_chunks(std::int64_t pixels) { return (pixels + kChunk - 1) / kChunk; }

// Makes what a thread has written past the cache visible to others.
inline void fence_streams() {
#if EM_WIDE_BODIES
  _mm_sfence();
#endif
}

// Calls f(first pixel, last pixel, scratch) for runs of chunks, over the threads of torch.
template <class C, class F>
void for_each_run(std::int64_t pixels, std::int64_t scratch_elements, const F& f) {
  torch::stable::parallel_for(
      0, count_chunks(pixels), 1, [&](std::int64_t first, std::int64_t last) {
        std::vector<C> scratch(scratch_elements);
        f(first * kChunk, std::min(last * kChunk, pixels), scratch.data());
        fence_streams();
      });
}

// Returns `columns` sums for each group of pixels. f(begin, end, sums, scratch) adds those of one
// chunk to zeros; chunks are then added in order, whatever thread made them.
template <class C, class F>
std::vector<double> sum_chunks(std::int64_t groups, std::int64_t pixels, std::int64_t columns,
                               std::int64_t scratch_elements, const F& f) {
  const std::int64_t chunks = count_chunks(pixels);
  std::vector<double> partials(groups * chunks * columns, 0.0);
  torch::stable::parallel_for(
      0, groups * chunks, 1, [&](std::int64_t first, std::int64_t last) {
        std::vector<C> scratch(scratch_elements);
        for (std::int64_t c = first; c < last; ++c) {
          const std::int64_t begin = c % chunks * kChunk, start = c / chunks * pixels;
          f(start + begin, start + std::min(begin + kChunk, pixels), &partials[c * columns],
            scratch.data());
        }
        fence_streams();
      });
  std::vector<double> sums(groups * columns, 0.0);
  for (std::int64_t c = 0; c < groups * chunks; ++c)
    for (std::int64_t i = 0; i < columns; ++i)
      sums[c / chunks * columns + i] += partials[c * columns + i];
  return sums;
}

// Stores n numbers in a float32 or float64 tensor.
inline void put_numbers(const Tensor& to, std::int64_t offset, const double* from,
                        std::int64_t n) {
  if (to.scalar_type() == ScalarType::Double) {
    std::copy_n(from, n, static_cast<double*>(to.mutable_data_ptr()) + offset);
  } else {
    std::copy_n(from, n, static_cast<float*>(to.mutable_data_ptr()) + offset);
  }
}

// Reads a float32 or float64 scalar.
inline double get_number(const Tensor& from) {
  return from.scalar_type() == ScalarType::Double
             ? *static_cast<const double*>(from.const_data_ptr())
             : *static_cast<const float*>(from.const_data_ptr());
}

// A tensor larger than this is written past the cache; a smaller one is still there when it is
// read next.
inline bool goes_past_cache(const Tensor& x) {
  constexpr std::int64_t bytes = 4 << 20;
  return x.numel() * static_cast<std::int64_t>(x.element_size()) > bytes;
}

// Gets the pages of a large fresh tensor, huge ones and all at once: most of the time to write one
// is page faults. Each thread gets the part that it is likely to write.
inline void claim_pages(const Tensor& x) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t huge = 2 << 20;
  const auto begin = reinterpret_cast<std::uintptr_t>(x.data_ptr());
  const std::uintptr_t end = begin + x.numel() * x.element_size();
  const std::uintptr_t first = (begin + huge - 1) / huge * huge, last = end / huge * huge;
  if (first >= last) return;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#if defined(MADV_POPULATE_WRITE)
  const std::uintptr_t page = sysconf(_SC_PAGESIZE);
  const std::uintptr_t inner = (begin + page - 1) / page * page, outer = end / page * page;
  const std::int64_t parts = (last - first) / huge + 2;  // what lies before, huge pages, the rest
  torch::stable::parallel_for(0, parts, 8, [&](std::int64_t from, std::int64_t to) {
    const std::uintptr_t a = from == 0 ? inner : first + (from - 1) * huge;
    const std::uintptr_t b = to == parts ? outer : first + (to - 1) * huge;
    madvise(reinterpret_cast<void*>(a), b - a, MADV_POPULATE_WRITE);
  });
#endif
#endif
}

}  // namespace em
