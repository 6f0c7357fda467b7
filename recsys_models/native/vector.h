/* As many numbers at a time as a register holds, as GCC and Clang write them for any processor. They
 * may lie anywhere in memory, and be read as single numbers as well. */

#ifndef VECTOR_H
#define VECTOR_H

#include <stdint.h>

#ifdef __AVX512F__
enum { AT_ONCE = 16 };
#else
enum { AT_ONCE = 8 };
#endif

typedef float floats __attribute__((vector_size(4 * AT_ONCE), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * AT_ONCE), aligned(4), may_alias));

/* sum + one * other and sum + factor * other, each with one rounding where the processor can do that.
 * Compilers choose by themselves where they round twice, and so not in every place alike. */
#ifdef __FMA__
#include <immintrin.h>
static inline floats add_product(floats sum, floats one, floats other) {
#ifdef __AVX512F__
    return (floats)_mm512_fmadd_ps((__m512)one, (__m512)other, (__m512)sum);
#else
    return (floats)_mm256_fmadd_ps((__m256)one, (__m256)other, (__m256)sum);
#endif
}
static inline floats add_multiple(floats sum, float factor, floats other) {
#ifdef __AVX512F__
    return add_product(sum, (floats)_mm512_set1_ps(factor), other);
#else
    return add_product(sum, (floats)_mm256_set1_ps(factor), other);
#endif
}
#else
static inline floats add_product(floats sum, floats one, floats other) { return sum + one * other; }
static inline floats add_multiple(floats sum, float factor, floats other) {
    return sum + factor * other;
}
#endif

#endif
