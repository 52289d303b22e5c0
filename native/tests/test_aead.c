/* AES-256-GCM and HMAC-SHA-256: both backends against each other, limits, and memory that is read
 * or written beyond its end. */
#include "check.h"

enum { SIZE_MAX_HERE = 1100 };

static uint8_t key[HS_KEY_SIZE], iv[HS_IV_SIZE];

static void seal_at_a_fence(const fenced memory[3], const char *name, size_t size, size_t aad_size,
                            uint8_t *sealed)
{
    uint8_t *aad = last(memory[0], aad_size), *plaintext = last(memory[1], size);
    uint8_t *output = last(memory[2], size + HS_TAG_SIZE);
    fill(aad, aad_size, 1);
    fill(plaintext, size, 2);
    CHECK(hs_select_backend(name, NULL) == HS_OK);
    CHECK(hs_gcm_seal(key, iv, aad, aad_size, plaintext, size, output) == HS_OK);
    memcpy(sealed, output, size + HS_TAG_SIZE);
    uint8_t *opened = last(memory[1], size);
    memset(opened, 0, size);
    CHECK(hs_gcm_open(key, iv, aad, aad_size, output, size + HS_TAG_SIZE, opened) == HS_OK);
    uint8_t expected[SIZE_MAX_HERE];
    fill(expected, size, 2);
    CHECK(memcmp(opened, expected, size) == 0);
}

/* Every size up to a few of the widest blocks, against pages that fault. */
static void test_backends_agree(int with_ipsec)
{
    fenced memory[] = {fence(SIZE_MAX_HERE), fence(SIZE_MAX_HERE),
                       fence(SIZE_MAX_HERE + HS_TAG_SIZE)};
    static uint8_t first[SIZE_MAX_HERE + HS_TAG_SIZE], second[sizeof first];
    for (size_t size = 0; size < SIZE_MAX_HERE; size++) {
        size_t aad_size = size * 7 % SIZE_MAX_HERE;
        fill(key, sizeof key, size);
        fill(iv, sizeof iv, size + 1);
        seal_at_a_fence(memory, "openssl", size, aad_size, first);
        if (!with_ipsec)
            continue;
        seal_at_a_fence(memory, "ipsec-mb", size, aad_size, second);
        CHECK(memcmp(first, second, size + HS_TAG_SIZE) == 0);
    }
}

static void test_limits(void)
{
    size_t room = HS_ITEM_SIZE_MAX + HS_TAG_SIZE + 1;
    uint8_t *plaintext = exact(NULL, room), *sealed = exact(NULL, room + HS_TAG_SIZE);
    uint8_t *aad = exact(NULL, HS_AAD_SIZE_MAX + 1);
    fill(plaintext, room, 3);
    fill(aad, HS_AAD_SIZE_MAX + 1, 4);
    CHECK(hs_gcm_seal(key, iv, aad, HS_AAD_SIZE_MAX, plaintext, HS_ITEM_SIZE_MAX, sealed) ==
          HS_OK);
    CHECK(hs_gcm_open(key, iv, aad, HS_AAD_SIZE_MAX, sealed, HS_ITEM_SIZE_MAX + HS_TAG_SIZE,
                      plaintext) == HS_OK);
    CHECK(hs_gcm_open(key, iv, aad, HS_AAD_SIZE_MAX, sealed, HS_ITEM_SIZE_MAX + HS_TAG_SIZE + 1,
                      plaintext) == HS_INVALID);
    CHECK(hs_gcm_seal(key, iv, aad, 0, plaintext, HS_ITEM_SIZE_MAX + 1, sealed) ==
          HS_BAD_ARGUMENT);
    CHECK(hs_gcm_seal(key, iv, aad, HS_AAD_SIZE_MAX + 1, plaintext, 0, sealed) ==
          HS_BAD_ARGUMENT);
    CHECK(hs_gcm_open(key, iv, aad, HS_AAD_SIZE_MAX + 1, sealed, 16, plaintext) == HS_INVALID);
    for (size_t size = 0; size < HS_TAG_SIZE; size++)
        CHECK(hs_gcm_open(key, iv, aad, 0, sealed, size, plaintext) == HS_INVALID);
    free(plaintext);
    free(sealed);
    free(aad);
}

/* Every bit of ciphertext, tag, IV and associated data; what does not open leaves no plaintext. */
static void test_forgeries(void)
{
    uint8_t aad[5], plaintext[40], sealed[sizeof plaintext + HS_TAG_SIZE], opened[sizeof sealed];
    static const uint8_t zeros[sizeof plaintext];
    fill(aad, sizeof aad, 5);
    fill(plaintext, sizeof plaintext, 6);
    CHECK(hs_gcm_seal(key, iv, aad, sizeof aad, plaintext, sizeof plaintext, sealed) == HS_OK);
    struct {
        uint8_t *bytes;
        size_t size;
    } parts[] = {{sealed, sizeof sealed}, {aad, sizeof aad}, {iv, sizeof iv}, {key, sizeof key}};
    for (size_t part = 0; part < COUNT(parts); part++)
        for (size_t bit = 0; bit < 8 * parts[part].size; bit++) {
            uint8_t mask = (uint8_t)(1 << bit % 8);
            memset(opened, 0xaa, sizeof opened);
            parts[part].bytes[bit / 8] ^= mask;
            CHECK(hs_gcm_open(key, iv, aad, sizeof aad, sealed, sizeof sealed, opened) ==
                  HS_INVALID);
            parts[part].bytes[bit / 8] ^= mask;
            CHECK(memcmp(opened, zeros, sizeof plaintext) == 0);
        }
    CHECK(hs_gcm_open(key, iv, aad, sizeof aad, sealed, sizeof sealed, opened) == HS_OK);
}

static void test_hmac(void)
{
    uint8_t mac[32], *bytes = exact(NULL, HS_ITEM_SIZE_MAX + 1);
    fill(bytes, HS_ITEM_SIZE_MAX + 1, 7);
    CHECK(hs_hmac_sha256(bytes, 0, bytes, 0, mac) == HS_OK);
    CHECK(hs_hmac_sha256(bytes, HS_AAD_SIZE_MAX, bytes, HS_ITEM_SIZE_MAX, mac) == HS_OK);
    CHECK(hs_hmac_sha256(bytes, HS_AAD_SIZE_MAX + 1, bytes, 0, mac) == HS_BAD_ARGUMENT);
    CHECK(hs_hmac_sha256(bytes, 0, bytes, HS_ITEM_SIZE_MAX + 1, mac) == HS_BAD_ARGUMENT);
    free(bytes);
}

static void test_before_a_choice(void)
{
    uint8_t bytes[64] = {0};
    CHECK(strcmp(hs_backend(), "") == 0);
    CHECK(hs_gcm_seal(bytes, bytes, bytes, 0, bytes, 0, bytes) == HS_BAD_ARGUMENT);
    CHECK(hs_gcm_open(bytes, bytes, bytes, 0, bytes, 16, bytes) == HS_INVALID);
}

int main(int count, char **words)
{
    test_before_a_choice();
    choose_backend(count, words);
    int with_ipsec = strcmp(words[1], "ipsec-mb") == 0;
    CHECK(strncmp(hs_backend(), words[1], strlen(words[1])) == 0);
    test_backends_agree(with_ipsec);
    choose_backend(count, words);
    test_limits();
    test_forgeries();
    test_hmac();
    return 0;
}
