/* XAES-256-GCM as specified by C2SP (c2sp.org/XAES-256-GCM).
 *
 * A 256-bit key K and a 192-bit nonce N give a derived key and a 96-bit nonce for AES-256-GCM:
 * Kx = AES_K(M1 ^ K1) | AES_K(M2 ^ K1) with M1 = 00 01 58 00 | N[0:12], M2 = 00 02 58 00 | N[0:12]
 * and K1 the first CMAC subkey (NIST SP 800-38B section 6.1); the GCM nonce is N[12:24]. */
#include <openssl/crypto.h>
#include <string.h>

#include "internal.h"

void hs_xaes_prepare(hs_xaes_key *prepared, const uint8_t *key)
{
    uint8_t zero[16] = {0}, l[16];
    AES_set_encrypt_key(key, 256, &prepared->schedule);
    AES_encrypt(zero, l, &prepared->schedule);
    uint8_t reduce = (uint8_t)(0x87 & -(l[0] >> 7));
    for (int i = 0; i < 15; i++)
        prepared->k1[i] = (uint8_t)(l[i] << 1 | l[i + 1] >> 7);
    prepared->k1[15] = (uint8_t)(l[15] << 1) ^ reduce;
    OPENSSL_cleanse(l, sizeof l);
}

void hs_xaes_derive(const hs_xaes_key *prepared, const uint8_t *prefix, uint8_t *derived)
{
    for (uint8_t half = 0; half < 2; half++) {
        uint8_t block[16] = {0, (uint8_t)(half + 1), 'X', 0};
        memcpy(block + 4, prefix, HS_IV_SIZE);
        for (int i = 0; i < 16; i++)
            block[i] ^= prepared->k1[i];
        AES_encrypt(block, derived + 16 * half, &prepared->schedule);
        OPENSSL_cleanse(block, sizeof block); /* it shows K1 to whoever knows the nonce */
    }
}

static void derive(const uint8_t *key, const uint8_t *nonce, uint8_t *derived)
{
    hs_xaes_key prepared;
    hs_xaes_prepare(&prepared, key);
    hs_xaes_derive(&prepared, nonce, derived);
    OPENSSL_cleanse(&prepared, sizeof prepared);
}

hs_status hs_xaes_seal(const uint8_t *key, const uint8_t *nonce, const uint8_t *aad,
                       size_t aad_size, const uint8_t *plaintext, size_t size, uint8_t *output)
{
    uint8_t derived[HS_KEY_SIZE];
    derive(key, nonce, derived);
    hs_status status =
        hs_gcm_seal(derived, nonce + HS_IV_SIZE, aad, aad_size, plaintext, size, output);
    OPENSSL_cleanse(derived, sizeof derived);
    return status;
}

hs_status hs_xaes_open(const uint8_t *key, const uint8_t *nonce, const uint8_t *aad,
                       size_t aad_size, const uint8_t *sealed, size_t size, uint8_t *output)
{
    uint8_t derived[HS_KEY_SIZE];
    derive(key, nonce, derived);
    hs_status status =
        hs_gcm_open(derived, nonce + HS_IV_SIZE, aad, aad_size, sealed, size, output);
    OPENSSL_cleanse(derived, sizeof derived);
    return status;
}
