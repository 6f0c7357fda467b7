/* What NeuMF's MLP adds to the logits of all pairs. See towers.py, which calls this. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "tiles.h"

/* The larger of x and 0; NaN stays NaN. */
static floats relu(floats x) { return (floats)(~(x < (floats){0}) & (ints)x); }

/* The first hidden units of one user and some items. */
static void add_user(const float *user, const floats *items, int64_t width, floats *hidden) {
    for (int64_t i = 0; i < width; i++)
        for (int v = 0; v < VECTORS; v++)
            hidden[i * VECTORS + v] = relu(user[i] + items[i * VECTORS + v]);
}

/* The units of one layer from those of the layer before. */
static void layer(const float *weights, const float *biases, int64_t before, int64_t width,
                  const floats *hidden, floats *result) {
    for (int64_t row = 0; row < width; row += ROWS, weights += ROWS * before) {
        floats sum[ROWS][VECTORS];
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < VECTORS; v++) sum[r][v] = (floats){0} + biases[row + r];
        add_products(weights, hidden, before, sum);
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < VECTORS; v++) result[(row + r) * VECTORS + v] = relu(sum[r][v]);
    }
}

/* Adds h . z_L to the logits of users and items, from their parts of what z_1 is the relu of.
 *
 * user_parts: (num_users, widths[0]); item_parts: (num_items, widths[0]); weights: of each further
 * layer its matrix, (widths[l], widths[l - 1]), and its biases, then h; logits: (num_users,
 * num_items).
 *
 * Returns whether there was memory to do it in.
 */
int add_towers(const float *user_parts, int64_t num_users, const float *item_parts,
               int64_t num_items, const int64_t *widths, int64_t num_widths, const float *weights,
               float *logits, int threads) {
    int64_t most = widths[0], size = 0;
    for (int64_t l = 1; l < num_widths; l++) {
        most = widths[l] > most ? widths[l] : most;
        size += rounded_up(widths[l], ROWS) * (widths[l - 1] + 1);
    }
    const int64_t units = rounded_up(most, ROWS) * COLUMNS;
    float *together = calloc(size, sizeof(float)), *rows_of_layer = together;
    if (together == NULL) return 0;
    for (int64_t l = 1; l < num_widths; l++) {
        const int64_t before = widths[l - 1], rows = rounded_up(widths[l], ROWS);
        lay_together(weights, widths[l], before, ROWS, rows_of_layer);
        memcpy(rows_of_layer + rows * before, weights + widths[l] * before,
               sizeof(float) * widths[l]);
        weights += widths[l] * (before + 1), rows_of_layer += rows * (before + 1);
    }
    int done = 1;
#pragma omp parallel num_threads(threads)
    {
        float *items = calloc(3 * units, sizeof(float));
#pragma omp for schedule(dynamic) reduction(&& : done)
        for (int64_t item = 0; item < num_items; item += COLUMNS) {
            done = done && items != NULL;
            if (!done) continue;
            const int64_t count = num_items - item < COLUMNS ? num_items - item : COLUMNS;
            lay_together(item_parts + item * widths[0], count, widths[0], COLUMNS, items);
            for (int64_t user = 0; user < num_users; user++) {
                floats *hidden = (floats *)(items + units), *next = (floats *)(items + 2 * units);
                add_user(user_parts + user * widths[0], (floats *)items, widths[0], hidden);
                const float *own = together;
                for (int64_t l = 1; l < num_widths; l++) {
                    const int64_t before = widths[l - 1], rows = rounded_up(widths[l], ROWS);
                    layer(own, own + rows * before, before, widths[l], hidden, next);
                    floats *last = hidden;
                    hidden = next, next = last, own += rows * (before + 1);
                }
                floats sum[VECTORS] = {{0}};
                for (int64_t i = 0; i < widths[num_widths - 1]; i++)
                    for (int v = 0; v < VECTORS; v++)
                        sum[v] += weights[i] * hidden[i * VECTORS + v];
                for (int i = 0; i < count; i++)
                    logits[user * num_items + item + i] += ((float *)sum)[i];
            }
        }
        free(items);
    }
    free(together);
    return done;
}
