// Tiles of rows and columns for processors with AVX-512: two rows share each register, one in either half.
#pragma once

#include "blocks.h"

namespace corral {

constexpr int WIDEST = 16;

inline __m512i side_by_side(__m256i a, __m256i b) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
}

inline __m512i nibbles(const uint8_t * first, const uint8_t * second) {
    const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i *>(first)), b = _mm_loadu_si128(reinterpret_cast<const __m128i *>(second));
    const __m512i both  = _mm512_castsi256_si512(_mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1));
    const __m512i twice = _mm512_permutexvar_epi64(_mm512_set_epi64(3, 2, 3, 2, 1, 0, 1, 0), both);
    return _mm512_and_si512(_mm512_srlv_epi64(twice, _mm512_set_epi64(4, 4, 0, 0, 4, 4, 0, 0)), _mm512_set1_epi8(15));
}

inline __m512i unpack(const block_q4_0 & a, const block_q4_0 & b) { return nibbles(a.qs, b.qs); }
inline __m512i unpack(const block_q4_1 & a, const block_q4_1 & b) { return nibbles(a.qs, b.qs); }
inline __m512i unpack(const block_q5_0 & a, const block_q5_0 & b) { return _mm512_or_si512(nibbles(a.qs, b.qs), side_by_side(sixteens(a.qh), sixteens(b.qh))); }
inline __m512i unpack(const block_q5_1 & a, const block_q5_1 & b) { return _mm512_or_si512(nibbles(a.qs, b.qs), side_by_side(sixteens(a.qh), sixteens(b.qh))); }
inline __m512i unpack(const block_q8_0 & a, const block_q8_0 & b) { return side_by_side(unpack(a), unpack(b)); }

// Adds up the eight lanes of each half of eight registers in ggml's order: out[2 * i + half] of register i.
inline void add_lanes(const __m512 * a, float * out) {
    __m512 two[4];
    for (int i = 0; i < 4; i++) {
        two[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0xdd), _mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0x88));
    }
    __m512 four[2];
    for (int i = 0; i < 2; i++) {
        const __m512d u = _mm512_castps_pd(two[2 * i]), v = _mm512_castps_pd(two[2 * i + 1]);
        four[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(u, v)), _mm512_castpd_ps(_mm512_unpackhi_pd(u, v)));
    }
    const __m512 sums = _mm512_add_ps(_mm512_shuffle_ps(four[0], four[1], 0x88), _mm512_shuffle_ps(four[0], four[1], 0xdd));
    // A quarter q of it has the registers q / 2, q / 2 + 2, q / 2 + 4 and q / 2 + 6, of the half q % 2.
    const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    _mm512_storeu_ps(out, _mm512_permutexvar_ps(order, sums));
}

// PAIRS pairs of rows and COLUMNS columns.
template <class Block, int PAIRS, int COLUMNS>
void tile(const Block * x, int64_t stride, const Strip & y, int64_t blocks, float * out, int64_t out_stride) {
    constexpr bool MINIMUMS = Format<Block>::MINIMUMS;
    __m512 sums[PAIRS][COLUMNS], least[PAIRS][2];
    for (int p = 0; p < PAIRS; p++) {
        for (auto & sum : sums[p]) {
            sum = _mm512_setzero_ps();
        }
        least[p][0] = least[p][1] = _mm512_setzero_ps();
    }
    for (int64_t b = 0; b < blocks; b++) {
        ask_ahead(x, stride, 2 * PAIRS, b);
        __m512i values[PAIRS];
        __m512 scales[PAIRS];
        for (int p = 0; p < PAIRS; p++) {
            const Block & first = x[2 * p * stride + b], & second = x[(2 * p + 1) * stride + b];
            const __m512 own = _mm512_castps128_ps512(_mm_cvtph_ps(_mm_unpacklo_epi32(scale_and_minimum(&first), scale_and_minimum(&second))));
            values[p] = unpack(first, second);
            scales[p] = _mm512_permutexvar_ps(_mm512_set_epi32(2, 2, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0), own);
            if constexpr (MINIMUMS) {
                const __m512 column_sums = _mm512_loadu_ps(y.sums + b * LANES);
                least[p][0] = _mm512_fmadd_ps(_mm512_permutexvar_ps(_mm512_set1_epi32(1), own), column_sums, least[p][0]);
                least[p][1] = _mm512_fmadd_ps(_mm512_permutexvar_ps(_mm512_set1_epi32(3), own), column_sums, least[p][1]);
            }
        }
        for (int c = 0; c < COLUMNS; c++) {
            const int64_t at = b * COLUMNS + c;
            const __m512i column = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(y.values + at * VALUES)));
            const __m512 scale = _mm512_set1_ps(y.scales[b * LANES + c]);
            __m512i taken = _mm512_setzero_si512();
            if constexpr (!MINIMUMS) {
                taken = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(y.taken + at * 8)));
            }
            for (int p = 0; p < PAIRS; p++) {
                const __m512 xy = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(taken, values[p], column));
                sums[p][c] = _mm512_fmadd_ps(_mm512_mul_ps(scales[p], scale), xy, sums[p][c]);
            }
        }
    }
    for (int p = 0; p < PAIRS; p++) {
        float minimums[2][LANES];
        _mm512_storeu_ps(minimums[0], least[p][0]);
        _mm512_storeu_ps(minimums[1], least[p][1]);
        for (int from = 0; from < COLUMNS; from += 8) {
            __m512 eight[8];
            for (int i = 0; i < 8; i++) {
                eight[i] = from + i < COLUMNS ? sums[p][std::min(from + i, COLUMNS - 1)] : _mm512_setzero_ps();
            }
            float added[16];
            add_lanes(eight, added);
            for (int i = 0; i < 8 && from + i < COLUMNS; i++) {
                for (int half = 0; half < 2; half++) {
                    out[(from + i) * out_stride + 2 * p + half] = MINIMUMS ? added[2 * i + half] + minimums[half][from + i] : added[2 * i + half];
                }
            }
        }
    }
}

// `count` rows and COLUMNS columns; out has the rows of a column side by side.
template <class Block, int COLUMNS>
void rows(const Block * x, int64_t stride, int64_t count, const Strip & y, int64_t blocks, float * out, int64_t out_stride) {
    constexpr int PAIRS = COLUMNS <= 8 ? 2 : 1; // 32 registers hold no more
    int64_t r = 0;
    for (; r + 2 * PAIRS <= count; r += 2 * PAIRS) {
        if constexpr (COLUMNS == 1) {
            four_rows(x + r * stride, stride, y, blocks, out + r);
        } else {
            tile<Block, PAIRS, COLUMNS>(x + r * stride, stride, y, blocks, out + r, out_stride);
        }
    }
    for (; r + 2 <= count; r += 2) {
        tile<Block, 1, COLUMNS>(x + r * stride, stride, y, blocks, out + r, out_stride);
    }
    if (r < count) { // the last of an odd number, in both halves
        float both[COLUMNS * 2];
        tile<Block, 1, COLUMNS>(x + r * stride, 0, y, blocks, both, 2);
        for (int c = 0; c < COLUMNS; c++) {
            out[r + c * out_stride] = both[2 * c];
        }
    }
}

} // namespace corral
