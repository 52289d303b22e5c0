/* AES-GCM over a PKCS#11 function list: many records in one call.
 *
 * python-pkcs11 costs several times more a record than the module itself; this loop walks a column
 * and calls the module directly. It uses the function list of a module that is already initialised
 * in this process, and sessions and handles that python-pkcs11 opened.
 *
 * Rules that real modules taught: buffers are sized by us (one module answers a length query with
 * 16 bytes too few, and a buffer that is too small ends its operation); the IV is 96 bits and the
 * tag 128 bits whatever the module would take; ulIvBits is set; an empty input has a pointer that
 * is not NULL; an output of another length than it must have is refused, and so are an IV that the
 * module changed and a code that no module can have. Any code that is neither success nor the fault
 * of the item's data ends the column: what follows was not started. The bytes of an item that
 * failed are wiped: a module may have written plaintext before it found that the tag is wrong.
 *
 * While an item is with the module its number plus one stands in `progress`, which is memory shared
 * with a supervisor: after a crash in the module it is known which item was running. */
#include <dlfcn.h>
#include <openssl/crypto.h>
#include <string.h>
#include <time.h>

#include "internal.h"
#include "pkcs11.h"

hs_status hs_p11_open(const char *path, void **list)
{
    CK_RV (*get)(CK_FUNCTION_LIST **) = NULL;
    CK_FUNCTION_LIST *found = NULL;
    void *module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (module == NULL)
        return HS_NOT_FOUND;
    *(void **)&get = dlsym(module, "C_GetFunctionList");
    if (get == NULL || get(&found) != CKR_OK || found == NULL || found->C_EncryptInit == NULL ||
        found->C_Encrypt == NULL || found->C_DecryptInit == NULL || found->C_Decrypt == NULL) {
        dlclose(module);
        return HS_NOT_FOUND;
    }
    *list = found;
    return HS_OK;
}

static uint64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Cryptoki's pointers are not const, and an empty value still needs one that is not NULL. */
static CK_BYTE *pointer_to(const uint8_t *bytes, size_t size)
{
    static CK_BYTE nothing[1];
    return size > 0 ? (CK_BYTE *)(uintptr_t)bytes : nothing;
}

static CK_RV run_module(const CK_FUNCTION_LIST *list, int encrypting, CK_SESSION_HANDLE session,
                        CK_OBJECT_HANDLE key, CK_MECHANISM *mechanism, const uint8_t *input,
                        size_t size, uint8_t *output, CK_ULONG *output_size)
{
    CK_RV code = encrypting ? list->C_EncryptInit(session, mechanism, key)
                            : list->C_DecryptInit(session, mechanism, key);
    if (code != CKR_OK)
        return code;
    return encrypting
               ? list->C_Encrypt(session, pointer_to(input, size), size, output, output_size)
               : list->C_Decrypt(session, pointer_to(input, size), size, output, output_size);
}

uint64_t hs_p11_gcm_one(void *list, int encrypting, uint64_t session, uint64_t key,
                        const uint8_t *iv, const uint8_t *aad, size_t aad_size,
                        const uint8_t *input, size_t size, uint8_t *output, size_t *output_size)
{
    size_t room = *output_size;
    *output_size = 0;
    if (!encrypting && size < HS_TAG_SIZE)
        return CKR_ENCRYPTED_DATA_LEN_RANGE;
    if (size > HS_P11_COLUMN_SIZE_MAX || aad_size > HS_P11_COLUMN_SIZE_MAX)
        return encrypting ? CKR_DATA_LEN_RANGE : CKR_ENCRYPTED_DATA_LEN_RANGE;
    size_t expected = encrypting ? size + HS_TAG_SIZE : size - HS_TAG_SIZE;
    if (room < (encrypting ? expected : size))
        return CKR_BUFFER_TOO_SMALL;
    uint8_t own_iv[HS_IV_SIZE];
    memcpy(own_iv, iv, sizeof own_iv);
    CK_GCM_PARAMS parameters = {own_iv,
                                HS_IV_SIZE,
                                8 * HS_IV_SIZE,
                                pointer_to(aad, aad_size),
                                aad_size,
                                8 * HS_TAG_SIZE};
    CK_MECHANISM mechanism = {CKM_AES_GCM, &parameters, sizeof parameters};
    CK_ULONG used = room;
    CK_RV code =
        run_module(list, encrypting, session, key, &mechanism, input, size, output, &used);
    if (code == CKR_OK && used == expected && memcmp(own_iv, iv, sizeof own_iv) == 0) {
        *output_size = used;
        return CKR_OK;
    }
    OPENSSL_cleanse(output, room);
    /* Ours are above 32 bits; a module's own are not, and must not pass for ours. */
    return code == CKR_OK || code > UINT32_MAX ? HS_P11_BAD_OUTPUT : code;
}

/* Codes that speak of this item's bytes and leave the session usable for the next one. */
static int is_data_fault(const hs_p11_batch *batch, uint64_t code)
{
    switch (code) {
    case CKR_DATA_INVALID:
    case CKR_DATA_LEN_RANGE:
        return 1;
    case CKR_ENCRYPTED_DATA_INVALID:
    case CKR_ENCRYPTED_DATA_LEN_RANGE:
        return !batch->encrypting;
    case CKR_GENERAL_ERROR:
        return !batch->encrypting && batch->general_error_is_data;
    default:
        return 0;
    }
}

static int is_late(const hs_p11_batch *batch, uint32_t index)
{
    if (batch->deadlines_count == 0)
        return 0;
    uint64_t deadline_ns = batch->deadlines_ns[batch->deadlines_count == 1 ? 0 : index];
    return deadline_ns != 0 && monotonic_ns() >= deadline_ns;
}

static void publish(const hs_p11_batch *batch, uint32_t running)
{
    if (batch->progress != NULL)
        __atomic_store_n(batch->progress, running, __ATOMIC_RELEASE);
}

/* One item: IV 12 | ciphertext | tag 16 from a plaintext, or the way back. */
static uint64_t crypt_item(void *list, const hs_p11_batch *batch, uint32_t index,
                           const uint8_t *aad, size_t aad_size, const uint8_t *item, size_t size,
                           uint8_t *output, size_t *written)
{
    if (batch->encrypting) {
        const uint8_t *iv = batch->ivs + (size_t)index * HS_IV_SIZE;
        *written = size + HS_TAG_SIZE;
        uint64_t code = hs_p11_gcm_one(list, 1, batch->session, batch->key, iv, aad, aad_size,
                                       item, size, output + HS_IV_SIZE, written);
        memcpy(output, iv, HS_IV_SIZE);
        *written += HS_IV_SIZE;
        return code;
    }
    if (size < HS_IV_SIZE + HS_TAG_SIZE)
        return CKR_ENCRYPTED_DATA_LEN_RANGE;
    *written = size - HS_IV_SIZE;
    return hs_p11_gcm_one(list, 0, batch->session, batch->key, item, aad, aad_size,
                          item + HS_IV_SIZE, size - HS_IV_SIZE, output, written);
}

static hs_status check_batch(const hs_p11_batch *batch, hs_column *aads, hs_column *items,
                             size_t outputs_size)
{
    if (hs_column_parse(aads, batch->aads, batch->aads_size) != HS_OK ||
        hs_column_parse(items, batch->items, batch->items_size) != HS_OK ||
        (aads->count != 1 && aads->count != items->count) ||
        (batch->deadlines_count > 1 && batch->deadlines_count != items->count) ||
        (batch->encrypting && batch->ivs_size != (size_t)items->count * HS_IV_SIZE) ||
        batch->items_size > HS_P11_COLUMN_SIZE_MAX ||
        outputs_size <
            batch->items_size + (size_t)items->count * (HS_IV_SIZE + HS_TAG_SIZE))
        return HS_BAD_ARGUMENT;
    return HS_OK;
}

hs_status hs_p11_gcm(void *list, const hs_p11_batch *batch, uint8_t *outputs, size_t *outputs_size,
                     uint64_t *codes)
{
    hs_column aads, items;
    if (check_batch(batch, &aads, &items, *outputs_size) != HS_OK)
        return HS_BAD_ARGUMENT;
    uint8_t *bytes = outputs + 4 * ((size_t)items.count + 2);
    size_t used = 0;
    int stopped = 0;
    hs_put_u32(outputs, items.count);
    hs_put_u32(outputs + 4, 0);
    for (uint32_t i = 0; i < items.count; i++) {
        size_t size, aad_size, written = 0;
        const uint8_t *item = hs_column_item(&items, i, &size);
        const uint8_t *aad = hs_column_item(&aads, aads.count == 1 ? 0 : i, &aad_size);
        if (stopped) {
            codes[i] = HS_P11_NOT_STARTED;
        } else if (is_late(batch, i)) {
            codes[i] = HS_P11_DEADLINE;
        } else {
            publish(batch, i + 1);
            codes[i] =
                crypt_item(list, batch, i, aad, aad_size, item, size, bytes + used, &written);
            stopped = codes[i] != CKR_OK && !is_data_fault(batch, codes[i]);
        }
        used += codes[i] == CKR_OK ? written : 0;
        hs_put_u32(outputs + 4 * ((size_t)i + 2), (uint32_t)used);
    }
    publish(batch, 0);
    *outputs_size = (size_t)(bytes - outputs) + used;
    return HS_OK;
}
