/* Known-answer tests, run on a backend before it is chosen and again on request.
 *
 * Each test computes an answer and compares it with one that was published by somebody else; with
 * `corrupt` set, the expectation is changed by one bit first, so that the test must fail: that is
 * how it is shown that it can. */
#include <openssl/crypto.h>
#include <string.h>

#include "internal.h"

/* McGrew and Viega, The Galois/Counter Mode of Operation, test case 16 (AES-256, with AAD). */
static const uint8_t gcm_key[] = {
    0xfe, 0xff, 0xe9, 0x92, 0x86, 0x65, 0x73, 0x1c, 0x6d, 0x6a, 0x8f, 0x94, 0x67, 0x30, 0x83, 0x08,
    0xfe, 0xff, 0xe9, 0x92, 0x86, 0x65, 0x73, 0x1c, 0x6d, 0x6a, 0x8f, 0x94, 0x67, 0x30, 0x83, 0x08};
static const uint8_t gcm_iv[] = {0xca, 0xfe, 0xba, 0xbe, 0xfa, 0xce,
                                 0xdb, 0xad, 0xde, 0xca, 0xf8, 0x88};
static const uint8_t gcm_aad[] = {0xfe, 0xed, 0xfa, 0xce, 0xde, 0xad, 0xbe, 0xef, 0xfe, 0xed,
                                  0xfa, 0xce, 0xde, 0xad, 0xbe, 0xef, 0xab, 0xad, 0xda, 0xd2};
static const uint8_t gcm_plaintext[] = {
    0xd9, 0x31, 0x32, 0x25, 0xf8, 0x84, 0x06, 0xe5, 0xa5, 0x59, 0x09, 0xc5, 0xaf, 0xf5, 0x26,
    0x9a, 0x86, 0xa7, 0xa9, 0x53, 0x15, 0x34, 0xf7, 0xda, 0x2e, 0x4c, 0x30, 0x3d, 0x8a, 0x31,
    0x8a, 0x72, 0x1c, 0x3c, 0x0c, 0x95, 0x95, 0x68, 0x09, 0x53, 0x2f, 0xcf, 0x0e, 0x24, 0x49,
    0xa6, 0xb5, 0x25, 0xb1, 0x6a, 0xed, 0xf5, 0xaa, 0x0d, 0xe6, 0x57, 0xba, 0x63, 0x7b, 0x39};
static const uint8_t gcm_sealed[] = {
    0x52, 0x2d, 0xc1, 0xf0, 0x99, 0x56, 0x7d, 0x07, 0xf4, 0x7f, 0x37, 0xa3, 0x2a, 0x84, 0x42, 0x7d,
    0x64, 0x3a, 0x8c, 0xdc, 0xbf, 0xe5, 0xc0, 0xc9, 0x75, 0x98, 0xa2, 0xbd, 0x25, 0x55, 0xd1, 0xaa,
    0x8c, 0xb0, 0x8e, 0x48, 0x59, 0x0d, 0xbb, 0x3d, 0xa7, 0xb0, 0x8b, 0x10, 0x56, 0x82, 0x88, 0x38,
    0xc5, 0xf6, 0x1e, 0x63, 0x93, 0xba, 0x7a, 0x0a, 0xbc, 0xc9, 0xf6, 0x62,
    /* tag */
    0x76, 0xfc, 0x6e, 0xce, 0x0f, 0x4e, 0x17, 0x68, 0xcd, 0xdf, 0x88, 0x53, 0xbb, 0x2d, 0x55, 0x1b};

/* C2SP XAES-256-GCM, second test vector. */
static const char xaes_nonce[] = "ABCDEFGHIJKLMNOPQRSTUVWX";
static const char xaes_plaintext[] = "XAES-256-GCM";
static const char xaes_aad[] = "c2sp.org/XAES-256-GCM";
static const uint8_t xaes_sealed[] = {0x98, 0x6e, 0xc1, 0x83, 0x25, 0x93, 0xdf, 0x54, 0x43, 0xa1,
                                      0x79, 0x43, 0x7f, 0xd0, 0x83, 0xbf, 0x3f, 0xdb, 0x41, 0xab,
                                      0xd7, 0x40, 0xa2, 0x1f, 0x71, 0xeb, 0x76, 0x9d};

/* FIPS 197 appendix C.3. */
static const uint8_t aes_block[] = {0x8e, 0xa2, 0xb7, 0xca, 0x51, 0x67, 0x45, 0xbf,
                                    0xea, 0xfc, 0x49, 0x90, 0x4b, 0x49, 0x60, 0x89};

/* RFC 4231 test case 2. */
static const uint8_t hmac_mac[] = {0x5b, 0xdc, 0xc1, 0x46, 0xbf, 0x60, 0x75, 0x4e,
                                   0x6a, 0x04, 0x24, 0x26, 0x08, 0x95, 0x75, 0xc7,
                                   0x5a, 0x00, 0x3f, 0x08, 0x9d, 0x27, 0x39, 0x83,
                                   0x9d, 0xec, 0x58, 0xb9, 0x64, 0xec, 0x38, 0x43};

static hs_status compare(const uint8_t *found, const uint8_t *expected, size_t size, int corrupt)
{
    uint8_t copy[128];
    memcpy(copy, expected, size);
    copy[0] ^= (uint8_t)(corrupt != 0);
    return CRYPTO_memcmp(found, copy, size) == 0 ? HS_OK : HS_SELF_TEST;
}

static hs_status test_aes(int corrupt)
{
    uint8_t key[32], block[16];
    AES_KEY schedule;
    for (int i = 0; i < 32; i++)
        key[i] = (uint8_t)i;
    for (int i = 0; i < 16; i++)
        block[i] = (uint8_t)(i << 4 | i);
    AES_set_encrypt_key(key, 256, &schedule);
    AES_encrypt(block, block, &schedule);
    return compare(block, aes_block, sizeof block, corrupt);
}

static hs_status test_gcm_seal(int corrupt)
{
    uint8_t output[sizeof gcm_sealed];
    hs_status status = hs_gcm_seal(gcm_key, gcm_iv, gcm_aad, sizeof gcm_aad, gcm_plaintext,
                                   sizeof gcm_plaintext, output);
    return status == HS_OK ? compare(output, gcm_sealed, sizeof output, corrupt) : HS_SELF_TEST;
}

static hs_status test_gcm_open(int corrupt)
{
    uint8_t output[sizeof gcm_sealed];
    hs_status status = hs_gcm_open(gcm_key, gcm_iv, gcm_aad, sizeof gcm_aad, gcm_sealed,
                                   sizeof gcm_sealed, output);
    return status == HS_OK ? compare(output, gcm_plaintext, sizeof gcm_plaintext, corrupt)
                           : HS_SELF_TEST;
}

static hs_status test_gcm_refuse(int corrupt)
{
    uint8_t changed[sizeof gcm_sealed], output[sizeof gcm_sealed];
    memcpy(changed, gcm_sealed, sizeof changed);
    changed[sizeof changed - 1] ^= (uint8_t)(corrupt == 0);
    hs_status status =
        hs_gcm_open(gcm_key, gcm_iv, gcm_aad, sizeof gcm_aad, changed, sizeof changed, output);
    return status == HS_INVALID ? HS_OK : HS_SELF_TEST;
}

static hs_status test_xaes(int corrupt)
{
    uint8_t key[32], output[sizeof xaes_sealed];
    memset(key, 3, sizeof key);
    hs_status status =
        hs_xaes_seal(key, (const uint8_t *)xaes_nonce, (const uint8_t *)xaes_aad,
                     sizeof xaes_aad - 1, (const uint8_t *)xaes_plaintext,
                     sizeof xaes_plaintext - 1, output);
    return status == HS_OK ? compare(output, xaes_sealed, sizeof output, corrupt) : HS_SELF_TEST;
}

static hs_status test_hmac(int corrupt)
{
    static const char message[] = "what do ya want for nothing?";
    uint8_t mac[32];
    hs_status status = hs_hmac_sha256((const uint8_t *)"Jefe", 4, (const uint8_t *)message,
                                      sizeof message - 1, mac);
    return status == HS_OK ? compare(mac, hmac_mac, sizeof mac, corrupt) : HS_SELF_TEST;
}

static const struct {
    const char *name;
    hs_status (*run)(int corrupt);
} tests[] = {
    {"aes-256", test_aes},           {"aes-256-gcm-seal", test_gcm_seal},
    {"aes-256-gcm-open", test_gcm_open}, {"aes-256-gcm-refuse", test_gcm_refuse},
    {"xaes-256-gcm", test_xaes},     {"hmac-sha-256", test_hmac},
};

size_t hs_self_test_count(void)
{
    return sizeof tests / sizeof *tests;
}

const char *hs_self_test_name(size_t index)
{
    return index < hs_self_test_count() ? tests[index].name : "";
}

hs_status hs_self_test(size_t index, int corrupt)
{
    return index < hs_self_test_count() ? tests[index].run(corrupt) : HS_BAD_ARGUMENT;
}
