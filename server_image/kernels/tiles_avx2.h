// Tiles of rows and columns for processors with AVX2.
#pragma once

#include "blocks.h"

namespace corral {

constexpr int WIDEST = 4; // with two rows; sixteen registers hold no more

template <class Block, int ROWS, int COLUMNS>
void tile(const Block * x, int64_t stride, const Strip & y, int64_t blocks, float * out, int64_t out_stride) {
    constexpr bool MINIMUMS = Format<Block>::MINIMUMS;
    __m256 sums[ROWS][COLUMNS];
    __m128 least[ROWS];
    for (int r = 0; r < ROWS; r++) {
        for (auto & sum : sums[r]) {
            sum = _mm256_setzero_ps();
        }
        least[r] = _mm_setzero_ps();
    }
    for (int64_t b = 0; b < blocks; b++) {
        ask_ahead(x, stride, ROWS, b);
        __m256i values[ROWS];
        __m256 scales[ROWS];
        for (int r = 0; r < ROWS; r++) {
            const Block & block = x[r * stride + b];
            const __m128 own = _mm_cvtph_ps(scale_and_minimum(&block));
            values[r] = unpack(block);
            scales[r] = _mm256_broadcastss_ps(own);
            if constexpr (MINIMUMS) {
                least[r] = _mm_fmadd_ps(_mm_permute_ps(own, 0x55), _mm_loadu_ps(y.sums + b * LANES), least[r]);
            }
        }
        for (int c = 0; c < COLUMNS; c++) {
            const __m256 scale = _mm256_set1_ps(y.scales[b * LANES + c]);
            for (int r = 0; r < ROWS; r++) {
                sums[r][c] = _mm256_fmadd_ps(_mm256_mul_ps(scales[r], scale), products<Block>(values[r], y, b * COLUMNS + c), sums[r][c]);
            }
        }
    }
    for (int r = 0; r < ROWS; r++) {
        float minimums[4];
        _mm_storeu_ps(minimums, least[r]);
        for (int c = 0; c < COLUMNS; c++) {
            out[r + c * out_stride] = MINIMUMS ? add_lanes(sums[r][c]) + minimums[c] : add_lanes(sums[r][c]);
        }
    }
}

// `count` rows and COLUMNS columns; out has the rows of a column side by side.
template <class Block, int COLUMNS>
void rows(const Block * x, int64_t stride, int64_t count, const Strip & y, int64_t blocks, float * out, int64_t out_stride) {
    int64_t r = 0;
    if constexpr (COLUMNS == 1) {
        for (; r + 4 <= count; r += 4) {
            four_rows(x + r * stride, stride, y, blocks, out + r);
        }
    }
    for (; r + 2 <= count; r += 2) {
        tile<Block, 2, COLUMNS>(x + r * stride, stride, y, blocks, out + r, out_stride);
    }
    if (r < count) {
        tile<Block, 1, COLUMNS>(x + r * stride, stride, y, blocks, out + r, out_stride);
    }
}

} // namespace corral
