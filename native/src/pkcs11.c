/* AES-GCM over a PKCS#11 function list: many records in one call.
 *
 * python-pkcs11 costs several times more a record than the module itself; this loop walks a column
 * and calls the module directly. It uses the function list of a module that is already initialised
 * in this process, and sessions and handles that python-pkcs11 opened.
 *
 * Rules that real modules taught: buffers are sized by us (one module answers a length query with
 * 16 bytes too few, and a buffer that is too small ends its operation); the IV is 96 bits and the
 * tag 128 bits whatever the module would take; ulIvBits is set; an empty input has a pointer that
 * is not NULL; an output longer than can be is refused. Any code that is neither success nor the
 * caller's data ends the column: what follows was not started. */
#include <dlfcn.h>
#include <string.h>
#include <time.h>

#include "internal.h"

typedef unsigned long ck_ulong;
typedef ck_ulong ck_rv;

typedef struct {
    ck_ulong mechanism;
    void *parameter;
    ck_ulong parameter_size;
} ck_mechanism;

typedef struct {
    uint8_t *iv;
    ck_ulong iv_size;
    ck_ulong iv_bits;
    uint8_t *aad;
    ck_ulong aad_size;
    ck_ulong tag_bits;
} ck_gcm_params;

typedef ck_rv (*ck_init)(ck_ulong session, ck_mechanism *mechanism, ck_ulong key);
typedef ck_rv (*ck_crypt)(ck_ulong session, uint8_t *input, ck_ulong input_size, uint8_t *output,
                          ck_ulong *output_size);

/* PKCS#11 v2.40 section 3.4: CK_FUNCTION_LIST is a version and 68 pointers in a fixed order. */
enum { F_ENCRYPT_INIT = 29, F_ENCRYPT = 30, F_DECRYPT_INIT = 33, F_DECRYPT = 34, F_COUNT = 68 };
typedef struct {
    uint8_t major, minor;
    void *functions[F_COUNT];
} ck_function_list;

#define CKM_AES_GCM 0x1087ul
#define CKR_GENERAL_ERROR 0x05ul
#define CKR_ENCRYPTED_DATA_INVALID 0x40ul
#define CKR_ENCRYPTED_DATA_LEN_RANGE 0x41ul

hs_status hs_p11_open(const char *path, void **list)
{
    ck_rv (*get)(ck_function_list **);
    void *module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (module == NULL)
        return HS_BAD_ARGUMENT;
    *(void **)&get = dlsym(module, "C_GetFunctionList");
    if (get == NULL || get((ck_function_list **)list) != 0)
        return HS_BAD_ARGUMENT;
    return HS_OK;
}

static uint64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t hs_p11_gcm_one(void *list, int encrypting, uint64_t session, uint64_t key,
                        const uint8_t *iv, const uint8_t *aad, size_t aad_size,
                        const uint8_t *input, size_t size, uint8_t *output, size_t *output_size)
{
    static uint8_t nothing[1];
    const ck_function_list *functions = list;
    uint8_t own_iv[HS_IV_SIZE];
    ck_init init;
    ck_crypt crypt;
    memcpy(own_iv, iv, sizeof own_iv);
    ck_gcm_params params = {own_iv, HS_IV_SIZE, 8 * HS_IV_SIZE,
                            aad_size ? (uint8_t *)(uintptr_t)aad : nothing, aad_size,
                            8 * HS_TAG_SIZE};
    ck_mechanism mechanism = {CKM_AES_GCM, &params, sizeof params};
    *(void **)&init = functions->functions[encrypting ? F_ENCRYPT_INIT : F_DECRYPT_INIT];
    *(void **)&crypt = functions->functions[encrypting ? F_ENCRYPT : F_DECRYPT];
    ck_rv code = init(session, &mechanism, key);
    if (code != 0)
        return code;
    ck_ulong room = *output_size;
    ck_ulong used = room;
    code = crypt(session, size ? (uint8_t *)(uintptr_t)input : nothing, size, output, &used);
    if (code != 0)
        return code;
    size_t expected = encrypting ? size + HS_TAG_SIZE : size - HS_TAG_SIZE;
    if (used != expected || memcmp(own_iv, iv, sizeof own_iv) != 0)
        return HS_P11_BAD_OUTPUT;
    *output_size = used;
    return 0;
}

static int is_callers(uint64_t code, int encrypting)
{
    return !encrypting && (code == CKR_ENCRYPTED_DATA_INVALID ||
                           code == CKR_ENCRYPTED_DATA_LEN_RANGE || code == CKR_GENERAL_ERROR);
}

hs_status hs_p11_gcm(void *list, int encrypting, uint64_t session, uint64_t key,
                     const uint8_t *ivs, const uint8_t *aads_data, size_t aads_size,
                     const uint8_t *items_data, size_t items_size, uint64_t deadline_ns,
                     uint8_t *outputs, size_t *outputs_size, uint64_t *codes)
{
    hs_column aads, items;
    if (hs_column_parse(&aads, aads_data, aads_size) != HS_OK ||
        hs_column_parse(&items, items_data, items_size) != HS_OK ||
        (aads.count != 1 && aads.count != items.count) ||
        *outputs_size < items_size + (size_t)items.count * (HS_IV_SIZE + HS_TAG_SIZE))
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
        } else if (deadline_ns != 0 && monotonic_ns() >= deadline_ns) {
            codes[i] = HS_P11_DEADLINE;
        } else if (encrypting) {
            const uint8_t *iv = ivs + (size_t)i * HS_IV_SIZE;
            memcpy(bytes + used, iv, HS_IV_SIZE);
            written = size + HS_TAG_SIZE;
            codes[i] = hs_p11_gcm_one(list, 1, session, key, iv, aad, aad_size, item, size,
                                      bytes + used + HS_IV_SIZE, &written);
            written += HS_IV_SIZE;
        } else if (size < HS_IV_SIZE + HS_TAG_SIZE) {
            codes[i] = CKR_ENCRYPTED_DATA_LEN_RANGE;
        } else {
            written = size - HS_IV_SIZE;
            codes[i] = hs_p11_gcm_one(list, 0, session, key, item, aad, aad_size,
                                      item + HS_IV_SIZE, size - HS_IV_SIZE, bytes + used,
                                      &written);
        }
        if (codes[i] != 0)
            written = 0;
        stopped = stopped || (codes[i] != 0 && codes[i] != HS_P11_DEADLINE &&
                              !is_callers(codes[i], encrypting));
        used += written;
        hs_put_u32(outputs + 4 * ((size_t)i + 2), (uint32_t)used);
    }
    *outputs_size = (size_t)(bytes - outputs) + used;
    return HS_OK;
}
