/* How many items rank before each relevant one. See ranks.py, which calls this. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "ids.h"

enum { PART = 512 }; /* items that are counted before it is asked whether that is enough */

/* Scores of all items for some users. */
typedef struct {
    float *scores;
    int64_t first, rows, columns, stride;
} lists;

static int64_t number_above(const float *scores, int64_t count, float own) {
    int32_t number = 0;
    for (int64_t i = 0; i < count; i++) number += scores[i] > own;
    return number;
}

static int64_t number_not_below(const float *scores, int64_t count, float own) {
    int32_t number = 0;
    for (int64_t i = 0; i < count; i++) number += scores[i] >= own;
    return number;
}

static int64_t number_of_nan(const float *scores, int64_t count) {
    int32_t number = 0;
    for (int64_t i = 0; i < count; i++) number += scores[i] != scores[i];
    return number;
}

/* Items of [from, to) that rank before a score; counts no further than it takes to reach limit. */
static int64_t rank_within(const float *scores, int64_t from, int64_t to, float own, int equal_first,
                           int64_t rank, int64_t limit) {
    while (from < to && rank < limit) {
        const int64_t count = to - from < PART ? to - from : PART;
        rank += equal_first ? number_not_below(scores + from, count, own)
                            : number_above(scores + from, count, own);
        from += count;
    }
    return rank;
}

static float *list_of(const lists *some, int64_t row) {
    return some->scores + (row - some->first) * some->stride;
}

static void leave_out(const lists *some, entries pairs) {
    for (int64_t i = 0; i < pairs.count; i++)
        list_of(some, pairs.row[i])[pairs.item[i]] = -INFINITY;
}

/* As `ranks`, for some users; ids have been looked at. */
static int ranks_of(const lists *some, entries seen, entries relevant, int one_by_one,
                    int64_t limit, float *own, int64_t *ranks) {
    const int64_t columns = some->columns;
    for (int64_t i = 0; i < relevant.count; i++)
        own[i] = list_of(some, relevant.row[i])[relevant.item[i]];
    if (one_by_one && number_of_nan(own, relevant.count)) return 0;
    leave_out(some, seen);
    for (int64_t row = 0; row < some->rows; row++)
        if (number_of_nan(some->scores + row * some->stride, columns)) return 0;
    if (one_by_one) leave_out(some, relevant);
    for (int64_t i = 0; i < relevant.count; i++) {
        const float *list = list_of(some, relevant.row[i]);
        const int64_t item = relevant.item[i];
        int64_t rank = limit;
        if (one_by_one) {
            rank = rank_within(list, 0, columns, own[i], 0, 0, limit);
        } else if (list[item] > -INFINITY) {
            rank = rank_within(list, 0, item, own[i], 1, 0, limit);
            rank = rank_within(list, item + 1, columns, own[i], 0, rank, limit);
        }
        ranks[i] = rank < limit ? rank : limit;
    }
    return 1;
}

/* Writes for each relevant item how many rank before it, or limit where those are as many or more.
 *
 * In one list, equal scores rank the lower id first, and an item that is left out ranks nowhere.
 * One by one, relevant items are no rivals and equal scores do not push an item back.
 *
 * scores: (rows, columns); what is left out is overwritten with minus infinity.
 * own: memory for num_relevant scores.
 *
 * Returns whether it did; not where an id is out of bounds or a score is NaN. Then nothing is
 * overwritten that a second try would need.
 */
int ranks(float *scores, int64_t rows, int64_t columns, const int64_t *seen_rows,
          const int64_t *seen_items, int64_t num_seen, const int64_t *relevant_rows,
          const int64_t *relevant_items, int64_t num_relevant, int one_by_one, int64_t limit,
          float *own, int64_t *ranks) {
    const entries seen = {seen_rows, seen_items, num_seen};
    const entries relevant = {relevant_rows, relevant_items, num_relevant};
    const lists all = {scores, 0, rows, columns, columns};
    return within(seen_rows, num_seen, rows) && within(seen_items, num_seen, columns) &&
           within(relevant_rows, num_relevant, rows) &&
           within(relevant_items, num_relevant, columns) &&
           ranks_of(&all, seen, relevant, one_by_one, limit, own, ranks);
}
