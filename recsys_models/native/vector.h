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

#endif
