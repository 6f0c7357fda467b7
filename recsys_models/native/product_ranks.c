/* How many items rank before each relevant one, by scores that are products of vectors plus a bias.
 * See ranks.py, which calls this.
 *
 * Few of the scores matter: a rank is known once `limit` items are found that come before, or once no
 * item that is left can come before. So items lie by what score they may reach, the highest first, and
 * are looked at part by part, by those users of whom something is not known yet.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "counts.h"
#include "ids.h"
#include "tiles.h"

enum {
    LAID = 32,      /* items of a group, whatever a vector holds; they are laid out in whole groups */
    FIRST = 128,    /* items of the first part; each later one is as large as all before it */
    TYPICAL = 256,  /* users by whom it is judged what users' vectors are like */
    BUCKETS = 1024, /* so fine is the order of the items */
    SOME = 32       /* users that a thread takes at a time */
};

/* Items in the order in which they are looked at, each in a place.
 *
 * vectors: laid together, (stride, dim); biases: (stride,). ids: of the item in each place; places: of
 * each item. direction: a unit vector, (dim,), along which vectors are split in two, and in which
 * users' mostly lie. What follows is
 * the most, or least, of the items from a group on, (stride / LAID,): of their biases, of the lengths
 * of their vectors, of these vectors' parts along the direction and of the lengths across it.
 */
typedef struct {
    float *vectors, *biases, *most_bias, *most_norm, *most_along, *least_along, *most_across;
    int32_t *ids, *places;
    float *direction;
    int64_t columns, stride, dim;
} catalogue;

/* A vector: its length, its part along a direction, and no less than its length across it. */
typedef struct {
    float norm, along, across;
} split;

/* Users, and of their entries the places of the items.
 *
 * vectors: (rows, dim); splits: of these. seen_from and relevant_from: where a user's entries begin,
 * (rows + 1,). own, ranks: scores and ranks of the relevant items, and waits: whether these are not
 * known yet.
 */
typedef struct {
    const float *vectors;
    split *splits;
    entries seen, relevant;
    int64_t *seen_from, *relevant_from;
    int32_t *seen_places, *relevant_places;
    float *own;
    int64_t *ranks;
    char *waits;
} people;

static catalogue catalogue_of(float *laid, int32_t *places, float *direction, int64_t columns,
                              int64_t dim) {
    const int64_t stride = rounded_up(columns, LAID), groups = stride / LAID;
    float *biases = laid + dim * stride, *rest = biases + stride;
    return (catalogue){laid,
                       biases,
                       rest,
                       rest + groups,
                       rest + 2 * groups,
                       rest + 3 * groups,
                       rest + 4 * groups,
                       places,
                       places + stride,
                       direction,
                       columns,
                       stride,
                       dim};
}

/* So large, beside the terms of a sum, may its rounding be. */
static float rounding_of(int64_t dim) { return 1e-6f * (dim + 8); }

static float sum_of(floats lanes) {
    for (int half = AT_ONCE / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; lane++) lanes[lane] += lanes[lane + half];
    return lanes[0];
}

static split split_of(const float *vector, const float *direction, int64_t dim) {
    floats squares = {0}, products = {0};
    int64_t i = 0;
    for (; i + AT_ONCE <= dim; i += AT_ONCE) {
        const floats some = *(const floats *)(vector + i);
        squares += some * some;
        products += some * *(const floats *)(direction + i);
    }
    float square = sum_of(squares), along = sum_of(products);
    for (; i < dim; i++) {
        square += vector[i] * vector[i];
        along += vector[i] * direction[i];
    }
    const float rest = square - along * along;
    return (split){sqrtf(square), along, sqrtf((rest > 0 ? rest : 0) + 4 * rounding_of(dim) * square)};
}

/* Gives each item a place, by keys, the largest first; finely enough, not exactly. */
static void give_places(const float *keys, catalogue all) {
    float low = INFINITY, high = -INFINITY;
    for (int64_t item = 0; item < all.columns; item++) {
        if (keys[item] < low) low = keys[item];
        if (keys[item] > high) high = keys[item];
    }
    const float scale = high - low > 0 ? (BUCKETS - 1) / (high - low) : 0;
    int32_t next[BUCKETS + 1] = {0};
    for (int pass = 0; pass < 2; pass++) { /* the first counts how many are in each bucket */
        for (int64_t item = 0; item < all.columns; item++) {
            const float down = (high - keys[item]) * scale;
            const int bucket = down > 0 && down < BUCKETS ? (int)down : 0; /* keys may be no numbers */
            if (pass == 0) next[bucket + 1]++;
            else all.ids[all.places[item] = next[bucket]++] = (int32_t)item;
        }
        for (int bucket = 0; pass == 0 && bucket < BUCKETS; bucket++) next[bucket + 1] += next[bucket];
    }
}

/* Chooses the direction; returns what users' vectors mostly are along and across it. */
static split choose_direction(const float *users, int64_t rows, catalogue all) {
    const int64_t step = 1 + rows / TYPICAL, count = (rows + step - 1) / step;
    float square = 0, norm = 0;
    for (int64_t i = 0; i < all.dim; i++) all.direction[i] = 0;
    for (int64_t row = 0; row < rows; row += step)
        for (int64_t i = 0; i < all.dim; i++) {
            const float here = users[row * all.dim + i];
            all.direction[i] += here / count;
            square += here * here / count;
        }
    for (int64_t i = 0; i < all.dim; i++) norm += all.direction[i] * all.direction[i];
    const float along = sqrtf(norm), rest = square - norm;
    for (int64_t i = 0; i < all.dim; i++) all.direction[i] /= along > 0 ? along : 1;
    return (split){sqrtf(square), along, sqrtf(rest > 0 ? rest : 0)};
}

/* The larger, or what is no number. */
static float most(float one, float other) { return one > other || one != one ? one : other; }

/* Notes the most and the least of the items from each group on. */
static void note_bounds(const split *splits, catalogue all) {
    float bias = -INFINITY, norm = 0, along = -INFINITY, back = -INFINITY, across = 0;
    for (int64_t place = all.columns - 1; place >= 0; place--) {
        const split here = splits[all.ids[place]];
        const int64_t group = place / LAID;
        all.most_bias[group] = bias = most(all.biases[place], bias);
        all.most_norm[group] = norm = most(here.norm, norm);
        all.most_along[group] = along = most(here.along, along);
        all.least_along[group] = -(back = most(-here.along, back));
        all.most_across[group] = across = most(here.across, across);
    }
}

/* Lays items out for `product_ranks`.
 *
 * users: (rows, dim); items: (columns, dim); bias: (columns,) or NULL. direction: memory, (dim,).
 * laid: zeros, (dim + 2, stride); places: memory, (2, stride).
 *
 * Returns whether it did; not where stride is not the number of items that there is room for, or there
 * is no memory to do it in.
 */
int lay_items(const float *users, int64_t rows, const float *items, const float *bias,
              int64_t columns, int64_t dim, float *laid, int32_t *places, float *direction,
              int64_t stride, int threads) {
    const catalogue all = catalogue_of(laid, places, direction, columns, dim);
    if (stride != all.stride || columns > INT32_MAX) return 0;
    split *splits = malloc(columns * sizeof(split));
    float *keys = malloc(columns * sizeof(float));
    if (splits != NULL && keys != NULL) {
        const split typical = choose_direction(users, rows, all);
#pragma omp parallel for num_threads(threads)
        for (int64_t item = 0; item < columns; item++) {
            const split here = splits[item] = split_of(items + item * dim, direction, dim);
            keys[item] = typical.along * here.along + typical.across * here.across +
                         (bias == NULL ? 0 : bias[item]);
        }
        give_places(keys, all);
        for (int64_t place = 0; place < columns; place++)
            all.biases[place] = bias == NULL ? 0 : bias[all.ids[place]];
        note_bounds(splits, all);
#pragma omp parallel for num_threads(threads)
        for (int64_t from = 0; from < columns; from += COLUMNS) {
            const int64_t count = columns - from < COLUMNS ? columns - from : COLUMNS;
            float *together = laid + from * dim;
            for (int64_t c = 0; c < count; c++) {
                const float *vector = items + all.ids[from + c] * dim;
                for (int64_t i = 0; i < dim; i++) together[i * COLUMNS + c] = vector[i];
            }
        }
    }
    const int done = splits != NULL && keys != NULL;
    free(splits);
    free(keys);
    return done;
}

/* Scores of ROWS users and COLUMNS items. */
static void tile_of_scores(const float *users, const floats *items, int64_t dim, const floats *bias,
                           float *scores, int64_t stride) {
    floats sum[ROWS][VECTORS];
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < VECTORS; v++) sum[r][v] = bias[v];
    add_products(users, items, dim, sum);
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < VECTORS; v++) ((floats *)(scores + r * stride))[v] = sum[r][v];
}

/* Scores of some users and the items in places [from, to), which are whole groups: (ROWS, to - from).
 *
 * rows: of the users, up to ROWS. together: memory for ROWS vectors.
 */
static void scores_of(const people *users, const catalogue *all, const int64_t *rows, int64_t count,
                      int64_t from, int64_t to, float *together, float *scores) {
    const int64_t dim = all->dim;
    for (int64_t r = 0; r < count; r++)
        for (int64_t i = 0; i < dim; i++) together[i * ROWS + r] = users->vectors[rows[r] * dim + i];
    for (int64_t place = from; place < to; place += COLUMNS)
        tile_of_scores(together, (const floats *)(all->vectors + place * dim), dim,
                       (const floats *)(all->biases + place), scores + place - from, to - from);
}

/* Scores of relevant items [from, to), to the last bit as a tile has them. */
static void own_scores(people *users, const float *items, const catalogue *all, int64_t from,
                       int64_t to) {
    for (; from < to; from += AT_ONCE) {
        const float *p[AT_ONCE], *q[AT_ONCE];
        floats sum;
        for (int lane = 0; lane < AT_ONCE; lane++) {
            const int64_t pair = from + lane < to ? from + lane : from;
            p[lane] = users->vectors + users->relevant.row[pair] * all->dim;
            q[lane] = items + users->relevant.item[pair] * all->dim;
            sum[lane] = all->biases[users->relevant_places[pair]];
        }
        for (int64_t i = 0; i < all->dim; i++) {
            floats left, right;
            for (int lane = 0; lane < AT_ONCE; lane++) {
                left[lane] = p[lane][i];
                right[lane] = q[lane][i];
            }
            sum = add_product(sum, left, right);
        }
        for (int lane = 0; lane < AT_ONCE && from + lane < to; lane++)
            users->own[from + lane] = sum[lane];
    }
}

/* How many of some items in a list rank before one; equal scores the lower id first.
 *
 * own: its score. place: its place, where it is among these.
 */
static int64_t number_ahead(const float *list, const int32_t *ids, int64_t count, float own,
                            int64_t item, int64_t place) {
    const int64_t not_below = number_not_below(list, count, own);
    const int here = place >= 0 && place < count;
    const int itself = here && list[place] >= own; /* and not less by rounding */
    if (not_below == itself) return 0;
    int64_t above = number_above(list, count, own);
    if (not_below - above > (itself && list[place] == own))
        for (int64_t i = 0; i < count; i++) above += list[i] == own && ids[i] < item;
    return above - (here && list[place] > own);
}

/* Adds the items in a list to the rank of one whose place in it is `place`, until limit is reached. */
static int64_t rank_with(const float *list, const int32_t *ids, int64_t count, float own, int64_t item,
                         int64_t place, int one_by_one, int64_t rank, int64_t limit) {
    for (int64_t from = 0; from < count && rank < limit; from += PART) {
        const int64_t some = count - from < PART ? count - from : PART;
        rank += one_by_one ? number_above(list + from, some, own)
                           : number_ahead(list + from, ids + from, some, own, item, place - from);
    }
    return rank < limit ? rank : limit;
}

/* No less than what any item of a group, or of a later one, scores with a user. */
static float bound_of(const catalogue *all, int64_t group, split user) {
    const float along = user.along > 0 ? user.along * all->most_along[group]
                                       : user.along * all->least_along[group];
    const float across = user.across * all->most_across[group], bias = all->most_bias[group];
    const float rounding = user.norm * all->most_norm[group] + fabsf(bias);
    return along + across + bias + rounding_of(all->dim) * rounding;
}

/* Leaves out those whose places are in [from, from + count). */
static void leave_out(float *list, const int32_t *places, int64_t number, int64_t from,
                      int64_t count) {
    for (int64_t i = 0; i < number; i++)
        if (places[i] >= from && places[i] < from + count) list[places[i] - from] = -INFINITY;
}

/* Goes on counting for a user, in a list of the scores in places [from, to).
 *
 * bounded: whether these are sure to be numbers. waiting: whether anything is not known yet.
 *
 * Returns whether they were numbers.
 */
static int count_on(const people *users, const catalogue *all, int64_t row, float *list, int64_t from,
                    int64_t to, int one_by_one, int64_t limit, int bounded, int *waiting) {
    const int64_t begin = users->relevant_from[row], end = users->relevant_from[row + 1];
    const int64_t seen = users->seen_from[row];
    const int64_t count = (to < all->columns ? to : all->columns) - from;
    leave_out(list, users->seen_places + seen, users->seen_from[row + 1] - seen, from, count);
    if (!bounded && number_of_nan(list, count)) return 0;
    if (one_by_one) leave_out(list, users->relevant_places + begin, end - begin, from, count);
    const int last = to >= all->stride;
    const float bound = last ? -INFINITY : bound_of(all, to / LAID, users->splits[row]);
    *waiting = !bounded;
    for (int64_t i = begin; i < end; i++) {
        if (!users->waits[i]) continue;
        const int64_t place = users->relevant_places[i] - from;
        const int here = place >= 0 && place < count;
        const int left_out = !one_by_one && here && !(list[place] > -INFINITY);
        const int64_t rank = left_out ? limit
                                      : rank_with(list, all->ids + from, count, users->own[i],
                                                  users->relevant.item[i], place, one_by_one,
                                                  users->ranks[i], limit);
        users->ranks[i] = rank;
        users->waits[i] = rank < limit && !last && !(bound < users->own[i]);
        *waiting |= users->waits[i];
    }
    return 1;
}

/* Notes where the entries of each row begin, (rows + 1,); returns whether rows ascend in bounds. */
static int note_beginnings(entries all, int64_t rows, int64_t *from) {
    int64_t row = 0;
    for (int64_t i = 0; i < all.count; i++) {
        if (all.row[i] < 0 || all.row[i] >= rows || (i && all.row[i] < all.row[i - 1])) return 0;
        while (row <= all.row[i]) from[row++] = i;
    }
    while (row <= rows) from[row++] = all.count;
    return 1;
}

/* Works out for users [first, end) what is known before any other item is looked at. */
static void begin(people *users, const float *items, const catalogue *all, int64_t first,
                  int64_t end) {
    for (int64_t row = first; row < end; row++)
        users->splits[row] = split_of(users->vectors + row * all->dim, all->direction, all->dim);
    for (int64_t i = users->seen_from[first]; i < users->seen_from[end]; i++)
        users->seen_places[i] = all->places[users->seen.item[i]];
    const int64_t from = users->relevant_from[first], to = users->relevant_from[end];
    for (int64_t i = from; i < to; i++) {
        users->relevant_places[i] = all->places[users->relevant.item[i]];
        users->ranks[i] = 0;
        users->waits[i] = 1;
    }
    own_scores(users, items, all, from, to);
}

/* Ranks for users [first, end), SOME at most.
 *
 * memory: for the scores of ROWS users, and as many vectors. Returns whether no score is NaN.
 */
static int ranks_of(people *users, const float *items, const catalogue *all, int64_t first,
                    int64_t end, int one_by_one, int64_t limit, float *memory) {
    begin(users, items, all, first, end);
    const int64_t from_relevant = users->relevant_from[first];
    if (one_by_one && number_of_nan(users->own + from_relevant,
                                    users->relevant_from[end] - from_relevant))
        return 0;
    float norm = 0;
    for (int64_t row = first; row < end; row++) norm = most(users->splits[row].norm, norm);
    /* Else what is not worked out may be no number. */
    const int bounded = norm * all->most_norm[0] + fabsf(all->most_bias[0]) < 1e38f;
    int64_t pending[SOME], left = 0;
    for (int64_t row = first; row < end; row++)
        if (!bounded || users->relevant_from[row] < users->relevant_from[row + 1])
            pending[left++] = row;
    for (int64_t from = 0, to = FIRST; from < all->stride && left; from = to, to = 2 * to) {
        if (to > all->stride) to = all->stride;
        int64_t still = 0;
        for (int64_t p = 0; p < left; p += ROWS) {
            const int64_t some = left - p < ROWS ? left - p : ROWS;
            scores_of(users, all, pending + p, some, from, to, memory + ROWS * all->stride, memory);
            for (int64_t r = 0; r < some; r++) {
                int waits;
                if (!count_on(users, all, pending[p + r], memory + r * (to - from), from, to,
                              one_by_one, limit, bounded, &waits))
                    return 0;
                if (waits) pending[still++] = pending[p + r];
            }
        }
        left = still;
    }
    return 1;
}

/* As `ranks`, of scores that are products of vectors plus a bias. Rows of entries ascend.
 *
 * users: (rows, dim); items: (columns, dim); laid, places, direction: by `lay_items`.
 *
 * Returns whether it did; not where an id is out of bounds, rows do not ascend, a score is NaN or
 * there is no memory to do it in.
 */
int product_ranks(const float *users, const float *items, float *laid, int32_t *places,
                  float *direction, int64_t rows, int64_t columns, int64_t dim, const int64_t *seen_rows, const int64_t *seen_items,
                  int64_t num_seen, const int64_t *relevant_rows, const int64_t *relevant_items,
                  int64_t num_relevant, int one_by_one, int64_t limit, float *own, int64_t *ranks,
                  int threads) {
    if (!within(seen_items, num_seen, columns) || !within(relevant_items, num_relevant, columns))
        return 0;
    const catalogue all = catalogue_of(laid, places, direction, columns, dim);
    int64_t *beginnings = malloc(2 * (rows + 1) * sizeof(int64_t));
    int32_t *entry_places = malloc((num_seen + num_relevant + 1) * sizeof(int32_t));
    split *splits = malloc((rows + 1) * sizeof(split));
    char *waits = malloc(num_relevant + 1);
    people all_users = {.vectors = users,
                        .splits = splits,
                        .seen = {seen_rows, seen_items, num_seen},
                        .relevant = {relevant_rows, relevant_items, num_relevant},
                        .seen_from = beginnings,
                        .relevant_from = beginnings + rows + 1,
                        .seen_places = entry_places,
                        .relevant_places = entry_places + num_seen,
                        .own = own,
                        .ranks = ranks,
                        .waits = waits};
    int done = beginnings != NULL && entry_places != NULL && splits != NULL && waits != NULL &&
               note_beginnings(all_users.seen, rows, all_users.seen_from) &&
               note_beginnings(all_users.relevant, rows, all_users.relevant_from);
#pragma omp parallel num_threads(threads) if (done)
    {
        float *memory = calloc(ROWS * (all.stride + dim), sizeof(float));
#pragma omp for schedule(dynamic) reduction(&& : done)
        for (int64_t row = 0; row < rows; row += SOME) {
            const int64_t end = row + SOME < rows ? row + SOME : rows;
            done = done && memory != NULL &&
                   ranks_of(&all_users, items, &all, row, end, one_by_one, limit, memory);
        }
        free(memory);
    }
    free(beginnings);
    free(entry_places);
    free(splits);
    free(waits);
    return done;
}
