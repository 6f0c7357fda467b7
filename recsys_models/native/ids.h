/* Ids that name rows of a table. */

#include <stdint.h>

static int within(const int64_t *ids, int64_t count, int64_t rows) {
    int64_t outside = 0;
    for (int64_t i = 0; i < count; i++) outside += ids[i] < 0 || ids[i] >= rows;
    return outside == 0;
}
