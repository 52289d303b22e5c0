/* XAES-256-GCM against the accumulated test of its specification (C2SP): 10,000 rounds. */
#include <openssl/evp.h>

#include "check.h"

enum { ROUNDS = 10000, LENGTH_MAX = 255 };

static const char EXPECTED[] = "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939";

/* The random stream: SHAKE128 of nothing, squeezed once. OpenSSL 3.0 cannot squeeze twice. */
static uint8_t *make_stream(size_t size)
{
    uint8_t *stream = exact(NULL, size);
    EVP_MD_CTX *shake = EVP_MD_CTX_new();
    CHECK(shake != NULL && EVP_DigestInit_ex(shake, EVP_shake128(), NULL) == 1);
    CHECK(EVP_DigestFinalXOF(shake, stream, size) == 1);
    EVP_MD_CTX_free(shake);
    return stream;
}

static void test_accumulated(void)
{
    uint8_t *stream = make_stream((size_t)ROUNDS * (HS_KEY_SIZE + HS_NONCE_SIZE + 512));
    uint8_t *next = stream, digest[32];
    char text[65];
    EVP_MD_CTX *accumulated = EVP_MD_CTX_new();
    CHECK(accumulated != NULL && EVP_DigestInit_ex(accumulated, EVP_shake128(), NULL) == 1);
    for (int i = 0; i < ROUNDS; i++) {
        uint8_t sealed[LENGTH_MAX + HS_TAG_SIZE], opened[LENGTH_MAX];
        const uint8_t *key = next, *nonce = key + HS_KEY_SIZE;
        size_t size = nonce[HS_NONCE_SIZE];
        const uint8_t *plaintext = nonce + HS_NONCE_SIZE + 1;
        size_t aad_size = plaintext[size];
        const uint8_t *aad = plaintext + size + 1;
        next += HS_KEY_SIZE + HS_NONCE_SIZE + 2 + size + aad_size;
        CHECK(hs_xaes_seal(key, nonce, aad, aad_size, plaintext, size, sealed) == HS_OK);
        CHECK(hs_xaes_open(key, nonce, aad, aad_size, sealed, size + HS_TAG_SIZE, opened) ==
              HS_OK);
        CHECK(memcmp(opened, plaintext, size) == 0);
        CHECK(EVP_DigestUpdate(accumulated, sealed, size + HS_TAG_SIZE) == 1);
    }
    CHECK(EVP_DigestFinalXOF(accumulated, digest, sizeof digest) == 1);
    for (size_t i = 0; i < sizeof digest; i++)
        snprintf(text + 2 * i, 3, "%02x", digest[i]);
    CHECK(strcmp(text, EXPECTED) == 0);
    EVP_MD_CTX_free(accumulated);
    free(stream);
}

static void test_limits(void)
{
    uint8_t key[HS_KEY_SIZE] = {1}, nonce[HS_NONCE_SIZE] = {2}, tag[HS_TAG_SIZE];
    uint8_t *bytes = exact(NULL, HS_ITEM_SIZE_MAX + 1);
    uint8_t *output = exact(NULL, HS_ITEM_SIZE_MAX + 1 + HS_TAG_SIZE);
    fill(bytes, HS_ITEM_SIZE_MAX + 1, 8);
    CHECK(hs_xaes_seal(key, nonce, bytes, 0, bytes, HS_ITEM_SIZE_MAX, output) == HS_OK);
    CHECK(hs_xaes_seal(key, nonce, bytes, 0, bytes, HS_ITEM_SIZE_MAX + 1, output) ==
          HS_BAD_ARGUMENT);
    CHECK(hs_xaes_seal(key, nonce, bytes, HS_AAD_SIZE_MAX + 1, bytes, 0, output) ==
          HS_BAD_ARGUMENT);
    CHECK(hs_xaes_open(key, nonce, bytes, 0, tag, HS_TAG_SIZE - 1, output) == HS_INVALID);
    free(bytes);
    free(output);
}

int main(int count, char **words)
{
    choose_backend(count, words);
    test_accumulated();
    test_limits();
    return 0;
}
