/* Several threads in one arena: Python's own lock is not held in C. */
#include <pthread.h>

#include "check.h"

enum { THREADS = 4, CALLS = 2000, ITEMS = 8, NONCE = 24, OVERHEAD = 40 };

static hs_arena *arena;
static uint64_t shared_slot;
static uint8_t nonces[THREADS][CALLS][ITEMS][NONCE];

static void make_columns(uint8_t *items, uint8_t *contexts)
{
    memset(items, 0, 4 * (ITEMS + 2));
    hs_put_u32(items, ITEMS);
    memset(contexts, 0, 12);
    hs_put_u32(contexts, 1);
}

/* Seal and open with the shared slot; one call in four makes, uses and frees a slot of its own. */
static void *work(void *argument)
{
    uint8_t items[4 * (ITEMS + 2)], contexts[12], statuses[ITEMS];
    uint8_t sealed[sizeof items + ITEMS * OVERHEAD], opened[sizeof sealed], bytes[16 + OVERHEAD];
    size_t thread = (size_t)(uintptr_t)argument;
    make_columns(items, contexts);
    for (int call = 0; call < CALLS; call++) {
        size_t sealed_size = sizeof sealed, opened_size = sizeof opened;
        CHECK(hs_seal_batch(arena, shared_slot, items, 0, contexts, sizeof contexts, items,
                            sizeof items, sealed, &sealed_size, statuses) == HS_OK);
        for (int i = 0; i < ITEMS; i++)
            memcpy(nonces[thread][call][i], sealed + sizeof items + i * OVERHEAD, NONCE);
        CHECK(hs_open_batch(arena, shared_slot, items, 0, contexts, sizeof contexts, sealed,
                            sealed_size, opened, &opened_size, statuses) == HS_OK);
        for (int i = 0; i < ITEMS; i++)
            CHECK(statuses[i] == HS_OK);
        if (call % 4 != 0)
            continue;
        uint64_t own, blob;
        CHECK(hs_slot_generate(arena, &own) == HS_OK);
        CHECK(hs_seal_bytes(arena, own, items, 4, items, 16, bytes) == HS_OK);
        CHECK(hs_open_blob(arena, own, items, 4, bytes, sizeof bytes, &blob) == HS_OK);
        CHECK(hs_arena_slots_used(arena) >= 2 && hs_arena_blobs_used(arena) >= 1);
        CHECK(hs_blob_free(arena, blob) == HS_OK && hs_slot_free(arena, own) == HS_OK);
        CHECK(hs_slot_free(arena, own) == HS_BAD_SLOT);
    }
    return NULL;
}

static int compare(const void *one, const void *other)
{
    return memcmp(one, other, NONCE);
}

static void test_one_slot(void)
{
    pthread_t threads[THREADS];
    CHECK(hs_slot_generate(arena, &shared_slot) == HS_OK);
    for (size_t i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, work, (void *)(uintptr_t)i) == 0);
    for (size_t i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    uint8_t(*all)[NONCE] = (uint8_t(*)[NONCE])nonces;
    size_t total = sizeof nonces / NONCE;
    qsort(all, total, NONCE, compare);
    for (size_t i = 1; i < total; i++)
        CHECK(memcmp(all[i - 1], all[i], NONCE) != 0);
    CHECK(hs_arena_slots_used(arena) == 1 && hs_arena_blobs_used(arena) == 0);
}

int main(int count, char **words)
{
    choose_backend(count, words);
    CHECK(hs_arena_create(1 << 20, NULL, &arena) == HS_OK);
    test_one_slot();
    hs_arena_destroy(arena);
    return 0;
}
