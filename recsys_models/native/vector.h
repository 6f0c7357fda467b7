/* Eight numbers at a time, as GCC and Clang write them for any processor. They may lie anywhere in
 * memory, and be read as single numbers as well. */

#include <stdint.h>

typedef float floats __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(32), aligned(4), may_alias));

enum { AT_ONCE = 8 };
