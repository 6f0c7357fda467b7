/* A sparse matrix times a dense one. See sparse.py, which calls this. */

#include <stdint.h>
#include <string.h>

#include "vector.h"

enum { WIDTH = 32, VECTORS = WIDTH / AT_ONCE }; /* columns of a part */

/* Writes the product of rows given by offsets into `ids` and `values` with a dense matrix.
 *
 * offsets: (rows + 1,); parts: the columns of the dense matrix, WIDTH at a time, so that they lie
 * close together, (columns / WIDTH rounded up, dense_rows, WIDTH); product: (rows, columns).
 *
 * Returns 1.
 */
int sparse_product(const int32_t *offsets, const int32_t *ids, const float *values, int64_t rows,
                   const floats *parts, int64_t dense_rows, int64_t columns, float *product) {
    for (int64_t from = 0; from < columns; from += WIDTH, parts += dense_rows * VECTORS) {
        const int64_t width = columns - from < WIDTH ? columns - from : WIDTH;
        for (int64_t row = 0; row < rows; row++) {
            floats sum[VECTORS] = {{0}};
            for (int32_t entry = offsets[row]; entry < offsets[row + 1]; entry++) {
                const floats *other = parts + (int64_t)ids[entry] * VECTORS;
                for (int i = 0; i < VECTORS; i++) sum[i] += values[entry] * other[i];
            }
            memcpy(product + row * columns + from, sum, sizeof(float) * width);
        }
    }
    return 1;
}
