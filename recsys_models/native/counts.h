/* How many of some scores are above a value, not below it, or no numbers. */

#include <stdint.h>

enum { PART = 512 }; /* items that are counted before it is asked whether that is enough */

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
