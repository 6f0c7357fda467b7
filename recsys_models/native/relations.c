/* How far each user is from each item along the relation of the two. See relations.py. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "vector.h"

enum { VECTORS = 2, ITEMS = VECTORS * AT_ONCE, SLOTS = 4 }; /* what is done at a time */

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

static void transpose_scaled(const float *keys, const float *user, int64_t slots, int64_t dim,
                             float *scaled) {
    for (int64_t slot = 0; slot < slots; slot++)
        for (int64_t i = 0; i < dim; i++)
            scaled[(slot / SLOTS * dim + i) * SLOTS + slot % SLOTS] = keys[slot * dim + i] * user[i];
}

/* Products of all keys with some items, from which a softmax is made. */
static void logits(const float *scaled, const floats *items, int64_t slots, int64_t dim,
                   floats *result) {
    for (int64_t slot = 0; slot < slots; slot += SLOTS) {
        floats sum[SLOTS][VECTORS] = {{{0}}};
        for (int64_t i = 0; i < dim; i++, scaled += SLOTS) {
            floats own[VECTORS];
            for (int v = 0; v < VECTORS; v++) own[v] = items[i * VECTORS + v];
            for (int j = 0; j < SLOTS; j++)
                for (int v = 0; v < VECTORS; v++) sum[j][v] += scaled[j] * own[v];
        }
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
 * users: (num_users, dim); keys: (slots, dim); gram: (slots, slots), M_n.M_m; user_memories:
 * (num_users, slots), 2 M_n.p. Of the items, as many as fit at a time lie together, zeros after the
 * last: items (parts, dim, ITEMS), item_memories (parts, slots, ITEMS), 2 M_n.q.
 * distances: (num_users, num_items), added to.
 *
 * Returns whether there was memory to do it in.
 */
int add_relations(const float *users, int64_t num_users, int64_t dim, const float *keys,
                  int64_t slots, const float *gram, const float *user_memories,
                  const floats *items, const floats *item_memories, int64_t num_items,
                  float *distances) {
    const int64_t padded = (slots + SLOTS - 1) / SLOTS * SLOTS;
    float *scaled = calloc(padded * dim, sizeof(float));
    floats *share = malloc(sizeof(float) * padded * ITEMS);
    const int done = scaled != NULL && share != NULL;
    for (int64_t user = 0; done && user < num_users; user++) {
        transpose_scaled(keys, users + user * dim, slots, dim, scaled);
        for (int64_t item = 0; item < num_items; item += ITEMS) {
            const floats *memories = item_memories + item / ITEMS * slots * VECTORS;
            logits(scaled, items + item / ITEMS * dim * VECTORS, slots, dim, share);
            floats result[VECTORS];
            combine(share, slots, gram, user_memories + user * slots, memories, result);
            float *own = distances + user * num_items + item;
            const int64_t left = num_items - item;
            for (int i = 0; i < (left < ITEMS ? left : ITEMS); i++) own[i] += ((float *)result)[i];
        }
    }
    free(scaled);
    free(share);
    return done;
}
