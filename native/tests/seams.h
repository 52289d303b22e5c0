/* arena.c with a clock and a source of random bytes that a test sets, and somebody else who writes
 * into the memory that a key is loaded from.
 *
 * A test includes this file instead of linking arena.c, and so sees its static parts too. */
#ifndef HSMUX_TESTS_SEAMS_H
#define HSMUX_TESTS_SEAMS_H

#include <errno.h>
#include <sys/random.h>
#include <time.h>

#include "check.h"

static time_t seam_now_s; /* 0: the machine's own clock */

/* What the next draws answer: RANDOM_REAL is the kernel, RANDOM_REPEATABLE the same in each run. */
enum { RANDOM_REAL, RANDOM_FAILS, RANDOM_STUCK, RANDOM_SLOW, RANDOM_REPEATABLE };
static int seam_random = RANDOM_REAL;
static unsigned seam_draws;           /* so many were made */
static unsigned seam_draws_left = -1; /* after so many more, RANDOM_FAILS */

static inline int seam_clock_gettime(clockid_t clock, struct timespec *now)
{
    if (seam_now_s == 0)
        return clock_gettime(clock, now);
    *now = (struct timespec){.tv_sec = seam_now_s};
    return 0;
}

static inline ssize_t seam_getrandom(void *bytes, size_t size, unsigned flags)
{
    static unsigned interrupted;
    seam_draws++;
    if (seam_random == RANDOM_FAILS || seam_draws_left == 0) {
        errno = ENOSYS;
        return -1;
    }
    seam_draws_left -= seam_draws_left != (unsigned)-1;
    if (seam_random == RANDOM_STUCK) {
        memset(bytes, 7, size);
        return (ssize_t)size;
    }
    if (seam_random == RANDOM_REPEATABLE) {
        fill(bytes, size, seam_draws);
        return (ssize_t)size;
    }
    if (seam_random == RANDOM_SLOW) {
        if (interrupted++ % 2 == 0) {
            errno = EINTR;
            return -1;
        }
        size = 1;
    }
    return getrandom(bytes, size, flags);
}

/* Written over when a key has been copied and before it is prepared: nobody may read it again. */
static uint8_t *seam_material;

static inline void seam_xaes_prepare(hs_xaes_key *prepared, const uint8_t *key)
{
    if (seam_material != NULL)
        memset(seam_material, 0xff, HS_KEY_SIZE);
    hs_xaes_prepare(prepared, key);
}

#define getrandom seam_getrandom
#define clock_gettime seam_clock_gettime
#define hs_xaes_prepare seam_xaes_prepare
#include "../src/arena.c"
#undef getrandom
#undef clock_gettime
#undef hs_xaes_prepare

#endif
