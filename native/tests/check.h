/* What the C tests share: a check that names its place, a sequence of bytes that is the same in
 * each run, memory that ends where the next page faults, and columns. */
#ifndef HSMUX_TESTS_CHECK_H
#define HSMUX_TESTS_CHECK_H

#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "internal.h"

#define CHECK(condition)                                                                         \
    do {                                                                                         \
        if (!(condition)) {                                                                      \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                      \
            exit(1);                                                                             \
        }                                                                                        \
    } while (0)

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* xorshift64*: the same bytes in each run. */
static inline uint64_t next_number(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545f4914f6cdd1du;
}

static inline void fill(uint8_t *bytes, size_t size, uint64_t seed)
{
    uint64_t state = seed * 2 + 1;
    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)(next_number(&state) >> 56);
}

/* A copy in memory of exactly this size, so that the sanitizer sees the first byte behind it. */
static inline uint8_t *exact(const void *bytes, size_t size)
{
    uint8_t *copy = malloc(size > 0 ? size : 1);
    CHECK(copy != NULL);
    if (bytes != NULL)
        memcpy(copy, bytes, size);
    return copy;
}

/* The last `size` bytes before a page without access: assembly that reads on is seen too. */
typedef struct {
    uint8_t *pages;
    size_t size;
} fenced;

static inline fenced fence(size_t size_max)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    fenced made = {NULL, (size_max + page - 1) / page * page};
    made.pages = mmap(NULL, made.size + page, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(made.pages != MAP_FAILED && mprotect(made.pages + made.size, page, PROT_NONE) == 0);
    return made;
}

static inline uint8_t *last(fenced memory, size_t size)
{
    return memory.pages + memory.size - size;
}

/* How a function ends in a forked child: its exit status, or minus the signal. */
static inline int in_child(void (*run)(void *), void *argument)
{
    int status;
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        /* The sanitizer would make a report of a fault that is wanted. */
        signal(SIGSEGV, SIG_DFL);
        run(argument);
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child);
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

/* A column of `count` items of these sizes, of bytes from `items`; the caller frees it. */
static inline uint8_t *column_of(const uint8_t *const *items, const size_t *sizes, uint32_t count,
                                 size_t *column_size)
{
    size_t used = 0, start = 4 * ((size_t)count + 2);
    for (uint32_t i = 0; i < count; i++)
        used += sizes[i];
    uint8_t *column = exact(NULL, start + used);
    hs_put_u32(column, count);
    hs_put_u32(column + 4, 0);
    used = 0;
    for (uint32_t i = 0; i < count; i++) {
        memcpy(column + start + used, items[i], sizes[i]);
        used += sizes[i];
        hs_put_u32(column + 4 * ((size_t)i + 2), (uint32_t)used);
    }
    *column_size = start + used;
    return column;
}

/* A column of one item. */
static inline uint8_t *column_of_one(const uint8_t *item, size_t size, size_t *column_size)
{
    return column_of(&item, &size, 1, column_size);
}

/* Choose the backend that the test's first argument names. */
static inline void choose_backend(int count, char **words)
{
    CHECK(count > 1);
    if (hs_select_backend(words[1], NULL) == HS_OK)
        return;
    fprintf(stderr, "%s: there is no such backend here\n", words[1]);
    exit(1);
}

#endif
