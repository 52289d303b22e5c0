/* What clients can send to the C module, as a fuzz target: columns, contexts, envelopes, and sealed
 * items for a token. Whatever comes, memory is respected, statuses are of those documented, outputs
 * are columns again, and what was sealed opens.
 *
 * Every buffer has exactly the size that the caller in hsmux_native gives it. */
#include "fuzz.h"

#include "pkcs11.h"
#include "seams.h"

enum { OVERHEAD = 40, TOKEN_OVERHEAD = 28, HEADER = 24, SEED_ITEMS_MAX = 6 };
enum { OPEN_BATCH, SEAL_BATCH, OPEN, OPEN_UNDER_A_KEK, TOKEN_ENCRYPT, TOKEN_DECRYPT, OPERATIONS };

static const uint8_t HEADER_BYTES[] = "hsmux fuzz: header of 24";
static const uint8_t KEY[HS_KEY_SIZE] = "the key is the same in each run";
static hs_arena *arena;
static uint64_t slot;

/* Two columns of an input, each in memory of its own. */
typedef struct {
    uint8_t *first, *second;
    size_t first_size, second_size;
} pair;

static void check_column(const uint8_t *bytes, size_t size, uint32_t count,
                         const uint8_t *statuses)
{
    hs_column column;
    CHECK(hs_column_parse(&column, bytes, size) == HS_OK && column.count == count);
    for (uint32_t i = 0; i < count; i++) {
        size_t item_size;
        hs_column_item(&column, i, &item_size);
        CHECK(statuses[i] <= HS_TOO_LARGE && (statuses[i] == HS_OK || item_size == 0));
    }
}

static uint32_t count_of(const pair *input)
{
    hs_column column;
    return hs_column_parse(&column, input->second, input->second_size) == HS_OK ? column.count : 0;
}

static void open_batch(const pair *input, const uint8_t *items, size_t size, int must_open)
{
    uint32_t count = count_of(input);
    uint8_t *statuses = exact(NULL, count), *opened = exact(NULL, size);
    size_t opened_size = size;
    hs_status status = hs_open_batch(arena, slot, HEADER_BYTES, HEADER, input->first,
                                     input->first_size, items, size, opened, &opened_size,
                                     statuses);
    CHECK(status == HS_OK || (status == HS_BAD_ARGUMENT && !must_open));
    if (status == HS_OK)
        check_column(opened, opened_size, count, statuses);
    free(statuses);
    free(opened);
}

static void fuzz_open_batch(const pair *input)
{
    open_batch(input, input->second, input->second_size, 0);
}

static void fuzz_seal_batch(const pair *input)
{
    uint32_t count = count_of(input);
    size_t size = input->second_size + (size_t)count * (HEADER + OVERHEAD);
    uint8_t *statuses = exact(NULL, count), *sealed = exact(NULL, size);
    hs_status status = hs_seal_batch(arena, slot, HEADER_BYTES, HEADER, input->first,
                                     input->first_size, input->second, input->second_size, sealed,
                                     &size, statuses);
    CHECK(status == HS_OK || status == HS_BAD_ARGUMENT);
    if (status == HS_OK) {
        check_column(sealed, size, count, statuses);
        open_batch(input, sealed, size, 1);
    }
    free(statuses);
    free(sealed);
}

static void fuzz_open(const pair *input)
{
    uint8_t *opened = exact(NULL, input->second_size);
    hs_status status = hs_open(arena, slot, HEADER, input->first, input->first_size,
                               input->second, input->second_size, opened);
    CHECK(status == HS_OK || status == HS_INVALID ||
          (status == HS_BAD_ARGUMENT && input->first_size > HS_AAD_SIZE_MAX - HS_HEADER_SIZE_MAX));
    free(opened);
}

static void fuzz_open_under_a_kek(const pair *input)
{
    uint8_t *opened = exact(NULL, input->second_size);
    uint64_t made;
    CHECK(hs_open_bytes(arena, slot, input->first, input->first_size, input->second,
                        input->second_size, opened) <= HS_INVALID);
    if (hs_open_slot(arena, slot, input->first, input->first_size, input->second,
                     input->second_size, &made) == HS_OK)
        CHECK(hs_slot_free(arena, made) == HS_OK);
    if (hs_open_blob(arena, slot, input->first, input->first_size, input->second,
                     input->second_size, &made) == HS_OK)
        CHECK(hs_blob_free(arena, made) == HS_OK);
    CHECK(hs_arena_slots_used(arena) == 1 && hs_arena_blobs_used(arena) == 0);
    free(opened);
}

/* A module that writes all it may, and believes what it is told. */
static CK_RV token_init(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key)
{
    const CK_GCM_PARAMS *gcm = mechanism->pParameter;
    (void)session, (void)key;
    for (CK_ULONG i = 0; i < gcm->ulAADLen; i++)
        if (gcm->pAAD[i] == 0xfe)
            return CKR_DATA_INVALID;
    return CKR_OK;
}

static CK_RV token_encrypt(CK_SESSION_HANDLE session, CK_BYTE *data, CK_ULONG size,
                           CK_BYTE *output, CK_ULONG *output_size)
{
    (void)session;
    CHECK(*output_size >= size + HS_TAG_SIZE);
    memset(output, 1, *output_size);
    memcpy(output, data, size);
    *output_size = size + HS_TAG_SIZE;
    return CKR_OK;
}

static CK_RV token_decrypt(CK_SESSION_HANDLE session, CK_BYTE *data, CK_ULONG size,
                           CK_BYTE *output, CK_ULONG *output_size)
{
    (void)session;
    CHECK(*output_size >= size);
    memset(output, 2, *output_size);
    memcpy(output, data, size - HS_TAG_SIZE);
    *output_size = size - HS_TAG_SIZE;
    return data[size - 1] == 1 ? CKR_OK : CKR_GENERAL_ERROR;
}

static CK_FUNCTION_LIST token = {.version = {2, 40},
                                 .C_EncryptInit = token_init,
                                 .C_Encrypt = token_encrypt,
                                 .C_DecryptInit = token_init,
                                 .C_Decrypt = token_decrypt};

static void fuzz_token(const pair *input, int encrypting)
{
    uint32_t count = count_of(input);
    size_t size = input->second_size + (size_t)count * TOKEN_OVERHEAD;
    size_t ivs_size = HS_IV_SIZE * (size_t)count;
    uint8_t *outputs = exact(NULL, size), *ivs = exact(NULL, ivs_size);
    uint64_t *codes = (uint64_t *)(void *)exact(NULL, count * sizeof *codes);
    memset(ivs, 3, ivs_size);
    hs_p11_batch batch = {.encrypting = encrypting,
                          .general_error_is_data = 1,
                          .ivs = ivs,
                          .ivs_size = encrypting ? ivs_size : 0,
                          .aads = input->first,
                          .aads_size = input->first_size,
                          .items = input->second,
                          .items_size = input->second_size};
    hs_status status = hs_p11_gcm(&token, &batch, outputs, &size, codes);
    CHECK(status == HS_OK || status == HS_BAD_ARGUMENT);
    hs_column column;
    if (status == HS_OK)
        CHECK(hs_column_parse(&column, outputs, size) == HS_OK && column.count == count);
    free(outputs);
    free(ivs);
    free(codes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 3)
        return 0;
    size_t first_size = (size_t)data[1] << 8 | data[2];
    if (first_size > size - 3)
        first_size = size - 3;
    pair input = {exact(data + 3, first_size), exact(data + 3 + first_size, size - 3 - first_size),
                  first_size, size - 3 - first_size};
    switch (data[0] % OPERATIONS) {
    case OPEN_BATCH:
        fuzz_open_batch(&input);
        break;
    case SEAL_BATCH:
        fuzz_seal_batch(&input);
        break;
    case OPEN:
        fuzz_open(&input);
        break;
    case OPEN_UNDER_A_KEK:
        fuzz_open_under_a_kek(&input);
        break;
    default:
        fuzz_token(&input, data[0] % OPERATIONS == TOKEN_ENCRYPT);
        break;
    }
    free(input.first);
    free(input.second);
    return 0;
}

int LLVMFuzzerInitialize(int *count, char ***words)
{
    /* libFuzzer's own words are not for us. */
    const char *backend = *count > 1 && (*words)[1][0] != '-' ? (*words)[1] : NULL;
    CHECK(hs_select_backend(backend, NULL) == HS_OK);
    CHECK(hs_arena_create(1 << 20, NULL, &arena) == HS_OK);
    CHECK(hs_slot_load(arena, KEY, &slot) == HS_OK);
    seam_random = RANDOM_REPEATABLE;
    return 0;
}

/* The second column of a seed, made from plaintexts: what the operation takes. */
static size_t seed_second(int operation, const uint8_t *items, size_t items_size, uint32_t count,
                          uint8_t *made, size_t room)
{
    static const uint8_t context[12] = {0, 0, 0, 1}, ivs[HS_IV_SIZE * SEED_ITEMS_MAX];
    uint8_t statuses[SEED_ITEMS_MAX];
    uint64_t codes[SEED_ITEMS_MAX];
    hs_p11_batch batch = {.encrypting = 1,
                          .ivs = ivs,
                          .ivs_size = HS_IV_SIZE * (size_t)count,
                          .aads = context,
                          .aads_size = sizeof context,
                          .items = items,
                          .items_size = items_size};
    switch (operation) {
    case OPEN_BATCH:
        CHECK(hs_seal_batch(arena, slot, HEADER_BYTES, HEADER, context, sizeof context, items,
                            items_size, made, &room, statuses) == HS_OK);
        return room;
    case OPEN:
        CHECK(hs_seal(arena, slot, HEADER_BYTES, HEADER, context, sizeof context, items,
                      items_size, made) == HS_OK);
        return HEADER + OVERHEAD + items_size;
    case OPEN_UNDER_A_KEK:
        CHECK(hs_seal_bytes(arena, slot, context, sizeof context, KEY, sizeof KEY, made) == HS_OK);
        return OVERHEAD + sizeof KEY;
    case TOKEN_DECRYPT:
        CHECK(hs_p11_gcm(&token, &batch, made, &room, codes) == HS_OK);
        return room;
    default:
        memcpy(made, items, items_size);
        return items_size;
    }
}

size_t fuzz_seed(uint64_t number, uint8_t *data)
{
    uint64_t state = number * 2 + 1;
    uint8_t bytes[64];
    const uint8_t *items[SEED_ITEMS_MAX];
    size_t sizes[SEED_ITEMS_MAX], items_size;
    fill(bytes, sizeof bytes, number);
    uint32_t count = (uint32_t)(next_number(&state) >> 32) % (SEED_ITEMS_MAX + 1);
    for (uint32_t i = 0; i < count; i++) {
        items[i] = bytes;
        sizes[i] = (size_t)(next_number(&state) >> 58);
    }
    uint8_t *plaintexts = column_of(items, sizes, count, &items_size);
    /* One context for all, which is what the seeds are sealed with: the column's own bytes where an
     * operation takes one text. */
    static const uint8_t context[12] = {0, 0, 0, 1};
    data[0] = (uint8_t)(number % OPERATIONS);
    data[1] = 0;
    data[2] = sizeof context;
    memcpy(data + 3, context, sizeof context);
    size_t head = 3 + sizeof context;
    size_t size = seed_second(data[0], plaintexts, items_size, count, data + head,
                              FUZZ_SEED_SIZE_MAX - head);
    free(plaintexts);
    return head + size;
}
