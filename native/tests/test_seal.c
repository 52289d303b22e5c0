/* Envelopes: the nonce scheme against a clock and a source of random bytes of our own, limits at
 * the edge and one over, and batches in which some items are bad. */
#include "seams.h"

enum { HEADER = 24, NONCE = 24, TAG = 16, OVERHEAD = NONCE + TAG, PREFIX = 12, R = 8 };

static const uint8_t HEADER_BYTES[HS_HEADER_SIZE_MAX + 1] = "twenty-four bytes, header";
static const uint8_t NONE[1]; /* an empty input has an address too */
static hs_arena *arena;

static uint64_t make_slot(void)
{
    uint64_t slot;
    CHECK(hs_slot_generate(arena, &slot) == HS_OK);
    return slot;
}

static uint32_t number_at(const uint8_t *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

typedef struct {
    uint8_t prefix[PREFIX], r[R];
    uint32_t n;
} nonce;

static nonce nonce_at(const uint8_t *bytes)
{
    nonce found;
    memcpy(found.prefix, bytes, PREFIX);
    memcpy(found.r, bytes + PREFIX, R);
    found.n = number_at(bytes + PREFIX + R);
    return found;
}

static hs_status seal_nothing(uint64_t slot, nonce *found)
{
    uint8_t envelope[OVERHEAD];
    hs_status status = hs_seal(arena, slot, NONE, 0, NONE, 0, NONE, 0, envelope);
    if (status == HS_OK)
        *found = nonce_at(envelope);
    return status;
}

static nonce next_nonce(uint64_t slot)
{
    nonce found;
    CHECK(seal_nothing(slot, &found) == HS_OK);
    return found;
}

static int is_same_epoch(const nonce *one, const nonce *other)
{
    return memcmp(one->prefix, other->prefix, PREFIX) == 0;
}

static void test_nonces_in_an_epoch(void)
{
    uint64_t slot = make_slot(), other = make_slot();
    nonce first = next_nonce(slot), before = first;
    CHECK(first.n == 1);
    for (uint32_t i = 2; i < 1000; i++) {
        nonce now = next_nonce(slot);
        CHECK(is_same_epoch(&first, &now) && now.n == i);
        CHECK(memcmp(before.r, now.r, R) != 0);
        before = now;
    }
    nonce foreign = next_nonce(other);
    CHECK(!is_same_epoch(&first, &foreign) && foreign.n == 1);
    unsigned draws = seam_draws;
    next_nonce(slot);
    CHECK(seam_draws == draws + 1);
}

static void test_an_epoch_ends_by_age(void)
{
    uint64_t slot;
    seam_now_s = 1; /* a second after the boot */
    slot = make_slot();
    nonce first = next_nonce(slot);
    CHECK(hs_slot_set_epoch(arena, slot, 1, HS_EPOCH_AGE_MAX_S) == HS_OK);
    nonce aged = next_nonce(slot);
    CHECK(!is_same_epoch(&first, &aged) && aged.n == 1);
    first = aged;
    seam_now_s += HS_EPOCH_AGE_MAX_S - 1;
    nonce at_the_edge = next_nonce(slot);
    CHECK(is_same_epoch(&first, &at_the_edge) && at_the_edge.n == 2);
    seam_now_s++;
    nonce behind = next_nonce(slot);
    CHECK(!is_same_epoch(&first, &behind) && behind.n == 1);
    CHECK(hs_slot_set_epoch(arena, slot, 5, HS_EPOCH_AGE_MAX_S - 1) == HS_OK);
    nonce moved = next_nonce(slot);
    CHECK(is_same_epoch(&behind, &moved) && moved.n == 6);
    CHECK(hs_slot_set_epoch(arena, slot, 6, 1) == HS_OK);
    nonce next = next_nonce(slot);
    CHECK(!is_same_epoch(&behind, &next) && next.n == 1);
    seam_now_s = 0;
}

static void test_an_epoch_ends_by_messages(void)
{
    uint64_t slot = make_slot();
    CHECK(hs_slot_set_epoch(arena, slot, 1, 0) == HS_BAD_SLOT); /* none has begun */
    nonce first = next_nonce(slot);
    CHECK(hs_slot_set_epoch(arena, slot, HS_EPOCH_MESSAGES_MAX - 1, 0) == HS_OK);
    CHECK(hs_slot_set_epoch(arena, slot, HS_EPOCH_MESSAGES_MAX - 2, 0) == HS_BAD_SLOT);
    nonce at_the_edge = next_nonce(slot);
    CHECK(is_same_epoch(&first, &at_the_edge) && at_the_edge.n == HS_EPOCH_MESSAGES_MAX);
    nonce behind = next_nonce(slot);
    CHECK(!is_same_epoch(&first, &behind) && behind.n == 1);
    CHECK(hs_slot_set_epoch(arena, slot, UINT32_MAX, 0) == HS_OK);
    nonce next = next_nonce(slot);
    CHECK(!is_same_epoch(&behind, &next) && next.n == 1);
}

/* Column of `count` empty items. */
static uint8_t *empty_items(uint32_t count, size_t *size)
{
    *size = 4 * ((size_t)count + 2);
    uint8_t *column = calloc(1, *size);
    CHECK(column != NULL);
    hs_put_u32(column, count);
    return column;
}

static void test_a_batch_over_the_end_of_an_epoch(void)
{
    enum { ITEMS = 10, BEFORE = 4 };
    size_t size, contexts_size, room;
    uint8_t *items = empty_items(ITEMS, &size), *contexts = empty_items(1, &contexts_size);
    uint8_t statuses[ITEMS];
    uint64_t slot = make_slot();
    nonce first = next_nonce(slot);
    CHECK(hs_slot_set_epoch(arena, slot, HS_EPOCH_MESSAGES_MAX - BEFORE, 0) == HS_OK);
    room = size + ITEMS * OVERHEAD;
    uint8_t *envelopes = exact(NULL, room);
    CHECK(hs_seal_batch(arena, slot, NONE, 0, contexts, contexts_size, items, size, envelopes,
                        &room, statuses) == HS_OK);
    const uint8_t *bytes = envelopes + 4 * (ITEMS + 2);
    nonce before = nonce_at(bytes);
    for (uint32_t i = 0; i < ITEMS; i++) {
        nonce now = nonce_at(bytes + (size_t)i * OVERHEAD);
        uint32_t expected =
            i < BEFORE ? HS_EPOCH_MESSAGES_MAX - BEFORE + 1 + i : i - BEFORE + 1;
        CHECK(now.n == expected && statuses[i] == HS_OK);
        CHECK(is_same_epoch(&first, &now) == (i < BEFORE));
        CHECK(memcmp(now.r, before.r, R) == 0); /* r is drawn once in each call */
    }
    CHECK(memcmp(before.r, first.r, R) != 0);

    /* Opening follows the change of the derived key. */
    size_t opened_size = room;
    uint8_t *opened = exact(NULL, room);
    CHECK(hs_open_batch(arena, slot, NONE, 0, contexts, contexts_size, envelopes, room, opened,
                        &opened_size, statuses) == HS_OK);
    for (uint32_t i = 0; i < ITEMS; i++)
        CHECK(statuses[i] == HS_OK);
    free(items);
    free(contexts);
    free(envelopes);
    free(opened);
}

static void test_bad_random_bytes(void)
{
    uint64_t slot = make_slot();
    nonce first = next_nonce(slot), now;
    seam_random = RANDOM_FAILS;
    CHECK(seal_nothing(slot, &now) == HS_NO_RANDOM);
    seam_random = RANDOM_REAL;
    now = next_nonce(slot);
    CHECK(is_same_epoch(&first, &now) && now.n == 2);

    /* Stuck at the end of an epoch: no envelope leaves, and the old epoch does not go on. */
    CHECK(hs_slot_set_epoch(arena, slot, HS_EPOCH_MESSAGES_MAX, 0) == HS_OK);
    seam_random = RANDOM_STUCK;
    for (int i = 0; i < 3; i++)
        CHECK(seal_nothing(slot, &now) == HS_NO_RANDOM);
    seam_random = RANDOM_REAL;
    seam_draws_left = 1; /* r, but no prefix */
    CHECK(seal_nothing(slot, &now) == HS_NO_RANDOM);
    seam_draws_left = -1;
    now = next_nonce(slot);
    CHECK(!is_same_epoch(&first, &now) && now.n == 1);

    uint8_t sealed[OVERHEAD];
    seam_random = RANDOM_FAILS;
    CHECK(hs_seal_bytes(arena, slot, NONE, 0, NONE, 0, sealed) == HS_NO_RANDOM);
    seam_random = RANDOM_REAL;
}

static void test_one_envelope(void)
{
    uint64_t slot = make_slot();
    enum { CONTEXT = HS_AAD_SIZE_MAX - HS_HEADER_SIZE_MAX };
    size_t room = HS_HEADER_SIZE_MAX + OVERHEAD + HS_ITEM_SIZE_MAX;
    uint8_t *plaintext = exact(NULL, HS_ITEM_SIZE_MAX + 1), *context = exact(NULL, CONTEXT + 1);
    uint8_t *envelope = exact(NULL, room + 1), *opened = exact(NULL, room + 1);
    fill(plaintext, HS_ITEM_SIZE_MAX + 1, 10);
    fill(context, CONTEXT + 1, 11);
    const uint8_t *h = HEADER_BYTES;
    CHECK(hs_seal(arena, slot, h, HS_HEADER_SIZE_MAX, context, CONTEXT, plaintext,
                  HS_ITEM_SIZE_MAX, envelope) == HS_OK);
    CHECK(hs_open(arena, slot, HS_HEADER_SIZE_MAX, context, CONTEXT, envelope, room, opened) ==
          HS_OK);
    CHECK(memcmp(opened, plaintext, HS_ITEM_SIZE_MAX) == 0);
    CHECK(hs_seal(arena, slot, h, 0, context, 0, plaintext, HS_ITEM_SIZE_MAX + 1, envelope) ==
          HS_TOO_LARGE);
    CHECK(hs_seal(arena, slot, h, HS_HEADER_SIZE_MAX + 1, context, 0, plaintext, 0, envelope) ==
          HS_BAD_ARGUMENT);
    CHECK(hs_seal(arena, slot, h, 0, context, CONTEXT + 1, plaintext, 0, envelope) ==
          HS_BAD_ARGUMENT);
    CHECK(hs_open(arena, slot, HS_HEADER_SIZE_MAX + 1, context, 0, envelope, room, opened) ==
          HS_BAD_ARGUMENT);
    CHECK(hs_open(arena, slot, 0, context, CONTEXT + 1, envelope, room, opened) ==
          HS_BAD_ARGUMENT);
    CHECK(hs_open(arena, slot, HS_HEADER_SIZE_MAX, context, CONTEXT, envelope, room + 1,
                  opened) == HS_INVALID);
    for (size_t size = 0; size < HEADER + OVERHEAD; size++) {
        uint8_t *cut = exact(envelope, size);
        CHECK(hs_open(arena, slot, HEADER, context, CONTEXT, cut, size, opened) == HS_INVALID);
        free(cut);
    }
    free(plaintext);
    free(context);
    free(envelope);
    free(opened);
}

/* Good items among every kind of bad one: each has its own status, and the others come through. */
static void test_bad_items_in_a_batch(void)
{
    uint64_t slot = make_slot(), wrong = make_slot();
    enum { ITEMS = 7 };
    static uint8_t large[HS_ITEM_SIZE_MAX + 1];
    const uint8_t *plaintexts[ITEMS] = {large, large, large, large, large, large, large};
    size_t sizes[ITEMS] = {5, HS_ITEM_SIZE_MAX + 1, 0, HS_ITEM_SIZE_MAX, 9, 9, 9};
    size_t size, contexts_size, sealed_size, opened_size;
    uint8_t sealed_statuses[ITEMS], statuses[ITEMS];
    fill(large, sizeof large, 12);
    uint8_t *items = column_of(plaintexts, sizes, ITEMS, &size);
    uint8_t *contexts = column_of_one((const uint8_t *)"context", 7, &contexts_size);
    sealed_size = size + ITEMS * (HEADER + OVERHEAD);
    uint8_t *sealed = exact(NULL, sealed_size);
    CHECK(hs_seal_batch(arena, slot, HEADER_BYTES, HEADER, contexts, contexts_size, items, size,
                        sealed, &sealed_size, sealed_statuses) == HS_OK);
    hs_column column;
    CHECK(hs_column_parse(&column, sealed, sealed_size) == HS_OK && column.count == ITEMS);
    const uint8_t *envelopes[ITEMS];
    size_t envelope_sizes[ITEMS];
    for (uint32_t i = 0; i < ITEMS; i++) {
        CHECK(sealed_statuses[i] == (i == 1 ? HS_TOO_LARGE : HS_OK));
        const uint8_t *item = hs_column_item(&column, i, &envelope_sizes[i]);
        CHECK(envelope_sizes[i] == (i == 1 ? 0 : HEADER + OVERHEAD + sizes[i]));
        envelopes[i] = exact(item, envelope_sizes[i]);
    }
    ((uint8_t *)(uintptr_t)envelopes[4])[0] ^= 1;                          /* another header */
    ((uint8_t *)(uintptr_t)envelopes[5])[envelope_sizes[5] - 1] ^= 1;      /* a wrong tag */
    envelope_sizes[6] = HEADER + OVERHEAD - 1;                             /* too short */
    uint8_t *broken = column_of(envelopes, envelope_sizes, ITEMS, &size);
    opened_size = size;
    uint8_t *opened = exact(NULL, size);
    memset(opened, 0xaa, size);
    CHECK(hs_open_batch(arena, slot, HEADER_BYTES, HEADER, contexts, contexts_size, broken, size,
                        opened, &opened_size, statuses) == HS_OK);
    CHECK(hs_column_parse(&column, opened, opened_size) == HS_OK && column.count == ITEMS);
    for (uint32_t i = 0; i < ITEMS; i++) {
        size_t found;
        const uint8_t *item = hs_column_item(&column, i, &found);
        int is_good = i == 0 || i == 2 || i == 3;
        CHECK(statuses[i] == (is_good ? HS_OK : HS_INVALID));
        CHECK(found == (is_good ? sizes[i] : 0) && memcmp(item, large, found) == 0);
    }
    /* Of the item that was decrypted and refused nothing is left behind the column. */
    for (size_t i = opened_size; i < size; i++)
        CHECK(opened[i] == 0xaa || opened[i] == 0);

    opened_size = size;
    CHECK(hs_open_batch(arena, wrong, HEADER_BYTES, HEADER, contexts, contexts_size, broken, size,
                        opened, &opened_size, statuses) == HS_OK);
    for (uint32_t i = 0; i < ITEMS; i++)
        CHECK(statuses[i] == HS_INVALID);
    for (uint32_t i = 0; i < ITEMS; i++)
        free((void *)(uintptr_t)envelopes[i]);
    free(items);
    free(contexts);
    free(sealed);
    free(broken);
    free(opened);
}

/* A column of contexts: one for all, one each, or refused before any work. */
static void test_contexts_of_a_batch(void)
{
    enum { ITEMS = 3, CONTEXT = HS_AAD_SIZE_MAX - HS_HEADER_SIZE_MAX };
    static uint8_t large[CONTEXT + 1];
    static const struct {
        uint32_t count;
        size_t sizes[ITEMS + 1];
        hs_status expected;
    } rows[] = {
        {0, {0}, HS_BAD_ARGUMENT},
        {1, {0}, HS_OK},
        {1, {CONTEXT}, HS_OK},
        {1, {CONTEXT + 1}, HS_BAD_ARGUMENT},
        {2, {1, 1}, HS_BAD_ARGUMENT},
        {3, {1, 0, CONTEXT}, HS_OK},
        {3, {1, 0, CONTEXT + 1}, HS_BAD_ARGUMENT},
        {4, {1, 1, 1, 1}, HS_BAD_ARGUMENT},
    };
    const uint8_t *bytes[ITEMS + 1] = {large, large, large, large};
    uint64_t slot = make_slot();
    size_t size;
    uint8_t *items = empty_items(ITEMS, &size);
    nonce before = next_nonce(slot);
    for (size_t i = 0; i < COUNT(rows); i++) {
        size_t contexts_size, sealed_size = size + ITEMS * OVERHEAD, opened_size;
        uint8_t *contexts = column_of(bytes, rows[i].sizes, rows[i].count, &contexts_size);
        uint8_t *sealed = exact(NULL, sealed_size), *opened = exact(NULL, sealed_size);
        uint8_t statuses[ITEMS];
        CHECK(hs_seal_batch(arena, slot, NONE, 0, contexts, contexts_size, items, size, sealed,
                            &sealed_size, statuses) == rows[i].expected);
        nonce after = next_nonce(slot);
        CHECK(after.n == before.n + 1 + (rows[i].expected == HS_OK ? ITEMS : 0));
        before = after;
        if (rows[i].expected != HS_OK)
            memcpy(sealed, items, sealed_size = size);
        opened_size = sealed_size;
        CHECK(hs_open_batch(arena, slot, NONE, 0, contexts, contexts_size, sealed, sealed_size,
                            opened, &opened_size, statuses) == rows[i].expected);
        for (uint32_t j = 0; rows[i].expected == HS_OK && j < ITEMS; j++)
            CHECK(statuses[j] == HS_OK);
        free(contexts);
        free(sealed);
        free(opened);
    }
    free(items);
}

static void test_limits_of_a_batch(void)
{
    uint64_t slot = make_slot();
    size_t contexts_size, size;
    uint8_t *contexts = empty_items(1, &contexts_size);
    uint8_t *items = empty_items(HS_BATCH_ITEMS_MAX + 1, &size);
    size_t room = size + (size_t)HS_BATCH_ITEMS_MAX * (HS_HEADER_SIZE_MAX + OVERHEAD), used = room;
    uint8_t *sealed = exact(NULL, room), *statuses = exact(NULL, HS_BATCH_ITEMS_MAX);
    CHECK(hs_seal_batch(arena, slot, NONE, 0, contexts, contexts_size, items, size, sealed, &used,
                        statuses) == HS_BAD_ARGUMENT);
    hs_put_u32(items, HS_BATCH_ITEMS_MAX);
    size -= 4;
    used = room - 4;
    CHECK(hs_seal_batch(arena, slot, HEADER_BYTES, HS_HEADER_SIZE_MAX, contexts, contexts_size,
                        items, size, sealed, &used, statuses) == HS_OK);
    CHECK(used == room - 4);
    size_t opened_size = used - 1;
    uint8_t *opened = exact(NULL, used);
    CHECK(hs_open_batch(arena, slot, HEADER_BYTES, HS_HEADER_SIZE_MAX, contexts, contexts_size,
                        sealed, used, opened, &opened_size, statuses) == HS_BAD_ARGUMENT);
    opened_size = used;
    CHECK(hs_open_batch(arena, slot, HEADER_BYTES, HS_HEADER_SIZE_MAX, contexts, contexts_size,
                        sealed, used, opened, &opened_size, statuses) == HS_OK);
    CHECK(opened_size == size && memcmp(opened, items, size) == 0);
    used = room - 5;
    CHECK(hs_seal_batch(arena, slot, HEADER_BYTES, HS_HEADER_SIZE_MAX, contexts, contexts_size,
                        items, size, sealed, &used, statuses) == HS_BAD_ARGUMENT);
    used = SIZE_MAX;
    CHECK(hs_seal_batch(arena, slot, HEADER_BYTES, HS_HEADER_SIZE_MAX + 1, contexts,
                        contexts_size, items, size, sealed, &used, statuses) == HS_BAD_ARGUMENT);
    CHECK(hs_open_batch(arena, slot, HEADER_BYTES, HS_HEADER_SIZE_MAX + 1, contexts,
                        contexts_size, items, size, sealed, &used, statuses) == HS_BAD_ARGUMENT);
    free(contexts);
    free(items);
    free(sealed);
    free(opened);
    free(statuses);
}

/* What is sealed for the gateway itself: bytes, keys and blobs under a KEK. */
static void test_seals_under_a_kek(void)
{
    uint64_t kek = make_slot(), slot = make_slot(), same, blob;
    uint8_t *aad = exact(NULL, HS_ROW_AAD_SIZE_MAX + 1);
    uint8_t *text = exact(NULL, HS_ITEM_SIZE_MAX + 1);
    uint8_t *sealed = exact(NULL, HS_ITEM_SIZE_MAX + OVERHEAD + 1);
    fill(aad, HS_ROW_AAD_SIZE_MAX + 1, 13);
    fill(text, HS_ITEM_SIZE_MAX + 1, 14);
    CHECK(hs_seal_bytes(arena, kek, aad, HS_ROW_AAD_SIZE_MAX, text, HS_ITEM_SIZE_MAX, sealed) ==
          HS_OK);
    uint8_t *opened = exact(NULL, HS_ITEM_SIZE_MAX + OVERHEAD + 1);
    CHECK(hs_open_bytes(arena, kek, aad, HS_ROW_AAD_SIZE_MAX, sealed, HS_ITEM_SIZE_MAX + OVERHEAD,
                        opened) == HS_OK);
    CHECK(memcmp(opened, text, HS_ITEM_SIZE_MAX) == 0);
    CHECK(hs_seal_bytes(arena, kek, aad, HS_ROW_AAD_SIZE_MAX + 1, text, 0, sealed) ==
          HS_BAD_ARGUMENT);
    CHECK(hs_seal_bytes(arena, kek, aad, 0, text, HS_ITEM_SIZE_MAX + 1, sealed) ==
          HS_BAD_ARGUMENT);
    CHECK(hs_open_bytes(arena, kek, aad, HS_ROW_AAD_SIZE_MAX + 1, sealed, 64, opened) ==
          HS_INVALID);
    CHECK(hs_open_bytes(arena, kek, aad, HS_ROW_AAD_SIZE_MAX, sealed,
                        HS_ITEM_SIZE_MAX + OVERHEAD + 1, opened) == HS_INVALID);
    for (size_t size = 0; size < OVERHEAD; size++)
        CHECK(hs_open_bytes(arena, kek, aad, 0, sealed, size, opened) == HS_INVALID);

    CHECK(hs_seal_slot(arena, kek, aad, 9, slot, sealed) == HS_OK);
    CHECK(hs_open_slot(arena, kek, aad, 9, sealed, OVERHEAD + HS_KEY_SIZE, &same) == HS_OK);
    uint8_t one[HS_KEY_SIZE], other[HS_KEY_SIZE];
    CHECK(hs_slot_store(arena, slot, one) == HS_OK && hs_slot_store(arena, same, other) == HS_OK);
    CHECK(memcmp(one, other, HS_KEY_SIZE) == 0);
    size_t used = hs_arena_slots_used(arena);
    CHECK(hs_open_slot(arena, kek, aad, 8, sealed, OVERHEAD + HS_KEY_SIZE, &same) == HS_INVALID);
    CHECK(hs_open_slot(arena, slot, aad, 9, sealed, OVERHEAD + HS_KEY_SIZE, &same) == HS_INVALID);
    CHECK(hs_open_slot(arena, kek, aad, 9, sealed, OVERHEAD + HS_KEY_SIZE + 1, &same) ==
          HS_INVALID);
    CHECK(hs_open_slot(arena, kek, aad, 9, sealed, OVERHEAD + HS_KEY_SIZE - 1, &same) ==
          HS_INVALID);
    CHECK(hs_arena_slots_used(arena) == used);
    CHECK(hs_open_blob(arena, kek, aad, 9, sealed, OVERHEAD + HS_KEY_SIZE, &blob) == HS_OK);
    CHECK(hs_blob_free(arena, blob) == HS_OK);
    free(aad);
    free(text);
    free(sealed);
    free(opened);
}

static void test_hmac_of_a_slot(void)
{
    uint8_t key[HS_KEY_SIZE], expected[32], found[32];
    uint64_t slot = make_slot();
    CHECK(hs_slot_store(arena, slot, key) == HS_OK);
    CHECK(hs_hmac_sha256(key, sizeof key, HEADER_BYTES, 20, expected) == HS_OK);
    CHECK(hs_slot_hmac_sha256(arena, slot, HEADER_BYTES, 20, found) == HS_OK);
    CHECK(memcmp(found, expected, sizeof found) == 0);
    CHECK(hs_slot_hmac_sha256(arena, slot, HEADER_BYTES, HS_ITEM_SIZE_MAX + 1, found) ==
          HS_BAD_ARGUMENT);
}

int main(int count, char **words)
{
    choose_backend(count, words);
    CHECK(hs_arena_create(1 << 20, NULL, &arena) == HS_OK);
    test_nonces_in_an_epoch();
    test_an_epoch_ends_by_age();
    test_an_epoch_ends_by_messages();
    test_a_batch_over_the_end_of_an_epoch();
    test_bad_random_bytes();
    test_one_envelope();
    test_bad_items_in_a_batch();
    test_contexts_of_a_batch();
    test_limits_of_a_batch();
    test_seals_under_a_kek();
    test_hmac_of_a_slot();
    hs_arena_destroy(arena);
    return 0;
}
