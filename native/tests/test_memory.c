/* No memory for OpenSSL: said as such, and never taken for a ciphertext that does not open. */
#include <openssl/crypto.h>

#include "check.h"

static long left = -1; /* allocations until none succeeds; -1: all do */

static int is_over(void)
{
    if (left < 0)
        return 0;
    return left == 0 || --left == 0;
}

static void *test_malloc(size_t size, const char *file, int line)
{
    (void)file, (void)line;
    return is_over() ? NULL : malloc(size);
}

static void *test_realloc(void *memory, size_t size, const char *file, int line)
{
    (void)file, (void)line;
    return is_over() ? NULL : realloc(memory, size);
}

static void test_free(void *memory, const char *file, int line)
{
    (void)file, (void)line;
    free(memory);
}

static uint8_t key[HS_KEY_SIZE], iv[HS_IV_SIZE], text[20], sealed[36], output[36];

static hs_status seal(void)
{
    return hs_gcm_seal(key, iv, key, 8, text, sizeof text, output);
}

static hs_status open_right(void)
{
    return hs_gcm_open(key, iv, key, 8, sealed, sizeof sealed, output);
}

static hs_status open_wrong(void)
{
    return hs_gcm_open(key, iv, key, 9, sealed, sizeof sealed, output);
}

static hs_status mac(void)
{
    return hs_hmac_sha256(key, sizeof key, text, sizeof text, output);
}

static void check(hs_status (*operation)(void), hs_status expected)
{
    long allocations = 1;
    static const uint8_t zeros[sizeof text];
    for (;; allocations++) {
        memset(output, 0, sizeof output);
        left = allocations;
        hs_status status = operation();
        int was_enough = left > 0;
        left = -1;
        CHECK(status == HS_NO_MEMORY || status == expected);
        if (status == HS_NO_MEMORY && operation == open_right)
            CHECK(memcmp(output, zeros, sizeof text) == 0);
        CHECK(operation() == expected);
        if (was_enough)
            break;
        CHECK(allocations < 1000);
    }
    CHECK(allocations > 1);
}

int main(void)
{
    CHECK(CRYPTO_set_mem_functions(test_malloc, test_realloc, test_free) == 1);
    CHECK(hs_select_backend("openssl", NULL) == HS_OK);
    CHECK(hs_gcm_seal(key, iv, key, 8, text, sizeof text, sealed) == HS_OK);
    check(seal, HS_OK);
    check(open_right, HS_OK);
    check(open_wrong, HS_INVALID);
    check(mac, HS_OK);
    return 0;
}
