/* Steps of an optimizer over some rows of a table, each row read and written once.
 * See row_steps.py, which calls this. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "ids.h"

/* A list in which a row may stand repeatedly, with a gradient for each place. */
typedef struct {
    const int64_t *ids;
    int64_t count, dim;
    const float *grad; /* (count, dim) */
    int64_t *last;     /* of each row of the table, the last place in the list */
    int64_t *before;   /* of each place, the one before of the same row; none at -1 */
    float *sum;        /* (dim,) */
} visits;

static int begin(visits *all, const int64_t *ids, int64_t count, int64_t rows, int64_t dim,
                 const float *grad, int64_t *last) {
    if (!within(ids, count, rows)) return 0;
    int64_t *before = malloc(sizeof(int64_t) * count + sizeof(float) * dim);
    if (before == NULL) return 0;
    *all = (visits){ids, count, dim, grad, last, before, (float *)(before + count)};
    for (int64_t i = 0; i < count; i++) last[ids[i]] = -1;
    for (int64_t i = 0; i < count; i++) before[i] = last[ids[i]], last[ids[i]] = i;
    return 1;
}

/* The sum of a row's gradients at its last place in the list; NULL at its other places. */
static const float *sum_at(const visits *all, int64_t place) {
    if (all->last[all->ids[place]] != place) return NULL;
    const float *grad = all->grad + place * all->dim;
    if (all->before[place] < 0) return grad;
    memcpy(all->sum, grad, sizeof(float) * all->dim);
    while ((place = all->before[place]) >= 0)
        for (int64_t i = 0; i < all->dim; i++) all->sum[i] += all->grad[place * all->dim + i];
    return all->sum;
}

/* Writes rows as steps without a gradient have left them.
 *
 * table, buffer: (rows, dim), as they were last written; written_after: (rows,), the step of that;
 * products: (steps, 4), what the steps since do to the pair, see deferred.py; weights: (count, dim).
 *
 * Returns whether it did; not where an id is out of bounds.
 */
int caught_up_rows(const float *table, int64_t rows, int64_t dim, const float *buffer,
                   const int32_t *written_after, const double *products, const int64_t *ids,
                   int64_t count, float *weights) {
    if (!within(ids, count, rows)) return 0;
    for (int64_t i = 0; i < count; i++, weights += dim) {
        fetch_ahead(table, dim, ids, i, count);
        fetch_ahead(buffer, dim, ids, i, count);
        const double *own = products + 4 * written_after[ids[i]];
        const float ww = own[0], wm = own[2];
        const float *w = table + ids[i] * dim, *m = buffer + ids[i] * dim;
        for (int64_t j = 0; j < dim; j++) weights[j] = ww * w[j] + wm * m[j];
    }
    return 1;
}

/* A step of SGD with momentum, the `number`-th since all rows were current.
 *
 * table, buffer, written_after, products: as above, (rows, dim), (rows,) and (steps, 4), all
 * overwritten; last: memory for `rows` numbers.
 *
 * Returns whether it did; not where an id is out of bounds or there is no memory to do it in.
 */
int momentum_rows(float *table, float *buffer, int32_t *written_after, double *products,
                  int64_t number, int64_t rows, int64_t dim, const int64_t *ids, int64_t count,
                  const float *grad, int64_t *last, double lr, double momentum, double decay) {
    visits all;
    if (!begin(&all, ids, count, rows, dim, grad, last)) return 0;
    const float rate = lr, kept = momentum, pull = decay;
    for (int64_t i = 0; i < count; i++) {
        fetch_ahead(table, dim, ids, i, count);
        fetch_ahead(buffer, dim, ids, i, count);
        const float *sum = sum_at(&all, i);
        if (sum == NULL) continue;
        const double *own = products + 4 * written_after[ids[i]];
        const float ww = own[0], mw = own[1], wm = own[2], mm = own[3];
        float *w = table + ids[i] * dim, *m = buffer + ids[i] * dim;
        for (int64_t j = 0; j < dim; j++) {
            const float weight = ww * w[j] + wm * m[j], velocity = mw * w[j] + mm * m[j];
            m[j] = kept * velocity + (sum[j] + pull * weight);
            w[j] = weight - rate * m[j];
        }
        written_after[ids[i]] = number;
    }
    free(all.before);
    for (double *pair = products; pair < products + 4 * number; pair += 2) {
        const double w = pair[0], m = pair[1];
        pair[0] = (1 - lr * decay) * w - lr * momentum * m;
        pair[1] = decay * w + momentum * m;
    }
    return 1;
}

/* A step of Adam, the `step`-th.
 *
 * table, first, second: (rows, dim), whose rows are overwritten; last: memory for `rows` numbers.
 *
 * Returns as the above.
 */
int adam_rows(float *table, float *first, float *second, int64_t rows, int64_t dim,
              const int64_t *ids, int64_t count, const float *grad, int64_t *last, double lr,
              double beta1, double beta2, double eps, double decay, double step) {
    visits all;
    if (!begin(&all, ids, count, rows, dim, grad, last)) return 0;
    const float rate = lr / (1 - pow(beta1, step)), root = sqrt(1 - pow(beta2, step));
    const float kept1 = beta1, new1 = 1 - beta1, kept2 = beta2, new2 = 1 - beta2;
    const float least = eps, pull = decay;
    for (int64_t i = 0; i < count; i++) {
        fetch_ahead(table, dim, ids, i, count);
        fetch_ahead(first, dim, ids, i, count);
        fetch_ahead(second, dim, ids, i, count);
        const float *sum = sum_at(&all, i);
        if (sum == NULL) continue;
        float *w = table + ids[i] * dim, *m = first + ids[i] * dim, *v = second + ids[i] * dim;
        for (int64_t j = 0; j < dim; j++) {
            const float g = sum[j] + pull * w[j];
            m[j] = kept1 * m[j] + new1 * g;
            v[j] = kept2 * v[j] + new2 * g * g;
            w[j] -= rate * m[j] / (sqrtf(v[j]) / root + least);
        }
    }
    free(all.before);
    return 1;
}
