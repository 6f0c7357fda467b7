/* How many items rank before each relevant one. See ranks.py, which calls this. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "counts.h"
#include "ids.h"

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

static void leave_out(float *scores, int64_t columns, entries pairs) {
    for (int64_t i = 0; i < pairs.count; i++)
        scores[pairs.row[i] * columns + pairs.item[i]] = -INFINITY;
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
    if (!within(seen_rows, num_seen, rows) || !within(seen_items, num_seen, columns) ||
        !within(relevant_rows, num_relevant, rows) ||
        !within(relevant_items, num_relevant, columns))
        return 0;
    for (int64_t i = 0; i < num_relevant; i++)
        own[i] = scores[relevant_rows[i] * columns + relevant_items[i]];
    if (one_by_one && number_of_nan(own, num_relevant)) return 0;
    leave_out(scores, columns, seen);
    for (int64_t row = 0; row < rows; row++)
        if (number_of_nan(scores + row * columns, columns)) return 0;
    if (one_by_one) leave_out(scores, columns, relevant);
    for (int64_t i = 0; i < num_relevant; i++) {
        const float *list = scores + relevant_rows[i] * columns;
        const int64_t item = relevant_items[i];
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
