/* Ids that name rows of a table. */

#include <stdint.h>

/* Pairs of a row and an item. */
typedef struct {
    const int64_t *row, *item;
    int64_t count;
} entries;

static int within(const int64_t *ids, int64_t count, int64_t rows) {
    int64_t outside = 0;
    for (int64_t i = 0; i < count; i++) outside += ids[i] < 0 || ids[i] >= rows;
    return outside == 0;
}

enum { AHEAD = 16, LINE = 16 }; /* rows; numbers that come from memory at a time */

/* Begins to fetch the row that is due AHEAD places later in a list, if there is one.
 *
 * A processor sees the next few rows of a list coming, which is too few where the table lies beyond
 * its caches. Always inline: GCC takes a call of it for one without an effect, and drops it.
 */
__attribute__((always_inline)) static inline void fetch_ahead(const float *table, int64_t dim,
                                                              const int64_t *ids, int64_t place,
                                                              int64_t count) {
    if (place + AHEAD >= count) return;
    const float *row = table + ids[place + AHEAD] * dim;
    for (int64_t i = 0; i < dim; i += LINE) __builtin_prefetch(row + i);
}
