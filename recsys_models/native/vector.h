/* Eight numbers at a time, as GCC and Clang write them for any processor. */

#include <stdint.h>

typedef float floats __attribute__((vector_size(32), aligned(4)));
typedef int32_t ints __attribute__((vector_size(32), aligned(4)));

enum { AT_ONCE = 8 };
