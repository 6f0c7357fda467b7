/* Products of two matrices by tiles, whose sums stay in registers. */

#include "vector.h"

/* Of a tile: vectors of columns, columns, and rows. */
enum { VECTORS = 2, COLUMNS = VECTORS * AT_ONCE, ROWS = AT_ONCE / 2 };

static int64_t rounded_up(int64_t count, int64_t to) { return (count + to - 1) / to * to; }

/* Writes rows, (count, dim), so that `at_once` of them lie beside each other: (.., dim, at_once). */
static inline void lay_together(const float *rows, int64_t count, int64_t dim, int64_t at_once,
                                float *together) {
    for (int64_t row = 0; row < count; row += at_once, rows += at_once * dim) {
        const int64_t some = count - row < at_once ? count - row : at_once;
        for (int64_t i = 0; i < dim; i++, together += at_once)
            for (int64_t r = 0; r < some; r++) together[r] = rows[r * dim + i];
    }
}

/* Adds the products of ROWS rows with COLUMNS columns, each laid together, to the sums. */
static inline __attribute__((always_inline)) void add_products(const float *rows,
                                                               const floats *columns, int64_t dim,
                                                               floats sum[ROWS][VECTORS]) {
    for (int64_t i = 0; i < dim; i++, rows += ROWS, columns += VECTORS)
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < VECTORS; v++) sum[r][v] = add_multiple(sum[r][v], rows[r], columns[v]);
}
