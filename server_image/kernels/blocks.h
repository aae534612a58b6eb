// How weights of 32 values to a block are unpacked, and how columns are laid out to be multiplied with them. For x86-64 with AVX2.
//
// Q4_1 and Q5_1 have a scale and a minimum, and are multiplied with Q8_1; Q4_0, Q5_0 and Q8_0 have a scale alone, and are multiplied with Q8_0.
// The layouts are those of ggml's ggml-common.h.
#pragma once

#define GGML_COMMON_DECL_C
#include "ggml-common.h"

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace corral {

#if defined(__AVX512F__) && defined(__AVX512VNNI__) && defined(__AVX512VL__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#define CORRAL_AVX512
#endif

constexpr int VALUES = 32; // in each block
constexpr int LANES  = 16; // columns whose scales lie side by side; no tile is wider

// What differs between the types: the columns they are multiplied with, whether they have minimums, and what an unpacked byte is above its value.
template <class Block> struct Format;
template <> struct Format<block_q4_1> { using Column = block_q8_1; static constexpr bool MINIMUMS = true;  static constexpr int ABOVE = 0; };
template <> struct Format<block_q5_1> { using Column = block_q8_1; static constexpr bool MINIMUMS = true;  static constexpr int ABOVE = 0; };
template <> struct Format<block_q4_0> { using Column = block_q8_0; static constexpr bool MINIMUMS = false; static constexpr int ABOVE = 8; };
template <> struct Format<block_q5_0> { using Column = block_q8_0; static constexpr bool MINIMUMS = false; static constexpr int ABOVE = 16; };
#ifdef CORRAL_AVX512
template <> struct Format<block_q8_0> { using Column = block_q8_0; static constexpr bool MINIMUMS = false; static constexpr int ABOVE = 128; };
#else // pairs of such bytes would not fit into sixteen bits: its bytes stay signed
template <> struct Format<block_q8_0> { using Column = block_q8_0; static constexpr bool MINIMUMS = false; static constexpr int ABOVE = 0; };
#endif

// A few columns, block by block: the values of all of them, then their scales, then what their minimums are multiplied with or what to take off.
struct Strip {
    int8_t * values;  // [blocks][columns][VALUES]
    float * scales;   // [blocks][LANES]
    float * sums;     // [blocks][LANES], 0 behind the last column; for formats with minimums
    int32_t * taken;  // [blocks][columns][8]; for the others

    static size_t bytes(int64_t blocks, int columns) {
        return blocks * (columns * VALUES + 2 * LANES * sizeof(float) + columns * 8 * sizeof(int32_t));
    }

    Strip(char * at, int64_t blocks, int columns) {
        values = reinterpret_cast<int8_t *>(at);
        scales = reinterpret_cast<float *>(at + blocks * columns * VALUES);
        sums   = scales + blocks * LANES;
        taken  = reinterpret_cast<int32_t *>(sums + blocks * LANES);
    }
};

// The products of 32 pairs of bytes, x without sign, added up by fours.
inline __m256i fours(__m256i x, __m256i y) {
#ifdef CORRAL_AVX512
    return _mm256_dpbusd_epi32(_mm256_setzero_si256(), x, y);
#else
    return _mm256_madd_epi16(_mm256_set1_epi16(1), _mm256_maddubs_epi16(x, y));
#endif
}

template <class Block> void pack(const typename Format<Block>::Column * columns, int64_t stride, int count, int64_t blocks, const Strip & strip) {
    for (int c = 0; c < count; c++) {
        const auto * column = columns + c * stride;
        for (int64_t b = 0; b < blocks; b++) {
            const __m256i y = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(column[b].qs));
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(strip.values + (b * count + c) * VALUES), y);
            strip.scales[b * LANES + c] = _cvtsh_ss(column[b].d);
            if constexpr (Format<Block>::MINIMUMS) {
                strip.sums[b * LANES + c] = _cvtsh_ss(column[b].s);
            } else if constexpr (Format<Block>::ABOVE != 0) {
                const __m256i above = fours(_mm256_set1_epi8(static_cast<char>(Format<Block>::ABOVE)), y);
                _mm256_storeu_si256(reinterpret_cast<__m256i *>(strip.taken + (b * count + c) * 8), _mm256_sub_epi32(_mm256_setzero_si256(), above));
            }
        }
    }
    if constexpr (Format<Block>::MINIMUMS) {
        for (int64_t b = 0; b < blocks; b++) {
            std::fill(strip.sums + b * LANES + count, strip.sums + (b + 1) * LANES, 0.0f);
        }
    }
}

// The scale in the first place and the minimum, where there is one, in the second; as halves.
inline __m128i scale_and_minimum(const void * block) {
    return _mm_loadu_si32(block);
}

// 32 bits as 32 bytes of 0 or 16, the lowest bit first.
inline __m256i sixteens(const uint8_t * bits) {
    int32_t word;
    memcpy(&word, bits, sizeof word);
    const __m256i which = _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0);
    const __m256i bit   = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
    const __m256i bytes = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(word), which), bit);
    return _mm256_and_si256(_mm256_cmpeq_epi8(bytes, bit), _mm256_set1_epi8(16));
}

inline __m256i nibbles(const uint8_t * packed) {
    const __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i *>(packed));
    return _mm256_and_si256(_mm256_inserti128_si256(_mm256_castsi128_si256(both), _mm_srli_epi16(both, 4), 1), _mm256_set1_epi8(15));
}

inline __m256i unpack(const block_q4_0 & a) { return nibbles(a.qs); }
inline __m256i unpack(const block_q4_1 & a) { return nibbles(a.qs); }
inline __m256i unpack(const block_q5_0 & a) { return _mm256_or_si256(nibbles(a.qs), sixteens(a.qh)); }
inline __m256i unpack(const block_q5_1 & a) { return _mm256_or_si256(nibbles(a.qs), sixteens(a.qh)); }
inline __m256i unpack(const block_q8_0 & a) {
    return _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(a.qs)), _mm256_set1_epi8(static_cast<char>(Format<block_q8_0>::ABOVE)));
}

// Block b of one row and of one column: eight sums of four products each.
template <class Block> inline __m256 products(__m256i x, const Strip & y, int64_t at) {
    const __m256i values = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(y.values + at * VALUES));
    if constexpr (Format<Block>::MINIMUMS) {
        return _mm256_cvtepi32_ps(fours(x, values));
    } else if constexpr (Format<Block>::ABOVE != 0) {
        const __m256i taken = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(y.taken + at * 8));
#ifdef CORRAL_AVX512
        return _mm256_cvtepi32_ps(_mm256_dpbusd_epi32(taken, x, values));
#else
        return _mm256_cvtepi32_ps(_mm256_add_epi32(fours(x, values), taken));
#endif
    } else {
        return _mm256_cvtepi32_ps(fours(_mm256_sign_epi8(x, x), _mm256_sign_epi8(values, x)));
    }
}

// The sum of eight lanes in ggml's order.
inline float add_lanes(__m256 a) {
    __m128 sum = _mm_add_ps(_mm256_extractf128_ps(a, 1), _mm256_castps256_ps128(a));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

// Asks for what is wanted eight rows further on: several rows are read side by side, which the processor does not foresee, and the first cache is too
// small for it. `rows` of them are gone through at a time, block by block.
template <class Block> inline void ask_ahead(const Block * x, int64_t stride, int rows, int64_t b) {
    const char * later = reinterpret_cast<const char *>(x + 8 * stride + rows * b);
    for (int64_t at = 0; at < static_cast<int64_t>(rows * sizeof(Block)); at += 64) {
        _mm_prefetch(later + at, _MM_HINT_T1);
    }
}

// Four rows and one column: their scales are converted and multiplied together.
template <class Block> void four_rows(const Block * x, int64_t stride, const Strip & y, int64_t blocks, float * out) {
    __m256 sums[4], least = _mm256_setzero_ps();
    for (auto & sum : sums) {
        sum = _mm256_setzero_ps();
    }
    for (int64_t b = 0; b < blocks; b++) {
        ask_ahead(x, stride, 4, b);
        const __m128i low  = _mm_unpacklo_epi32(scale_and_minimum(x + b), scale_and_minimum(x + stride + b));
        const __m128i high = _mm_unpacklo_epi32(scale_and_minimum(x + 2 * stride + b), scale_and_minimum(x + 3 * stride + b));
        const __m256 own   = _mm256_cvtph_ps(_mm_unpacklo_epi64(low, high));
        if constexpr (Format<Block>::MINIMUMS) {
            least = _mm256_fmadd_ps(own, _mm256_set1_ps(y.sums[b * LANES]), least);
        }
        const __m256 scales = _mm256_mul_ps(own, _mm256_set1_ps(y.scales[b * LANES]));
        for (int r = 0; r < 4; r++) {
            const __m256 scale = _mm256_permutevar8x32_ps(scales, _mm256_set1_epi32(2 * r));
            sums[r] = _mm256_fmadd_ps(scale, products<Block>(unpack(x[r * stride + b]), y, b), sums[r]);
        }
    }
    float minimums[8];
    _mm256_storeu_ps(minimums, least);
    for (int r = 0; r < 4; r++) {
        out[r] = Format<Block>::MINIMUMS ? add_lanes(sums[r]) + minimums[2 * r + 1] : add_lanes(sums[r]);
    }
}

} // namespace corral
