/* The part of PKCS#11 v2.40 that the adapter needs: types, a few values, and CK_FUNCTION_LIST made
 * from the table in functions.h. Structures that are only passed on stay untyped pointers. */
#ifndef HSMUX_ADAPTER_PKCS11_H
#define HSMUX_ADAPTER_PKCS11_H

typedef unsigned char CK_BYTE;
typedef unsigned char CK_BBOOL;
typedef unsigned long CK_ULONG;
typedef CK_ULONG CK_RV, CK_FLAGS, CK_SLOT_ID, CK_SESSION_HANDLE, CK_OBJECT_HANDLE;
typedef CK_ULONG CK_MECHANISM_TYPE, CK_ATTRIBUTE_TYPE;

typedef struct {
    CK_BYTE major, minor;
} CK_VERSION;

typedef struct {
    CK_MECHANISM_TYPE mechanism;
    void *parameter;
    CK_ULONG parameter_size;
} CK_MECHANISM;

typedef struct {
    CK_ATTRIBUTE_TYPE type;
    void *value;
    CK_ULONG size;
} CK_ATTRIBUTE;

typedef struct {
    CK_BYTE *iv;
    CK_ULONG iv_size, iv_bits;
    CK_BYTE *aad;
    CK_ULONG aad_size, tag_bits;
} CK_GCM_PARAMS;

typedef struct {
    CK_BYTE description[64], manufacturer[32];
    CK_FLAGS flags;
    CK_VERSION hardware, firmware;
} CK_SLOT_INFO;

/* The standard's structure ends with pReserved, at the place of `parameters`. NSS's own reads that
 * place as LibraryParameters and, only when it is not NULL, one more pointer that must be NULL. One
 * structure serves both. */
typedef struct {
    CK_RV (*create_mutex)(void **);
    CK_RV (*destroy_mutex)(void *);
    CK_RV (*lock_mutex)(void *);
    CK_RV (*unlock_mutex)(void *);
    CK_FLAGS flags;
    const char *parameters;
    void *reserved;
} CK_C_INITIALIZE_ARGS;

#define CKF_LIBRARY_CANT_CREATE_OS_THREADS 0x01ul
#define CKF_OS_LOCKING_OK 0x02ul
#define CKF_TOKEN_PRESENT 0x01ul
#define CKM_AES_GCM 0x1087ul
#define CKA_CLASS 0x000ul
#define CKA_TOKEN 0x001ul
#define CKA_LABEL 0x003ul
#define CKA_ID 0x102ul
#define CK_INVALID_HANDLE 0ul

#define CKR_OK 0x000ul
#define CKR_GENERAL_ERROR 0x005ul
#define CKR_ARGUMENTS_BAD 0x007ul
#define CKR_DEVICE_REMOVED 0x032ul
#define CKR_FUNCTION_NOT_SUPPORTED 0x054ul
#define CKR_MECHANISM_PARAM_INVALID 0x071ul
#define CKR_SESSION_COUNT 0x0b1ul
#define CKR_SESSION_HANDLE_INVALID 0x0b3ul
#define CKR_TOKEN_NOT_PRESENT 0x0e0ul
#define CKR_CRYPTOKI_NOT_INITIALIZED 0x190ul

#include "functions.h"

struct CK_FUNCTION_LIST {
    CK_VERSION version;
#define FUNCTION(name, parameters, arguments, ...) CK_RV (*name) parameters;
    FUNCTIONS(FUNCTION)
#undef FUNCTION
};

typedef enum {
#define FUNCTION(name, parameters, arguments, ...) F_##name,
    FUNCTIONS(FUNCTION)
#undef FUNCTION
    FUNCTION_COUNT
} function_index;

_Static_assert(FUNCTION_COUNT == 68, "PKCS#11 v2.40 has 68 functions");

#endif
