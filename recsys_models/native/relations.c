/* How far each user is from each item along the relation of the two. See relations.py. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "tiles.h"

/* The larger of two; the second where either is NaN. */
static floats larger(floats first, floats second) {
    const ints is_first = first > second;
    return (floats)((is_first & (ints)first) | (~is_first & (ints)second));
}

/* e^x for x <= 0, to the last two digits in binary; NaN stays NaN. */
static floats exponential(floats x) {
    x = larger((floats){0} - 87.0f, x); /* e^-87 is close to the least number there is */
    const ints whole = __builtin_convertvector(x * 1.44269504f - 0.5f, ints); /* x / ln 2, rounded */
    const floats steps = __builtin_convertvector(whole, floats);
    /* ln 2 in two parts, of which the first has few digits, so that nothing is rounded off. */
    const floats rest = (x - steps * 0.693359375f) + steps * 2.12194440e-4f;
    floats sum = rest * (1 / 5040.0f) + 1 / 720.0f; /* the series of e^rest, |rest| < 0.35 */
    sum = sum * rest + 1 / 120.0f;
    sum = sum * rest + 1 / 24.0f;
    sum = sum * rest + 1 / 6.0f;
    sum = sum * rest + 1 / 2.0f;
    sum = sum * rest + 1.0f;
    sum = sum * rest + 1.0f;
    return sum * (floats)((whole + 127) << 23); /* times 2^whole */
}

/* Keys times a user's vector, element by element. */
static void scale(const float *keys, const float *user, int64_t slots, int64_t dim, float *scaled) {
    for (int64_t slot = 0; slot < slots; slot++, keys += dim, scaled += dim)
        for (int64_t i = 0; i < dim; i++) scaled[i] = keys[i] * user[i];
}

/* Products of all keys with some items, from which a softmax is made. */
static void logits(const float *keys, const floats *items, int64_t slots, int64_t dim,
                   floats *result) {
    for (int64_t slot = 0; slot < slots; slot += ROWS, keys += ROWS * dim) {
        floats sum[ROWS][VECTORS] = {{{0}}};
        add_products(keys, items, dim, sum);
        memcpy(result + slot * VECTORS, sum, sizeof(sum));
    }
}

/* From products with keys to what the relations add to the distances; the products are lost. */
static void combine(floats *share, int64_t slots, const float *gram, const float *user_memories,
                    const floats *item_memories, floats *result) {
    floats highest[VECTORS], sum[VECTORS] = {{0}}, linear[VECTORS] = {{0}}, square[VECTORS] = {{0}};
    for (int v = 0; v < VECTORS; v++) highest[v] = share[v];
    for (int64_t n = 1; n < slots; n++)
        for (int v = 0; v < VECTORS; v++) highest[v] = larger(highest[v], share[n * VECTORS + v]);
    for (int64_t n = 0; n < slots; n++, gram += slots) {
        floats others[VECTORS] = {{0}}; /* the other half of the products is the same */
        for (int64_t m = 0; m < n; m++)
            for (int v = 0; v < VECTORS; v++) others[v] += share[m * VECTORS + v] * gram[m];
        for (int v = 0; v < VECTORS; v++) {
            const floats own = exponential(share[n * VECTORS + v] - highest[v]);
            share[n * VECTORS + v] = own;
            sum[v] += own;
            linear[v] += own * (user_memories[n] - item_memories[n * VECTORS + v]);
            square[v] += own * (2.0f * others[v] + own * gram[n]);
        }
    }
    for (int v = 0; v < VECTORS; v++) result[v] = (linear[v] + square[v] / sum[v]) / sum[v];
}

/* Adds what the relation changes in the squared distance of users and items.
 *
 * With a = softmax(K (p * q)) and memories M that is, summed over slots n and m,
 *
 *     sum a_n (2 M_n.p - 2 M_n.q) + sum a_n a_m M_n.M_m
 *
 * users: (num_users, dim); items: (num_items, dim); keys: (slots, dim); gram: (slots, slots),
 * M_n.M_m; user_memories: (num_users, slots), 2 M_n.p; item_memories: (num_items, slots), 2 M_n.q;
 * distances: (num_users, num_items), added to.
 *
 * Returns whether there was memory to do it in.
 */
int add_relations(const float *users, int64_t num_users, const float *items, int64_t num_items,
                  int64_t dim, const float *keys, int64_t slots, const float *gram,
                  const float *user_memories, const float *item_memories, float *distances,
                  int threads) {
    const int64_t columns = rounded_up(num_items, COLUMNS), rows = rounded_up(slots, ROWS);
    float *items_together = calloc(columns * (dim + slots), sizeof(float));
    if (items_together == NULL) return 0;
    float *memories_together = items_together + columns * dim;
    lay_together(items, num_items, dim, COLUMNS, items_together);
    lay_together(item_memories, num_items, slots, COLUMNS, memories_together);
    int done = 1;
#pragma omp parallel num_threads(threads)
    {
        float *scaled = calloc(slots * dim + rows * (dim + COLUMNS), sizeof(float));
#pragma omp for schedule(dynamic) reduction(&& : done)
        for (int64_t user = 0; user < num_users; user++) {
            done = done && scaled != NULL;
            if (!done) continue;
            float *keys_together = scaled + slots * dim;
            floats *share = (floats *)(keys_together + rows * dim);
            scale(keys, users + user * dim, slots, dim, scaled);
            lay_together(scaled, slots, dim, ROWS, keys_together);
            for (int64_t item = 0; item < num_items; item += COLUMNS) {
                floats result[VECTORS];
                logits(keys_together, (const floats *)(items_together + item * dim), slots, dim,
                       share);
                combine(share, slots, gram, user_memories + user * slots,
                        (const floats *)(memories_together + item * slots), result);
                float *own = distances + user * num_items + item;
                const int64_t left = num_items - item;
                for (int i = 0; i < (left < COLUMNS ? left : COLUMNS); i++)
                    own[i] += ((float *)result)[i];
            }
        }
        free(scaled);
    }
    free(items_together);
    return done;
}
