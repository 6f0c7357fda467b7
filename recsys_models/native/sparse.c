/* A sparse matrix times a dense one. See sparse.py, which calls this. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "vector.h"

enum { VECTORS = 4, WIDTH = VECTORS * AT_ONCE }; /* columns of the dense matrix that are done at a time */

/* Copies some columns, so that they lie close together and zeros follow where there are no more. */
static void pack(const float *dense, int64_t rows, int64_t columns, int64_t from, int64_t width,
                 floats *packed) {
    for (int64_t row = 0; row < rows; row++) {
        floats *to = packed + row * VECTORS;
        if (width < WIDTH) memset(to, 0, sizeof(float) * WIDTH);
        memcpy(to, dense + row * columns + from, sizeof(float) * width);
    }
}

/* Writes the product of rows given by offsets into `ids` and `values` with a dense matrix.
 *
 * offsets: (rows + 1,); dense: (dense_rows, columns); product: (rows, columns).
 *
 * Returns whether there was memory to do it in.
 */
int sparse_product(const int32_t *offsets, const int32_t *ids, const float *values, int64_t rows,
                   const float *dense, int64_t dense_rows, int64_t columns, float *product) {
    floats *packed = malloc(sizeof(float) * WIDTH * (dense_rows + 1));
    if (packed == NULL) return 0;
    for (int64_t from = 0; from < columns; from += WIDTH) {
        const int64_t width = columns - from < WIDTH ? columns - from : WIDTH;
        pack(dense, dense_rows, columns, from, width, packed);
        for (int64_t row = 0; row < rows; row++) {
            floats sum[VECTORS] = {{0}};
            for (int32_t entry = offsets[row]; entry < offsets[row + 1]; entry++) {
                const floats *other = packed + (int64_t)ids[entry] * VECTORS;
                for (int i = 0; i < VECTORS; i++) sum[i] += values[entry] * other[i];
            }
            memcpy(product + row * columns + from, sum, sizeof(float) * width);
        }
    }
    free(packed);
    return 1;
}
