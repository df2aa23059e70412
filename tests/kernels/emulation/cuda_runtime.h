// Runs CUDA kernels on the CPU: one fibre per thread of a block, one block after the other. Enough
// for kernels that use thread and block numbers, __syncthreads, __shared__ and warp shuffles.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#define __CUDACC__ 1
#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emulation {
inline std::vector<ucontext_t> fibres;
inline std::vector<char> finished;
inline std::vector<float> exchanged;
inline unsigned current;
inline ucontext_t scheduler;

// Lets every other thread of the block come as far as this.
inline void wait_for_block() {
  const unsigned self = current;
  swapcontext(&fibres[self], &scheduler);
}
}  // namespace emulation

inline dim3 threadIdx, blockIdx, gridDim;

inline void __syncthreads() { emulation::wait_for_block(); }

inline float __shfl_xor_sync(unsigned, float value, int step) {
  const unsigned self = emulation::current;
  emulation::exchanged[self] = value;
  emulation::wait_for_block();
  const float other = emulation::exchanged[self ^ step];
  emulation::wait_for_block();
  return other;
}

// Calls kernel(arguments…) as <<<grid, threads>>> would.
template <class Kernel>
void launch(dim3 grid, unsigned threads, Kernel kernel) {
  using namespace emulation;
  static Kernel* body;
  constexpr std::size_t stack = 256 << 10;
  const std::unique_ptr<char[]> stacks(new char[threads * stack]);
  body = &kernel;
  gridDim = grid;
  exchanged.assign(threads, 0);
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      fibres.assign(threads, {});
      finished.assign(threads, 0);
      for (unsigned t = 0; t < threads; ++t) {
        getcontext(&fibres[t]);
        fibres[t].uc_stack = {&stacks[t * stack], 0, stack};
        fibres[t].uc_link = &scheduler;
        makecontext(
            &fibres[t],
            +[] {
              (*body)();
              finished[current] = 1;
            },
            0);
      }
      for (bool left = true; left;) {
        left = false;
        for (unsigned t = 0; t < threads; ++t) {
          if (finished[t]) continue;
          current = t;
          threadIdx = dim3(t);
          blockIdx = dim3(x, y);
          swapcontext(&scheduler, &fibres[t]);
          left = left || !finished[t];
        }
      }
    }
  }
}
