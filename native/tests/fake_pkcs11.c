/* A PKCS#11 module that can misbehave, for tests of the loop in src/pkcs11.c.
 *
 * It has the functions that the loop calls and no token. CKM_AES_GCM here is no cipher: the text is
 * changed by the IV and followed by 16 bytes that depend on the IV, the associated data and the
 * text, which is enough to see that each came through. What it does wrong, and to which item, is in
 * the environment variable FAKE_PKCS11: `kind:item`, items being counted from 1 each time the
 * variable changes; or `code=0x...:item` for a return value. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pkcs11.h"

enum { IV_SIZE = 12, TAG_SIZE = 16 };

typedef struct {
    char kind[32];
    unsigned long code, item;
} behaviour;

/* What the loop gave with C_...Init, checked and kept for the call that follows. */
static struct {
    int ready;
    CK_BYTE *iv, *aad;
    CK_ULONG aad_size;
} operation;

static unsigned long items;
static CK_FUNCTION_LIST list;

static int is_now(const char *kind, behaviour *found)
{
    static char before[64];
    const char *text = getenv("FAKE_PKCS11");
    if (text == NULL)
        text = "";
    if (strncmp(text, before, sizeof before - 1) != 0) {
        snprintf(before, sizeof before, "%s", text);
        items = 1;
    }
    memset(found, 0, sizeof *found);
    if (sscanf(text, "code=%lx:%lu", &found->code, &found->item) >= 1)
        strcpy(found->kind, "code");
    else
        sscanf(text, "%31[^:]:%lu", found->kind, &found->item);
    return strcmp(found->kind, kind) == 0 && found->item == items;
}

static CK_RV init(CK_MECHANISM *mechanism, CK_SESSION_HANDLE session, CK_OBJECT_HANDLE key)
{
    const CK_GCM_PARAMS *gcm = mechanism->pParameter;
    behaviour now;
    if (is_now("init-code", &now))
        return CKR_KEY_HANDLE_INVALID;
    if (session != 1 || key != 2)
        return CKR_KEY_HANDLE_INVALID;
    if (mechanism->mechanism != CKM_AES_GCM || mechanism->ulParameterLen != sizeof *gcm ||
        gcm->ulIvLen != IV_SIZE || gcm->ulIvBits != 8 * IV_SIZE || gcm->ulTagBits != 8 * TAG_SIZE ||
        gcm->pIv == NULL || gcm->pAAD == NULL)
        return CKR_MECHANISM_PARAM_INVALID;
    if (operation.ready)
        return CKR_OPERATION_ACTIVE;
    operation.ready = 1;
    operation.iv = gcm->pIv;
    operation.aad = gcm->pAAD;
    operation.aad_size = gcm->ulAADLen;
    return CKR_OK;
}

static void make_tag(const CK_BYTE *text, CK_ULONG size, CK_BYTE *tag)
{
    uint64_t hash = 0xcbf29ce484222325u ^ size;
    for (int i = 0; i < IV_SIZE; i++)
        hash = (hash ^ operation.iv[i]) * 0x100000001b3u;
    for (CK_ULONG i = 0; i < operation.aad_size; i++)
        hash = (hash ^ operation.aad[i]) * 0x100000001b3u;
    for (CK_ULONG i = 0; i < size; i++)
        hash = (hash ^ text[i]) * 0x100000001b3u;
    for (int i = 0; i < TAG_SIZE; i++)
        tag[i] = (CK_BYTE)(hash >> 8 * (i % 8)) ^ (CK_BYTE)i;
}

static void change(const CK_BYTE *from, CK_ULONG size, CK_BYTE *to)
{
    for (CK_ULONG i = 0; i < size; i++)
        to[i] = from[i] ^ operation.iv[i % IV_SIZE];
}

/* What goes wrong after an item was done: the code that is answered. */
static CK_RV misbehave(CK_BYTE *output, CK_ULONG *size)
{
    behaviour now;
    CK_RV code = CKR_OK;
    if (is_now("short", &now) && *size > 0)
        *size -= 1;
    if (is_now("long", &now))
        *size += 1;
    if (is_now("huge", &now))
        *size = ~0ul;
    if (is_now("iv", &now))
        operation.iv[0] ^= 1;
    if (is_now("flip", &now) && *size > 0)
        output[0] ^= 1;
    if (is_now("code", &now))
        code = now.code;
    if (is_now("crash", &now))
        abort();
    items++;
    return code;
}

static CK_RV encrypt(CK_SESSION_HANDLE session, CK_BYTE *data, CK_ULONG size, CK_BYTE *output,
                     CK_ULONG *output_size)
{
    (void)session;
    if (!operation.ready || data == NULL || output == NULL)
        return CKR_ARGUMENTS_BAD;
    operation.ready = 0;
    if (*output_size < size + TAG_SIZE)
        return CKR_FUNCTION_FAILED; /* the loop never asks for that */
    change(data, size, output);
    make_tag(data, size, output + size);
    *output_size = size + TAG_SIZE;
    return misbehave(output, output_size);
}

static CK_RV decrypt(CK_SESSION_HANDLE session, CK_BYTE *data, CK_ULONG size, CK_BYTE *output,
                     CK_ULONG *output_size)
{
    CK_BYTE tag[TAG_SIZE];
    (void)session;
    if (!operation.ready || data == NULL || output == NULL)
        return CKR_ARGUMENTS_BAD;
    operation.ready = 0;
    if (size < TAG_SIZE || *output_size < size)
        return CKR_FUNCTION_FAILED; /* the loop never asks for that */
    /* As real ones do, it writes before it knows, and more than it says. */
    memset(output, 0xee, *output_size);
    change(data, size - TAG_SIZE, output);
    *output_size = size - TAG_SIZE;
    make_tag(output, *output_size, tag);
    CK_RV code = misbehave(output, output_size);
    return memcmp(tag, data + size - TAG_SIZE, TAG_SIZE) == 0 ? code : CKR_ENCRYPTED_DATA_INVALID;
}

static CK_RV encrypt_init(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key)
{
    return init(mechanism, session, key);
}

static CK_FUNCTION_LIST list = {.version = {2, 40},
                                .C_EncryptInit = encrypt_init,
                                .C_Encrypt = encrypt,
                                .C_DecryptInit = encrypt_init,
                                .C_Decrypt = decrypt};

__attribute__((visibility("default"))) CK_RV C_GetFunctionList(CK_FUNCTION_LIST **found)
{
    const char *text = getenv("FAKE_PKCS11");
    if (text != NULL && strcmp(text, "no-list") == 0)
        return CKR_GENERAL_ERROR;
    list.C_Decrypt = text != NULL && strcmp(text, "no-decrypt") == 0 ? NULL : decrypt;
    *found = text != NULL && strcmp(text, "null-list") == 0 ? NULL : &list;
    return CKR_OK;
}
