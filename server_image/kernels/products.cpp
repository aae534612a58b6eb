// Products of quantized weights with a few columns at once, for x86-64: what a server does that answers several requests. Owns nothing of the model;
// must never give another bit than ggml's own code does (tests/server/test_kernels.py compares them).
//
// ggml multiplies most types by one dot product of a row and a column after another: each unpacks the row's values and converts its scales again. Here
// a row is unpacked once for up to sixteen columns, and with AVX-512 two rows share each register. Sums are made in ggml's order: eight lanes over the
// blocks of 32, the minimums apart.
//
// The linker puts this before llamafile_sgemm (llama-cpp.cmake), which ggml asks for every product; what is not ours goes on to it.

#include "ggml-cpu-impl.h"

#include <array>
#include <cstdlib>
#include <memory>
#include <utility>

#pragma GCC diagnostic ignored "-Wpedantic" // ggml's own anonymous structs
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "blocks.h"
#ifdef CORRAL_AVX512
#pragma GCC diagnostic ignored "-Wuninitialized" // GCC's own headers, on what they leave undefined by intent
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include "tiles_avx512.h"
#else
#include "tiles_avx2.h"
#endif
#define CORRAL_TILES
#endif

#define SGEMM_ARGUMENTS                                                                                                                                    \
    const ggml_compute_params * params, int64_t m, int64_t n, int64_t k, const void * a, int64_t lda, const void * b, int64_t ldb, void * c, int64_t ldc, \
        int a_type, int b_type, int c_type

extern "C" bool __real_llamafile_sgemm(SGEMM_ARGUMENTS);
extern "C" bool __wrap_llamafile_sgemm(SGEMM_ARGUMENTS);

#ifdef CORRAL_TILES

namespace corral {

constexpr int64_t GROUP = 64; // columns that are packed at a time: 2 MB for rows of 14,336 values

struct Product {
    int64_t rows, columns, blocks; // of 32 values in each row and column
    int64_t row_stride, column_stride, out_stride;
    const void * weights, * values;
    float * out;
};

template <class Block> using Kernel = void (*)(const Block *, int64_t, int64_t, const Strip &, int64_t, float *, int64_t);

template <class Block, size_t... I> constexpr std::array<Kernel<Block>, sizeof...(I)> kernels(std::index_sequence<I...>) {
    return {{rows<Block, I + 1>...}};
}

// Each thread packs the columns for itself: that costs it less than waiting for another.
static char * scratch(size_t bytes) {
    struct Freed {
        void operator()(char * memory) const { free(memory); }
    };
    static thread_local std::unique_ptr<char, Freed> memory;
    static thread_local size_t size = 0;
    if (size < bytes) {
        size = (bytes + 4095) / 4096 * 4096;
        memory.reset(static_cast<char *>(aligned_alloc(64, size)));
        GGML_ASSERT(memory);
    }
    return memory.get();
}

// One thread's part of the product.
template <class Block> bool multiply(const ggml_compute_params * params, const Product & of) {
    static constexpr auto KERNELS = kernels<Block>(std::make_index_sequence<WIDEST>());
    const int64_t width = std::min<int64_t>(of.columns, GROUP), strips = (width + WIDEST - 1) / WIDEST, strip_width = (width + strips - 1) / strips;
    const size_t strip_bytes = Strip::bytes(of.blocks, strip_width);
    char * packed = scratch(strip_bytes * strips);

    const int64_t groups = (of.columns + GROUP - 1) / GROUP;
    const int64_t height = std::clamp<int64_t>(of.rows / (params->nth * 8) / 4 * 4, 16, 64);
    const int64_t heights = (of.rows + height - 1) / height;
    // ggml has set its count of parts to the number of threads, for the first of an operation's products; those that follow are shared out beforehand.
    const bool counted = of.values == params->wdata;
    int64_t ready = -1;
    for (int64_t part = params->ith; part < groups * heights; part = counted ? ggml_threadpool_chunk_add(params->threadpool, 1) : part + params->nth) {
        const int64_t group = part / heights, row = part % heights * height, end = std::min(of.columns, (group + 1) * GROUP);
        const Block * x = static_cast<const Block *>(of.weights) + row * of.row_stride;
        for (int64_t column = group * GROUP, i = 0; column < end; column += strip_width, i++) {
            const int count = static_cast<int>(std::min(strip_width, end - column));
            const Strip strip(packed + i * strip_bytes, of.blocks, count);
            if (group != ready) {
                const auto * y = static_cast<const typename Format<Block>::Column *>(of.values) + column * of.column_stride;
                pack<Block>(y, of.column_stride, count, of.blocks, strip);
            }
            float * out = of.out + column * of.out_stride + row;
            KERNELS[count - 1](x, of.row_stride, std::min(height, of.rows - row), strip, of.blocks, out, of.out_stride);
        }
        ready = group;
    }
    return true;
}

} // namespace corral

extern "C" bool __wrap_llamafile_sgemm(SGEMM_ARGUMENTS) {
    if (c_type == GGML_TYPE_F32 && !params->use_ref && m && n && k) {
        const corral::Product product{m, n, k, lda, ldb, ldc, a, b, static_cast<float *>(c)};
        switch (b_type == GGML_TYPE_Q8_1 || b_type == GGML_TYPE_Q8_0 ? a_type : GGML_TYPE_COUNT) {
            case GGML_TYPE_Q4_0: return corral::multiply<block_q4_0>(params, product);
            case GGML_TYPE_Q4_1: return corral::multiply<block_q4_1>(params, product);
            case GGML_TYPE_Q5_0: return corral::multiply<block_q5_0>(params, product);
            case GGML_TYPE_Q5_1: return corral::multiply<block_q5_1>(params, product);
            case GGML_TYPE_Q8_0: return corral::multiply<block_q8_0>(params, product);
            default: break;
        }
    }
    return __real_llamafile_sgemm(params, m, n, k, a, lda, b, ldb, c, ldc, a_type, b_type, c_type);
}

#else

extern "C" bool __wrap_llamafile_sgemm(SGEMM_ARGUMENTS) {
    return __real_llamafile_sgemm(params, m, n, k, a, lda, b, ldb, c, ldc, a_type, b_type, c_type);
}

#endif
