/* The 68 functions of PKCS#11 v2.40 in the order of CK_FUNCTION_LIST: the one place of truth.
 *
 * A row is: name, parameters, the same as arguments, and roles. Roles initialise a `call` (faults.h)
 * and say which parameter is the session, an object handle and so on; they are addresses, so that
 * what stands before the module can change the arguments. Only the build with fault injection reads
 * roles. */
#ifndef HSMUX_ADAPTER_FUNCTIONS_H
#define HSMUX_ADAPTER_FUNCTIONS_H

typedef struct CK_FUNCTION_LIST CK_FUNCTION_LIST;

/* Parameter lists that several functions share. */
#define P_SESSION (CK_SESSION_HANDLE session)
#define P_START (CK_SESSION_HANDLE session, CK_MECHANISM *mechanism)
#define P_START_KEY (CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key)
#define P_INPUT (CK_SESSION_HANDLE session, CK_BYTE *input, CK_ULONG input_size)
#define P_OUTPUT (CK_SESSION_HANDLE session, CK_BYTE *output, CK_ULONG *output_size)
#define P_BOTH                                                                                   \
    (CK_SESSION_HANDLE session, CK_BYTE *input, CK_ULONG input_size, CK_BYTE *output,            \
     CK_ULONG *output_size)

#define A_SESSION (session)
#define A_START (session, mechanism)
#define A_START_KEY (session, mechanism, key)
#define A_INPUT (session, input, input_size)
#define A_OUTPUT (session, output, output_size)
#define A_BOTH (session, input, input_size, output, output_size)

#define R_NONE .session = NULL
#define R_SLOT .slot = &slot
#define R_SESSION .session = &session
#define R_START R_SESSION, .mechanism = mechanism
#define R_START_KEY R_START, .objects = {&key}
#define R_INPUT R_SESSION, .input_size = input_size
#define R_OUTPUT R_SESSION, .output = output, .output_size = output_size
#define R_BOTH R_INPUT, .output = output, .output_size = output_size

#define FUNCTIONS(F)                                                                             \
    F(C_Initialize, (void *arguments), (arguments), R_NONE)                                      \
    F(C_Finalize, (void *reserved), (reserved), R_NONE)                                          \
    F(C_GetInfo, (void *information), (information), R_NONE)                                     \
    F(C_GetFunctionList, (CK_FUNCTION_LIST **list), (list), R_NONE)                              \
    F(C_GetSlotList, (CK_BBOOL present, CK_SLOT_ID *slots, CK_ULONG *count),                     \
      (present, slots, count), .slot_count = present ? count : NULL)                             \
    F(C_GetSlotInfo, (CK_SLOT_ID slot, CK_SLOT_INFO *information), (slot, information),          \
      R_SLOT, .slot_information = information)                                                   \
    F(C_GetTokenInfo, (CK_SLOT_ID slot, void *information), (slot, information), R_SLOT)         \
    F(C_GetMechanismList, (CK_SLOT_ID slot, CK_MECHANISM_TYPE *list, CK_ULONG *count),           \
      (slot, list, count), R_SLOT)                                                               \
    F(C_GetMechanismInfo, (CK_SLOT_ID slot, CK_MECHANISM_TYPE type, void *information),          \
      (slot, type, information), R_SLOT)                                                         \
    F(C_InitToken, (CK_SLOT_ID slot, CK_BYTE *pin, CK_ULONG pin_size, CK_BYTE *label),           \
      (slot, pin, pin_size, label), R_SLOT)                                                      \
    F(C_InitPIN, (CK_SESSION_HANDLE session, CK_BYTE *pin, CK_ULONG pin_size),                   \
      (session, pin, pin_size), R_SESSION)                                                       \
    F(C_SetPIN,                                                                                  \
      (CK_SESSION_HANDLE session, CK_BYTE *old_pin, CK_ULONG old_pin_size, CK_BYTE *new_pin,     \
       CK_ULONG new_pin_size),                                                                   \
      (session, old_pin, old_pin_size, new_pin, new_pin_size), R_SESSION)                        \
    F(C_OpenSession,                                                                             \
      (CK_SLOT_ID slot, CK_FLAGS flags, void *application, void *notify,                         \
       CK_SESSION_HANDLE *session),                                                              \
      (slot, flags, application, notify, session), R_SLOT, .opened = session)                    \
    F(C_CloseSession, P_SESSION, A_SESSION, R_SESSION)                                           \
    F(C_CloseAllSessions, (CK_SLOT_ID slot), (slot), R_SLOT)                                     \
    F(C_GetSessionInfo, (CK_SESSION_HANDLE session, void *information), (session, information),  \
      R_SESSION)                                                                                 \
    F(C_GetOperationState, P_OUTPUT, A_OUTPUT, R_OUTPUT)                                         \
    F(C_SetOperationState,                                                                       \
      (CK_SESSION_HANDLE session, CK_BYTE *input, CK_ULONG input_size,                           \
       CK_OBJECT_HANDLE encryption, CK_OBJECT_HANDLE authentication),                            \
      (session, input, input_size, encryption, authentication), R_INPUT,                         \
      .objects = {&encryption, &authentication})                                                 \
    F(C_Login,                                                                                   \
      (CK_SESSION_HANDLE session, CK_ULONG user, CK_BYTE *pin, CK_ULONG pin_size),               \
      (session, user, pin, pin_size), R_SESSION)                                                 \
    F(C_Logout, P_SESSION, A_SESSION, R_SESSION)                                                 \
    F(C_CreateObject,                                                                            \
      (CK_SESSION_HANDLE session, CK_ATTRIBUTE *attributes, CK_ULONG count,                      \
       CK_OBJECT_HANDLE *made),                                                                  \
      (session, attributes, count, made), R_SESSION, .made = {made})                             \
    F(C_CopyObject,                                                                              \
      (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *attributes,             \
       CK_ULONG count, CK_OBJECT_HANDLE *made),                                                  \
      (session, object, attributes, count, made), R_SESSION, .objects = {&object},               \
      .made = {made})                                                                            \
    F(C_DestroyObject, (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object), (session, object),  \
      R_SESSION, .objects = {&object})                                                           \
    F(C_GetObjectSize, (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ULONG *size),     \
      (session, object, size), R_SESSION, .objects = {&object})                                  \
    F(C_GetAttributeValue,                                                                       \
      (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *attributes,             \
       CK_ULONG count),                                                                          \
      (session, object, attributes, count), R_SESSION, .objects = {&object})                     \
    F(C_SetAttributeValue,                                                                       \
      (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *attributes,             \
       CK_ULONG count),                                                                          \
      (session, object, attributes, count), R_SESSION, .objects = {&object})                     \
    F(C_FindObjectsInit,                                                                         \
      (CK_SESSION_HANDLE session, CK_ATTRIBUTE *attributes, CK_ULONG count),                     \
      (session, attributes, count), R_SESSION)                                                   \
    F(C_FindObjects,                                                                             \
      (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE *found, CK_ULONG room, CK_ULONG *count),      \
      (session, found, room, count), R_SESSION, .found = found, .found_count = count)            \
    F(C_FindObjectsFinal, P_SESSION, A_SESSION, R_SESSION)                                       \
    F(C_EncryptInit, P_START_KEY, A_START_KEY, R_START_KEY)                                      \
    F(C_Encrypt, P_BOTH, A_BOTH, R_BOTH)                                                         \
    F(C_EncryptUpdate, P_BOTH, A_BOTH, R_BOTH)                                                   \
    F(C_EncryptFinal, P_OUTPUT, A_OUTPUT, R_OUTPUT)                                              \
    F(C_DecryptInit, P_START_KEY, A_START_KEY, R_START_KEY)                                      \
    F(C_Decrypt, P_BOTH, A_BOTH, R_BOTH)                                                         \
    F(C_DecryptUpdate, P_BOTH, A_BOTH, R_BOTH)                                                   \
    F(C_DecryptFinal, P_OUTPUT, A_OUTPUT, R_OUTPUT)                                              \
    F(C_DigestInit, P_START, A_START, R_START)                                                   \
    F(C_Digest, P_BOTH, A_BOTH, R_BOTH)                                                          \
    F(C_DigestUpdate, P_INPUT, A_INPUT, R_INPUT)                                                 \
    F(C_DigestKey, (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE key), (session, key), R_SESSION, \
      .objects = {&key})                                                                         \
    F(C_DigestFinal, P_OUTPUT, A_OUTPUT, R_OUTPUT)                                               \
    F(C_SignInit, P_START_KEY, A_START_KEY, R_START_KEY)                                         \
    F(C_Sign, P_BOTH, A_BOTH, R_BOTH)                                                            \
    F(C_SignUpdate, P_INPUT, A_INPUT, R_INPUT)                                                   \
    F(C_SignFinal, P_OUTPUT, A_OUTPUT, R_OUTPUT)                                                 \
    F(C_SignRecoverInit, P_START_KEY, A_START_KEY, R_START_KEY)                                  \
    F(C_SignRecover, P_BOTH, A_BOTH, R_BOTH)                                                     \
    F(C_VerifyInit, P_START_KEY, A_START_KEY, R_START_KEY)                                       \
    F(C_Verify,                                                                                  \
      (CK_SESSION_HANDLE session, CK_BYTE *input, CK_ULONG input_size, CK_BYTE *signature,       \
       CK_ULONG signature_size),                                                                 \
      (session, input, input_size, signature, signature_size), R_INPUT)                          \
    F(C_VerifyUpdate, P_INPUT, A_INPUT, R_INPUT)                                                 \
    F(C_VerifyFinal, P_INPUT, A_INPUT, R_INPUT)                                                  \
    F(C_VerifyRecoverInit, P_START_KEY, A_START_KEY, R_START_KEY)                                \
    F(C_VerifyRecover, P_BOTH, A_BOTH, R_BOTH)                                                   \
    F(C_DigestEncryptUpdate, P_BOTH, A_BOTH, R_BOTH)                                             \
    F(C_DecryptDigestUpdate, P_BOTH, A_BOTH, R_BOTH)                                             \
    F(C_SignEncryptUpdate, P_BOTH, A_BOTH, R_BOTH)                                               \
    F(C_DecryptVerifyUpdate, P_BOTH, A_BOTH, R_BOTH)                                             \
    F(C_GenerateKey,                                                                             \
      (CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_ATTRIBUTE *attributes,             \
       CK_ULONG count, CK_OBJECT_HANDLE *made),                                                  \
      (session, mechanism, attributes, count, made), R_START, .made = {made})                    \
    F(C_GenerateKeyPair,                                                                         \
      (CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_ATTRIBUTE *public_attributes,      \
       CK_ULONG public_count, CK_ATTRIBUTE *private_attributes, CK_ULONG private_count,          \
       CK_OBJECT_HANDLE *public_made, CK_OBJECT_HANDLE *private_made),                           \
      (session, mechanism, public_attributes, public_count, private_attributes, private_count,   \
       public_made, private_made),                                                               \
      R_START, .made = {public_made, private_made})                                              \
    F(C_WrapKey,                                                                                 \
      (CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE wrapping,            \
       CK_OBJECT_HANDLE key, CK_BYTE *output, CK_ULONG *output_size),                            \
      (session, mechanism, wrapping, key, output, output_size), R_START,                         \
      .objects = {&wrapping, &key}, .output = output, .output_size = output_size)                \
    F(C_UnwrapKey,                                                                               \
      (CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE wrapping,            \
       CK_BYTE *input, CK_ULONG input_size, CK_ATTRIBUTE *attributes, CK_ULONG count,            \
       CK_OBJECT_HANDLE *made),                                                                  \
      (session, mechanism, wrapping, input, input_size, attributes, count, made), R_START,       \
      .objects = {&wrapping}, .input_size = input_size, .made = {made})                          \
    F(C_DeriveKey,                                                                               \
      (CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE base,                \
       CK_ATTRIBUTE *attributes, CK_ULONG count, CK_OBJECT_HANDLE *made),                        \
      (session, mechanism, base, attributes, count, made), R_START, .objects = {&base},          \
      .made = {made})                                                                            \
    F(C_SeedRandom, P_INPUT, A_INPUT, R_INPUT)                                                   \
    F(C_GenerateRandom, (CK_SESSION_HANDLE session, CK_BYTE *output, CK_ULONG size),             \
      (session, output, size), R_SESSION, .output = output, .output_size = &size)                \
    F(C_GetFunctionStatus, P_SESSION, A_SESSION, R_SESSION)                                      \
    F(C_CancelFunction, P_SESSION, A_SESSION, R_SESSION)                                         \
    F(C_WaitForSlotEvent, (CK_FLAGS flags, CK_SLOT_ID *slot, void *reserved),                    \
      (flags, slot, reserved), R_NONE)

#endif
