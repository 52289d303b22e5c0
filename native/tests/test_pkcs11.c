/* The PKCS#11 loop over a module that misbehaves. */
#include <time.h>

#include "check.h"
#include "pkcs11.h"

enum { ITEMS = 5, OVERHEAD = HS_IV_SIZE + HS_TAG_SIZE, SESSION = 1, KEY = 2 };

static void *functions;
static const uint8_t NONE[12] = {0, 0, 0, 1}; /* a column of one empty text */

/* A call and all its memory, each part exactly as large as it must be. */
typedef struct {
    hs_p11_batch batch;
    uint8_t *items, *aads, *ivs, *outputs;
    size_t outputs_size;
    uint64_t codes[ITEMS];
    uint32_t progress;
    hs_column column;
} call;

static const size_t SIZES[ITEMS] = {0, 1, 40, 300, 70000};

static void begin(call *now, int encrypting, const uint8_t *items, size_t items_size)
{
    memset(now, 0, sizeof *now);
    now->items = exact(items, items_size);
    now->aads = exact(NONE, sizeof NONE);
    now->ivs = exact(NULL, ITEMS * HS_IV_SIZE);
    fill(now->ivs, ITEMS * HS_IV_SIZE, 15);
    now->outputs_size = items_size + ITEMS * OVERHEAD;
    now->outputs = exact(NULL, now->outputs_size);
    now->progress = 99;
    now->batch = (hs_p11_batch){.encrypting = encrypting,
                                .session = SESSION,
                                .key = KEY,
                                .ivs = now->ivs,
                                .ivs_size = encrypting ? ITEMS * HS_IV_SIZE : 0,
                                .aads = now->aads,
                                .aads_size = sizeof NONE,
                                .items = now->items,
                                .items_size = items_size,
                                .progress = &now->progress};
}

static hs_status run(call *now)
{
    memset(now->codes, 0xee, sizeof now->codes);
    memset(now->outputs, 0xaa, now->outputs_size);
    return hs_p11_gcm(functions, &now->batch, now->outputs, &now->outputs_size, now->codes);
}

static void end(call *now)
{
    free(now->items);
    free(now->aads);
    free(now->ivs);
    free(now->outputs);
}

/* From the next item on; the module counts items anew when the text changes. */
static void behave(const char *how)
{
    static unsigned times;
    char text[64];
    snprintf(text, sizeof text, "%s #%u", how, ++times);
    CHECK(setenv("FAKE_PKCS11", text, 1) == 0);
}

static void make_plaintexts(call *now)
{
    static uint8_t bytes[70000];
    const uint8_t *items[ITEMS] = {bytes, bytes, bytes, bytes, bytes};
    size_t size;
    fill(bytes, sizeof bytes, 16);
    uint8_t *column = column_of(items, SIZES, ITEMS, &size);
    begin(now, 1, column, size);
    free(column);
}

/* What was sealed well, as the input of the way back. */
static void make_sealed(call *now)
{
    call sealing;
    behave("");
    make_plaintexts(&sealing);
    CHECK(run(&sealing) == HS_OK);
    begin(now, 0, sealing.outputs, sealing.outputs_size);
    end(&sealing);
}

static void test_round_trip(void)
{
    call sealing, opening;
    make_plaintexts(&sealing);
    make_sealed(&opening);
    CHECK(run(&opening) == HS_OK && opening.progress == 0);
    for (int i = 0; i < ITEMS; i++)
        CHECK(opening.codes[i] == CKR_OK);
    CHECK(opening.outputs_size == sealing.batch.items_size);
    CHECK(memcmp(opening.outputs, sealing.items, opening.outputs_size) == 0);
    /* The envelopes have the IVs they were to have. */
    hs_column sealed;
    CHECK(hs_column_parse(&sealed, opening.items, opening.batch.items_size) == HS_OK);
    for (uint32_t i = 0; i < ITEMS; i++) {
        size_t size;
        const uint8_t *item = hs_column_item(&sealed, i, &size);
        CHECK(size == SIZES[i] + OVERHEAD);
        CHECK(memcmp(item, sealing.ivs + i * HS_IV_SIZE, HS_IV_SIZE) == 0);
    }
    end(&sealing);
    end(&opening);
}

#define BAD HS_P11_BAD_OUTPUT
#define NOT HS_P11_NOT_STARTED
#define DATA CKR_ENCRYPTED_DATA_INVALID

/* One row a misbehaviour, at the third item: codes both ways. */
static const struct {
    const char *how;
    int general_error_is_data;
    uint64_t sealing[ITEMS], opening[ITEMS];
} rows[] = {
    {"", 0, {0}, {0}},
    {"short:3", 0, {0, 0, BAD, NOT, NOT}, {0, 0, BAD, NOT, NOT}},
    {"long:3", 0, {0, 0, BAD, NOT, NOT}, {0, 0, BAD, NOT, NOT}},
    {"huge:3", 0, {0, 0, BAD, NOT, NOT}, {0, 0, BAD, NOT, NOT}},
    {"iv:3", 0, {0, 0, BAD, NOT, NOT}, {0, 0, BAD, NOT, NOT}},
    {"flip:3", 0, {0}, {0}},
    {"code=0x30:3", 0, {0, 0, 0x30, NOT, NOT}, {0, 0, 0x30, NOT, NOT}},
    {"code=0x150:3", 0, {0, 0, 0x150, NOT, NOT}, {0, 0, 0x150, NOT, NOT}},
    {"code=0x5:3", 0, {0, 0, 5, NOT, NOT}, {0, 0, 5, NOT, NOT}},
    {"code=0x5:3", 1, {0, 0, 5, NOT, NOT}, {0, 0, 5, 0, 0}},
    {"code=0x20:3", 0, {0, 0, 0x20, 0, 0}, {0, 0, 0x20, 0, 0}},
    {"code=0x21:3", 0, {0, 0, 0x21, 0, 0}, {0, 0, 0x21, 0, 0}},
    {"code=0x40:3", 0, {0, 0, 0x40, NOT, NOT}, {0, 0, 0x40, 0, 0}},
    {"code=0x41:3", 0, {0, 0, 0x41, NOT, NOT}, {0, 0, 0x41, 0, 0}},
    {"init-code:1", 0, {0x60, NOT, NOT, NOT, NOT}, {0x60, NOT, NOT, NOT, NOT}},
    /* A vendor's code, and codes that would pass for the loop's own. */
    {"code=0x80000001:3", 0, {0, 0, 0x80000001, NOT, NOT}, {0, 0, 0x80000001, NOT, NOT}},
    {"code=0xffffffff00000000:3", 0, {0, 0, BAD, NOT, NOT}, {0, 0, BAD, NOT, NOT}},
    {"code=0xffffffff00000002:3", 0, {0, 0, BAD, NOT, NOT}, {0, 0, BAD, NOT, NOT}},
    {"code=0x100000000:3", 0, {0, 0, BAD, NOT, NOT}, {0, 0, BAD, NOT, NOT}},
};

static void check_codes(call *now, const char *how, const uint64_t *expected)
{
    CHECK(run(now) == HS_OK && now->progress == 0);
    CHECK(hs_column_parse(&now->column, now->outputs, now->outputs_size) == HS_OK);
    CHECK(now->column.count == ITEMS);
    for (uint32_t i = 0; i < ITEMS; i++) {
        size_t size, overhead = now->batch.encrypting ? OVERHEAD : 0;
        hs_column_item(&now->column, i, &size);
        if (now->codes[i] != expected[i] ||
            size != (expected[i] == CKR_OK ? SIZES[i] + overhead : 0)) {
            fprintf(stderr, "%s, item %u: code 0x%llx, %zu bytes\n", how, i,
                    (unsigned long long)now->codes[i], size);
            exit(1);
        }
    }
}

static void test_misbehaviour(void)
{
    for (size_t i = 0; i < COUNT(rows); i++) {
        call sealing, opening;
        make_sealed(&opening);
        make_plaintexts(&sealing);
        sealing.batch.general_error_is_data = rows[i].general_error_is_data;
        opening.batch.general_error_is_data = rows[i].general_error_is_data;
        behave(rows[i].how);
        check_codes(&sealing, rows[i].how, rows[i].sealing);
        behave(rows[i].how);
        check_codes(&opening, rows[i].how, rows[i].opening);
        end(&sealing);
        end(&opening);
    }
    behave("");
}

/* Items that do not open fail alone, and leave no plaintext in the buffer. */
static void test_bad_items(void)
{
    call opening;
    make_sealed(&opening);
    hs_column sealed;
    CHECK(hs_column_parse(&sealed, opening.items, opening.batch.items_size) == HS_OK);
    size_t size;
    for (uint32_t i = 1; i < ITEMS; i += 3) {
        const uint8_t *item = hs_column_item(&sealed, i, &size);
        opening.items[item - opening.items + (ptrdiff_t)size - 1] ^= 1;
    }
    static const uint64_t expected[ITEMS] = {0, DATA, 0, 0, DATA};
    size_t room = opening.outputs_size;
    check_codes(&opening, "changed", expected);
    for (size_t i = opening.outputs_size; i < room; i++)
        CHECK(opening.outputs[i] == 0 || opening.outputs[i] == 0xaa || opening.outputs[i] == 0xee);
    end(&opening);

    /* Shorter than IV and tag: never shown to the module. */
    static const uint8_t bytes[OVERHEAD];
    const uint8_t *items[ITEMS] = {bytes, bytes, bytes, bytes, bytes};
    static const size_t sizes[ITEMS] = {0, 11, 12, 27, 28};
    uint8_t *column = column_of(items, sizes, ITEMS, &size);
    begin(&opening, 0, column, size);
    behave("crash:2");
    CHECK(run(&opening) == HS_OK);
    for (int i = 0; i < ITEMS - 1; i++)
        CHECK(opening.codes[i] == CKR_ENCRYPTED_DATA_LEN_RANGE);
    CHECK(opening.codes[ITEMS - 1] == CKR_ENCRYPTED_DATA_INVALID);
    behave("");
    free(column);
    end(&opening);
}

static void test_deadlines(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    uint64_t past = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    uint64_t future = past + 3600ull * 1000000000u;
    uint64_t each[ITEMS] = {future, past, 0, past, future};
    const uint64_t late = HS_P11_DEADLINE;
    const uint64_t expected[ITEMS] = {0, late, 0, late, 0};
    const uint64_t all_late[ITEMS] = {late, late, late, late, late};
    const uint64_t none_late[ITEMS] = {0};
    call sealing;
    make_plaintexts(&sealing);
    sealing.batch.deadlines_ns = each;
    sealing.batch.deadlines_count = ITEMS;
    check_codes(&sealing, "each", expected);
    sealing.outputs_size = sealing.batch.items_size + ITEMS * OVERHEAD;
    sealing.batch.deadlines_ns = &past;
    sealing.batch.deadlines_count = 1;
    check_codes(&sealing, "past", all_late);
    sealing.outputs_size = sealing.batch.items_size + ITEMS * OVERHEAD;
    sealing.batch.deadlines_ns = &future;
    check_codes(&sealing, "future", none_late);
    /* What comes after a fault was not started, however late it is. */
    sealing.outputs_size = sealing.batch.items_size + ITEMS * OVERHEAD;
    sealing.batch.deadlines_ns = each;
    sealing.batch.deadlines_count = ITEMS;
    behave("code=0x30:1");
    const uint64_t stopped[ITEMS] = {0x30, NOT, NOT, NOT, NOT};
    check_codes(&sealing, "stopped", stopped);
    behave("");
    end(&sealing);
}

/* Each way for a batch to be wrong; nothing is written then. */
static void test_bad_batches(void)
{
    enum { GOOD, ROOM, IVS, NO_IVS, AADS, DEADLINES, ITEMS_CUT, AADS_CUT, LARGE, WAYS };
    for (int way = 0; way < WAYS; way++) {
        call now;
        make_plaintexts(&now);
        uint64_t deadlines[ITEMS + 1] = {0};
        static const uint8_t two[16] = {0, 0, 0, 2};
        size_t room = now.outputs_size;
        now.batch.deadlines_ns = deadlines;
        now.outputs_size -= way == ROOM;
        now.batch.ivs_size -= way == IVS;
        now.batch.ivs_size = way == NO_IVS ? 0 : now.batch.ivs_size;
        if (way == AADS) {
            now.batch.aads = two;
            now.batch.aads_size = sizeof two;
        }
        now.batch.deadlines_count = way == DEADLINES ? ITEMS + 1 : 0;
        now.batch.items_size -= way == ITEMS_CUT;
        now.batch.aads_size -= way == AADS_CUT;
        if (way == LARGE)
            now.batch.items_size = (size_t)UINT32_MAX + 1;
        size_t before = now.outputs_size;
        memset(now.outputs, 0xaa, room);
        hs_status status =
            hs_p11_gcm(functions, &now.batch, now.outputs, &now.outputs_size, now.codes);
        CHECK(status == (way == GOOD ? HS_OK : HS_BAD_ARGUMENT));
        for (size_t i = 0; way != GOOD && i < room; i++)
            CHECK(now.outputs[i] == 0xaa);
        CHECK(way == GOOD || now.outputs_size == before);
        end(&now);
    }
}

static void test_one(void)
{
    uint8_t iv[HS_IV_SIZE] = {1}, text[3] = "abc", sealed[19], opened[19];
    size_t size = sizeof sealed;
    CHECK(hs_p11_gcm_one(functions, 1, SESSION, KEY, iv, text, 0, text, 3, sealed, &size) ==
          CKR_OK);
    CHECK(size == 19);
    CHECK(hs_p11_gcm_one(functions, 0, SESSION, KEY, iv, text, 0, sealed, 19, opened, &size) ==
          CKR_OK);
    CHECK(size == 3 && memcmp(opened, text, 3) == 0);
    size = 18;
    CHECK(hs_p11_gcm_one(functions, 1, SESSION, KEY, iv, text, 0, text, 3, sealed, &size) ==
          CKR_BUFFER_TOO_SMALL);
    CHECK(size == 0);
    size = 18;
    CHECK(hs_p11_gcm_one(functions, 0, SESSION, KEY, iv, text, 0, sealed, 19, opened, &size) ==
          CKR_BUFFER_TOO_SMALL);
    size = SIZE_MAX;
    CHECK(hs_p11_gcm_one(functions, 1, SESSION, KEY, iv, text, 0, text, SIZE_MAX - 3, sealed,
                         &size) == CKR_DATA_LEN_RANGE);
    size = SIZE_MAX;
    CHECK(hs_p11_gcm_one(functions, 0, SESSION, KEY, iv, text, SIZE_MAX, sealed, 19, opened,
                         &size) == CKR_ENCRYPTED_DATA_LEN_RANGE);
    size = 15;
    CHECK(hs_p11_gcm_one(functions, 0, SESSION, KEY, iv, text, 0, sealed, 15, opened, &size) ==
          CKR_ENCRYPTED_DATA_LEN_RANGE);
}

static void test_modules_that_are_none(const char *path)
{
    void *found = NULL;
    static const char *const ways[] = {"no-list", "null-list", "no-decrypt"};
    CHECK(hs_p11_open("/nonexistent/module.so", &found) == HS_NOT_FOUND);
    CHECK(hs_p11_open("libc.so.6", &found) == HS_NOT_FOUND);
    for (size_t i = 0; i < COUNT(ways); i++) {
        setenv("FAKE_PKCS11", ways[i], 1);
        CHECK(hs_p11_open(path, &found) == HS_NOT_FOUND);
    }
    CHECK(found == NULL);
    behave("");
}

int main(int count, char **words)
{
    CHECK(count == 2);
    test_modules_that_are_none(words[1]);
    CHECK(hs_p11_open(words[1], &functions) == HS_OK);
    test_round_trip();
    test_misbehaviour();
    test_bad_items();
    test_deadlines();
    test_bad_batches();
    test_one();
    return 0;
}
