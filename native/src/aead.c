/* AES-256-GCM (NIST SP 800-38D) through libipsec-mb or OpenSSL EVP.
 *
 * Both implementations have the same interface and are held to the same known answers before
 * either is chosen. libipsec-mb is several times faster on small records because a key is expanded
 * once and nothing is allocated; EVP is there on every machine. IVs are 96 bits, tags 128 bits,
 * always. */
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "internal.h"

#ifdef HSMUX_HAVE_IPSEC_MB
#include <intel-ipsec-mb.h>

static IMB_MGR *manager;
static pthread_once_t ipsec_once = PTHREAD_ONCE_INIT;
static char ipsec_name[64]; /* empty: it cannot be used here */

_Static_assert(sizeof(struct gcm_key_data) <= HS_EXPANDED_SIZE, "an expanded key does not fit");

static void ipsec_expand(hs_expanded *expanded, const uint8_t *key)
{
    IMB_AES256_GCM_PRE(manager, key, (struct gcm_key_data *)expanded->bytes);
}

static hs_status ipsec_seal(const hs_expanded *expanded, const uint8_t *iv, const uint8_t *aad,
                            size_t aad_size, const uint8_t *plaintext, size_t size,
                            uint8_t *output)
{
    struct gcm_context_data context;
    IMB_AES256_GCM_ENC(manager, (const struct gcm_key_data *)expanded->bytes, &context, output,
                       plaintext, size, iv, aad, aad_size, output + size, HS_TAG_SIZE);
    OPENSSL_cleanse(&context, sizeof context);
    return HS_OK;
}

static hs_status ipsec_open(const hs_expanded *expanded, const uint8_t *iv, const uint8_t *aad,
                            size_t aad_size, const uint8_t *sealed, size_t size, uint8_t *output)
{
    struct gcm_context_data context;
    uint8_t tag[HS_TAG_SIZE];
    size_t length = size - HS_TAG_SIZE;
    IMB_AES256_GCM_DEC(manager, (const struct gcm_key_data *)expanded->bytes, &context, output,
                       sealed, length, iv, aad, aad_size, tag, HS_TAG_SIZE);
    int is_same = CRYPTO_memcmp(tag, sealed + length, HS_TAG_SIZE) == 0;
    OPENSSL_cleanse(&context, sizeof context);
    OPENSSL_cleanse(tag, sizeof tag); /* of a forgery it is the one that would open */
    if (is_same)
        return HS_OK;
    OPENSSL_cleanse(output, length);
    return HS_INVALID;
}

static const hs_backend_ops ipsec_ops = {ipsec_name, ipsec_expand, ipsec_seal, ipsec_open};

static void ipsec_start(void)
{
    static const char *const names[] = {"none", "noaesni", "sse", "avx", "avx2", "avx512"};
    IMB_ARCH arch = IMB_ARCH_NONE;
    manager = alloc_mb_mgr(0);
    if (manager == NULL)
        return;
    init_mb_mgr_auto(manager, &arch);
    /* Without AES instructions it looks into tables at places that depend on the key. */
    if (imb_get_errno(manager) != 0 || arch < IMB_ARCH_SSE ||
        (unsigned)arch >= sizeof names / sizeof *names)
        return;
    snprintf(ipsec_name, sizeof ipsec_name, "ipsec-mb %s %s", imb_get_version_str(), names[arch]);
}
#endif

/* EVP: the context is per thread and made once; it is reset after use, which wipes its key. */
static char evp_name[64];
static EVP_CIPHER *evp_cipher;
static pthread_key_t evp_key;
static pthread_once_t evp_once = PTHREAD_ONCE_INIT;
static int evp_ready;

static void evp_free(void *context)
{
    EVP_CIPHER_CTX_free(context);
}

/* Fetched once: an implicit fetch in each call costs as much as a small record. */
static void evp_start(void)
{
    evp_cipher = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
    snprintf(evp_name, sizeof evp_name, "openssl %s", OpenSSL_version(OPENSSL_VERSION_STRING));
    evp_ready = evp_cipher != NULL && pthread_key_create(&evp_key, evp_free) == 0;
}

static EVP_CIPHER_CTX *evp_context(void)
{
    EVP_CIPHER_CTX *context = pthread_getspecific(evp_key);
    if (context != NULL)
        return context;
    context = EVP_CIPHER_CTX_new();
    if (context != NULL && pthread_setspecific(evp_key, context) != 0) {
        EVP_CIPHER_CTX_free(context);
        context = NULL;
    }
    return context;
}

static void evp_expand(hs_expanded *expanded, const uint8_t *key)
{
    memcpy(expanded->bytes, key, HS_KEY_SIZE);
}

static hs_status evp_seal(const hs_expanded *expanded, const uint8_t *iv, const uint8_t *aad,
                          size_t aad_size, const uint8_t *plaintext, size_t size, uint8_t *output)
{
    EVP_CIPHER_CTX *context = evp_context();
    int length = 0;
    int done = context != NULL &&
               EVP_EncryptInit_ex(context, evp_cipher, NULL, expanded->bytes, iv) == 1 &&
               (aad_size == 0 ||
                EVP_EncryptUpdate(context, NULL, &length, aad, (int)aad_size) == 1) &&
               (size == 0 ||
                EVP_EncryptUpdate(context, output, &length, plaintext, (int)size) == 1) &&
               EVP_EncryptFinal_ex(context, output + size, &length) == 1 &&
               EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_GCM_GET_TAG, HS_TAG_SIZE, output + size) == 1;
    if (context != NULL)
        EVP_CIPHER_CTX_reset(context);
    return done ? HS_OK : HS_NO_MEMORY;
}

static hs_status evp_open(const hs_expanded *expanded, const uint8_t *iv, const uint8_t *aad,
                          size_t aad_size, const uint8_t *sealed, size_t size, uint8_t *output)
{
    EVP_CIPHER_CTX *context = evp_context();
    size_t plain = size - HS_TAG_SIZE;
    uint8_t tag[HS_TAG_SIZE], nothing[HS_TAG_SIZE];
    int length = 0;
    memcpy(tag, sealed + plain, sizeof tag);
    int ready = context != NULL &&
                EVP_DecryptInit_ex(context, evp_cipher, NULL, expanded->bytes, iv) == 1 &&
                (aad_size == 0 ||
                 EVP_DecryptUpdate(context, NULL, &length, aad, (int)aad_size) == 1) &&
                (plain == 0 ||
                 EVP_DecryptUpdate(context, output, &length, sealed, (int)plain) == 1) &&
                EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_GCM_SET_TAG, HS_TAG_SIZE, tag) == 1;
    int done = ready && EVP_DecryptFinal_ex(context, nothing, &length) == 1;
    if (context != NULL)
        EVP_CIPHER_CTX_reset(context);
    if (!done)
        OPENSSL_cleanse(output, plain);
    /* Only the tag is the ciphertext's fault. */
    return done ? HS_OK : ready ? HS_INVALID : HS_NO_MEMORY;
}

static const hs_backend_ops evp_ops = {evp_name, evp_expand, evp_seal, evp_open};
static const hs_backend_ops *chosen;

static const char *failed = "";

/* Choose a backend if it gives every known answer; remember the first that it does not give. */
static hs_status try_backend(const hs_backend_ops *ops, const char *corrupt)
{
    const hs_backend_ops *before = chosen;
    chosen = ops;
    for (size_t i = 0; i < hs_self_test_count(); i++) {
        const char *name = hs_self_test_name(i);
        if (hs_self_test(i, corrupt != NULL && strcmp(corrupt, name) == 0) != HS_OK) {
            chosen = before;
            failed = name;
            return HS_SELF_TEST;
        }
    }
    return HS_OK;
}

hs_status hs_select_backend(const char *wanted, const char *corrupt)
{
    int any = wanted == NULL || *wanted == '\0';
    failed = "";
    pthread_once(&evp_once, evp_start);
#ifdef HSMUX_HAVE_IPSEC_MB
    pthread_once(&ipsec_once, ipsec_start);
    if ((any || strcmp(wanted, "ipsec-mb") == 0) && ipsec_name[0] != '\0') {
        hs_status status = try_backend(&ipsec_ops, corrupt);
        if (status == HS_OK || !any)
            return status;
    }
#endif
    if (!any && strcmp(wanted, "openssl") != 0)
        return HS_BAD_ARGUMENT;
    return evp_ready ? try_backend(&evp_ops, corrupt) : HS_NO_MEMORY;
}

const char *hs_self_test_failed(void)
{
    return failed;
}

const hs_backend_ops *hs_gcm(void)
{
    return chosen;
}

const char *hs_backend(void)
{
    return chosen == NULL ? "" : chosen->name;
}

hs_status hs_gcm_seal(const uint8_t *key, const uint8_t *iv, const uint8_t *aad, size_t aad_size,
                      const uint8_t *plaintext, size_t size, uint8_t *output)
{
    if (size > HS_ITEM_SIZE_MAX || aad_size > HS_AAD_SIZE_MAX || chosen == NULL)
        return HS_BAD_ARGUMENT;
    hs_expanded expanded;
    chosen->expand(&expanded, key);
    hs_status status = chosen->seal(&expanded, iv, aad, aad_size, plaintext, size, output);
    OPENSSL_cleanse(&expanded, sizeof expanded);
    return status;
}

hs_status hs_gcm_open(const uint8_t *key, const uint8_t *iv, const uint8_t *aad, size_t aad_size,
                      const uint8_t *sealed, size_t size, uint8_t *output)
{
    if (size < HS_TAG_SIZE || size > HS_ITEM_SIZE_MAX + HS_TAG_SIZE || chosen == NULL ||
        aad_size > HS_AAD_SIZE_MAX)
        return HS_INVALID;
    hs_expanded expanded;
    chosen->expand(&expanded, key);
    hs_status status = chosen->open(&expanded, iv, aad, aad_size, sealed, size, output);
    OPENSSL_cleanse(&expanded, sizeof expanded);
    return status;
}

hs_status hs_hmac_sha256(const uint8_t *key, size_t key_size, const uint8_t *message, size_t size,
                         uint8_t *mac)
{
    unsigned int length = 0;
    if (key_size > HS_AAD_SIZE_MAX || size > HS_ITEM_SIZE_MAX)
        return HS_BAD_ARGUMENT;
    return HMAC(EVP_sha256(), key, (int)key_size, message, size, mac, &length) != NULL
               ? HS_OK
               : HS_NO_MEMORY;
}
