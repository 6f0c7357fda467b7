/* Rows of tables, products of them, and their gradients. See rows.py, which calls this. */

#include <stdint.h>

#include "ids.h"
#include "vector.h"

static float dot(const float *left, const float *right, int64_t dim) {
    floats sums[2] = {{0}};
    float sum = 0;
    int64_t i = 0;
    for (; i + 2 * AT_ONCE <= dim; i += 2 * AT_ONCE) {
        sums[0] += *(const floats *)(left + i) * *(const floats *)(right + i);
        sums[1] += *(const floats *)(left + i + AT_ONCE) * *(const floats *)(right + i + AT_ONCE);
    }
    for (; i < dim; i++) sum += left[i] * right[i];
    sums[0] += sums[1];
    for (int j = 0; j < AT_ONCE; j++) sum += sums[0][j];
    return sum;
}

static void add_scaled(float *to, float factor, const float *from, int64_t dim) {
    for (int64_t i = 0; i < dim; i++) to[i] += factor * from[i];
}

/* Writes the product of each left row with `count` right rows.
 *
 * left: (left_rows, dim); right: (right_rows, dim); left_ids: (batch,); right_ids and products:
 * (batch, count).
 *
 * Returns whether it did; not where an id is out of bounds.
 */
int pair_products(const float *left, int64_t left_rows, const float *right, int64_t right_rows,
                  int64_t dim, const int64_t *left_ids, const int64_t *right_ids, int64_t batch,
                  int64_t count, float *products) {
    if (!within(left_ids, batch, left_rows) || !within(right_ids, batch * count, right_rows))
        return 0;
    for (int64_t i = 0; i < batch; i++) {
        fetch_ahead(left, dim, left_ids, i, batch);
        for (int64_t j = i * count; j < (i + 1) * count; j++) {
            fetch_ahead(right, dim, right_ids, j, batch * count);
            products[j] = dot(left + left_ids[i] * dim, right + right_ids[j] * dim, dim);
        }
    }
    return 1;
}

/* Adds to the gradients of the tables what the gradients of the products give.
 *
 * slopes: the latter, (batch, count); left_gradient, right_gradient: of the tables' shapes, the same
 * memory where the tables are one.
 *
 * Returns 1; ids are those that `pair_products` took.
 */
int pair_gradients(const float *left, const float *right, int64_t dim, const int64_t *left_ids,
                   const int64_t *right_ids, int64_t batch, int64_t count, const float *slopes,
                   float *left_gradient, float *right_gradient) {
    for (int64_t i = 0; i < batch; i++)
        for (int64_t j = i * count; j < (i + 1) * count; j++) {
            const int64_t own = left_ids[i] * dim, other = right_ids[j] * dim;
            add_scaled(left_gradient + own, slopes[j], right + other, dim);
            add_scaled(right_gradient + other, slopes[j], left + own, dim);
        }
    return 1;
}

/* Adds `factor` times some vectors to rows of a table, of which one may stand there repeatedly.
 *
 * table: (rows, dim); vectors: (count, dim).
 *
 * Returns whether it did; not where an id is out of bounds.
 */
int add_rows(float *table, int64_t rows, int64_t dim, const int64_t *ids, int64_t count,
             const float *vectors, double factor) {
    if (!within(ids, count, rows)) return 0;
    if (dim == 1)
        for (int64_t i = 0; i < count; i++) table[ids[i]] += (float)factor * vectors[i];
    else
        for (int64_t i = 0; i < count; i++) {
            fetch_ahead(table, dim, ids, i, count);
            add_scaled(table + ids[i] * dim, factor, vectors + i * dim, dim);
        }
    return 1;
}
