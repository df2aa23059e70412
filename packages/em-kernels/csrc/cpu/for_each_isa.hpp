// Includes the file EM_BODY once per instruction set, each time in a namespace of its own
// (em::baseline, em::avx2, em::avx512) where EM_LANES floats make one vector.
//
// A body holds templates only of its own namespace and no lambdas; standard headers must be
// included before, so that none of their code is compiled for the wider target.
#include "isa.hpp"
#include "storage.hpp"

#if EM_WIDE_BODIES
#include <immintrin.h>
#endif

#define EM_ISA baseline
#define EM_LANES 4
#include "vectors.hpp"
#include "tiles.hpp"
#include EM_BODY
#undef EM_ISA
#undef EM_LANES

#if EM_WIDE_BODIES
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define EM_ISA avx2
#define EM_LANES 8
#include "vectors.hpp"
#include "tiles.hpp"
#include EM_BODY
#undef EM_ISA
#undef EM_LANES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#define EM_ISA avx512
#define EM_LANES 16
#include "vectors.hpp"
#include "tiles.hpp"
#include EM_BODY
#undef EM_ISA
#undef EM_LANES
#pragma GCC pop_options
#endif

#undef EM_BODY
