/* PKCS#11 v2.40: the part of Cryptoki that hsmux uses.
 *
 * Written from the OASIS standard "PKCS #11 Cryptographic Token Interface Base Specification
 * Version 2.40" (names, order of the function list, layout) and "Current Mechanisms Specification
 * Version 2.40" (CK_GCM_PARAMS, section 2.12.3). On Unix structures have the compiler's natural
 * alignment and CK_ULONG is `unsigned long`.
 *
 * The functions are one table, HSMUX_P11_FUNCTIONS: the function list's structure is made from it,
 * and whoever needs one stub for each function makes it from the same table. A row is the name,
 * the parameters, and the names of the parameters as a call passes them on. */
#ifndef HSMUX_PKCS11_H
#define HSMUX_PKCS11_H

typedef unsigned char CK_BYTE;
typedef unsigned char CK_CHAR;
typedef unsigned char CK_UTF8CHAR;
typedef unsigned char CK_BBOOL;
typedef unsigned long CK_ULONG;
typedef CK_ULONG CK_FLAGS;
typedef CK_ULONG CK_RV;
typedef CK_ULONG CK_SLOT_ID;
typedef CK_ULONG CK_SESSION_HANDLE;
typedef CK_ULONG CK_OBJECT_HANDLE;
typedef CK_ULONG CK_OBJECT_CLASS;
typedef CK_ULONG CK_KEY_TYPE;
typedef CK_ULONG CK_ATTRIBUTE_TYPE;
typedef CK_ULONG CK_MECHANISM_TYPE;
typedef CK_ULONG CK_USER_TYPE;
typedef CK_ULONG CK_STATE;
typedef CK_ULONG CK_NOTIFICATION;

typedef struct CK_VERSION {
    CK_BYTE major;
    CK_BYTE minor;
} CK_VERSION;

typedef struct CK_INFO {
    CK_VERSION cryptokiVersion;
    CK_UTF8CHAR manufacturerID[32];
    CK_FLAGS flags;
    CK_UTF8CHAR libraryDescription[32];
    CK_VERSION libraryVersion;
} CK_INFO;

typedef struct CK_SLOT_INFO {
    CK_UTF8CHAR slotDescription[64];
    CK_UTF8CHAR manufacturerID[32];
    CK_FLAGS flags;
    CK_VERSION hardwareVersion;
    CK_VERSION firmwareVersion;
} CK_SLOT_INFO;

typedef struct CK_TOKEN_INFO {
    CK_UTF8CHAR label[32];
    CK_UTF8CHAR manufacturerID[32];
    CK_UTF8CHAR model[16];
    CK_CHAR serialNumber[16];
    CK_FLAGS flags;
    CK_ULONG ulMaxSessionCount;
    CK_ULONG ulSessionCount;
    CK_ULONG ulMaxRwSessionCount;
    CK_ULONG ulRwSessionCount;
    CK_ULONG ulMaxPinLen;
    CK_ULONG ulMinPinLen;
    CK_ULONG ulTotalPublicMemory;
    CK_ULONG ulFreePublicMemory;
    CK_ULONG ulTotalPrivateMemory;
    CK_ULONG ulFreePrivateMemory;
    CK_VERSION hardwareVersion;
    CK_VERSION firmwareVersion;
    CK_CHAR utcTime[16];
} CK_TOKEN_INFO;

typedef struct CK_SESSION_INFO {
    CK_SLOT_ID slotID;
    CK_STATE state;
    CK_FLAGS flags;
    CK_ULONG ulDeviceError;
} CK_SESSION_INFO;

typedef struct CK_MECHANISM_INFO {
    CK_ULONG ulMinKeySize;
    CK_ULONG ulMaxKeySize;
    CK_FLAGS flags;
} CK_MECHANISM_INFO;

typedef struct CK_ATTRIBUTE {
    CK_ATTRIBUTE_TYPE type;
    void *pValue;
    CK_ULONG ulValueLen;
} CK_ATTRIBUTE;

typedef struct CK_MECHANISM {
    CK_MECHANISM_TYPE mechanism;
    void *pParameter;
    CK_ULONG ulParameterLen;
} CK_MECHANISM;

/* Parameters of CKM_AES_GCM as v2.40 lays them out; ulIvBits is the one that v2.20 lacked. */
typedef struct CK_GCM_PARAMS {
    CK_BYTE *pIv;
    CK_ULONG ulIvLen;
    CK_ULONG ulIvBits;
    CK_BYTE *pAAD;
    CK_ULONG ulAADLen;
    CK_ULONG ulTagBits;
} CK_GCM_PARAMS;

typedef CK_RV (*CK_CREATEMUTEX)(void **ppMutex);
typedef CK_RV (*CK_DESTROYMUTEX)(void *pMutex);
typedef CK_RV (*CK_LOCKMUTEX)(void *pMutex);
typedef CK_RV (*CK_UNLOCKMUTEX)(void *pMutex);
typedef CK_RV (*CK_NOTIFY)(CK_SESSION_HANDLE hSession, CK_NOTIFICATION event, void *pApplication);

typedef struct CK_C_INITIALIZE_ARGS {
    CK_CREATEMUTEX CreateMutex;
    CK_DESTROYMUTEX DestroyMutex;
    CK_LOCKMUTEX LockMutex;
    CK_UNLOCKMUTEX UnlockMutex;
    CK_FLAGS flags;
    void *pReserved;
} CK_C_INITIALIZE_ARGS;

/* What NSS softokn takes: its parameter string stands before pReserved. */
typedef struct CK_NSS_C_INITIALIZE_ARGS {
    CK_CREATEMUTEX CreateMutex;
    CK_DESTROYMUTEX DestroyMutex;
    CK_LOCKMUTEX LockMutex;
    CK_UNLOCKMUTEX UnlockMutex;
    CK_FLAGS flags;
    CK_CHAR **LibraryParameters;
    void *pReserved;
} CK_NSS_C_INITIALIZE_ARGS;

#define CK_TRUE 1
#define CK_FALSE 0
#define CK_INVALID_HANDLE 0ul
#define CK_UNAVAILABLE_INFORMATION (~0ul)
#define CK_EFFECTIVELY_INFINITE 0ul

#define CKF_LIBRARY_CANT_CREATE_OS_THREADS 0x00000001ul
#define CKF_OS_LOCKING_OK 0x00000002ul
#define CKF_TOKEN_PRESENT 0x00000001ul
#define CKF_RW_SESSION 0x00000002ul
#define CKF_SERIAL_SESSION 0x00000004ul
#define CKF_DONT_BLOCK 1ul

#define CKU_SO 0ul
#define CKU_USER 1ul

#define CKA_CLASS 0x00000000ul
#define CKA_TOKEN 0x00000001ul
#define CKA_PRIVATE 0x00000002ul
#define CKA_LABEL 0x00000003ul
#define CKA_VALUE 0x00000011ul
#define CKA_KEY_TYPE 0x00000100ul
#define CKA_ID 0x00000102ul
#define CKA_SENSITIVE 0x00000103ul
#define CKA_ENCRYPT 0x00000104ul
#define CKA_DECRYPT 0x00000105ul
#define CKA_VALUE_LEN 0x00000161ul
#define CKA_EXTRACTABLE 0x00000162ul

#define CKO_SECRET_KEY 0x00000004ul
#define CKK_AES 0x0000001ful

#define CKM_RSA_PKCS 0x00000001ul
#define CKM_RSA_X_509 0x00000003ul
#define CKM_ECDSA 0x00001041ul
#define CKM_AES_KEY_GEN 0x00001080ul
#define CKM_AES_GCM 0x00001087ul

/* Return values: name and number, base specification section 3.6 and appendix. */
#define HSMUX_P11_RETURN_VALUES(X)                  \
    X(CKR_OK, 0x00000000ul)                         \
    X(CKR_CANCEL, 0x00000001ul)                     \
    X(CKR_HOST_MEMORY, 0x00000002ul)                \
    X(CKR_SLOT_ID_INVALID, 0x00000003ul)            \
    X(CKR_GENERAL_ERROR, 0x00000005ul)              \
    X(CKR_FUNCTION_FAILED, 0x00000006ul)            \
    X(CKR_ARGUMENTS_BAD, 0x00000007ul)              \
    X(CKR_NO_EVENT, 0x00000008ul)                   \
    X(CKR_NEED_TO_CREATE_THREADS, 0x00000009ul)     \
    X(CKR_CANT_LOCK, 0x0000000aul)                  \
    X(CKR_ATTRIBUTE_READ_ONLY, 0x00000010ul)        \
    X(CKR_ATTRIBUTE_SENSITIVE, 0x00000011ul)        \
    X(CKR_ATTRIBUTE_TYPE_INVALID, 0x00000012ul)     \
    X(CKR_ATTRIBUTE_VALUE_INVALID, 0x00000013ul)    \
    X(CKR_ACTION_PROHIBITED, 0x0000001bul)          \
    X(CKR_DATA_INVALID, 0x00000020ul)               \
    X(CKR_DATA_LEN_RANGE, 0x00000021ul)             \
    X(CKR_DEVICE_ERROR, 0x00000030ul)               \
    X(CKR_DEVICE_MEMORY, 0x00000031ul)              \
    X(CKR_DEVICE_REMOVED, 0x00000032ul)             \
    X(CKR_ENCRYPTED_DATA_INVALID, 0x00000040ul)     \
    X(CKR_ENCRYPTED_DATA_LEN_RANGE, 0x00000041ul)   \
    X(CKR_FUNCTION_CANCELED, 0x00000050ul)          \
    X(CKR_FUNCTION_NOT_PARALLEL, 0x00000051ul)      \
    X(CKR_FUNCTION_NOT_SUPPORTED, 0x00000054ul)     \
    X(CKR_KEY_HANDLE_INVALID, 0x00000060ul)         \
    X(CKR_KEY_SIZE_RANGE, 0x00000062ul)             \
    X(CKR_KEY_TYPE_INCONSISTENT, 0x00000063ul)      \
    X(CKR_KEY_NOT_NEEDED, 0x00000064ul)             \
    X(CKR_KEY_CHANGED, 0x00000065ul)                \
    X(CKR_KEY_NEEDED, 0x00000066ul)                 \
    X(CKR_KEY_INDIGESTIBLE, 0x00000067ul)           \
    X(CKR_KEY_FUNCTION_NOT_PERMITTED, 0x00000068ul) \
    X(CKR_KEY_NOT_WRAPPABLE, 0x00000069ul)          \
    X(CKR_KEY_UNEXTRACTABLE, 0x0000006aul)          \
    X(CKR_MECHANISM_INVALID, 0x00000070ul)          \
    X(CKR_MECHANISM_PARAM_INVALID, 0x00000071ul)    \
    X(CKR_OBJECT_HANDLE_INVALID, 0x00000082ul)      \
    X(CKR_OPERATION_ACTIVE, 0x00000090ul)           \
    X(CKR_OPERATION_NOT_INITIALIZED, 0x00000091ul)  \
    X(CKR_PIN_INCORRECT, 0x000000a0ul)              \
    X(CKR_PIN_INVALID, 0x000000a1ul)                \
    X(CKR_PIN_LEN_RANGE, 0x000000a2ul)              \
    X(CKR_PIN_EXPIRED, 0x000000a3ul)                \
    X(CKR_PIN_LOCKED, 0x000000a4ul)                 \
    X(CKR_SESSION_CLOSED, 0x000000b0ul)             \
    X(CKR_SESSION_COUNT, 0x000000b1ul)              \
    X(CKR_SESSION_HANDLE_INVALID, 0x000000b3ul)     \
    X(CKR_SESSION_PARALLEL_NOT_SUPPORTED, 0x000000b4ul) \
    X(CKR_SESSION_READ_ONLY, 0x000000b5ul)          \
    X(CKR_SESSION_EXISTS, 0x000000b6ul)             \
    X(CKR_SESSION_READ_ONLY_EXISTS, 0x000000b7ul)   \
    X(CKR_SESSION_READ_WRITE_SO_EXISTS, 0x000000b8ul) \
    X(CKR_SIGNATURE_INVALID, 0x000000c0ul)          \
    X(CKR_SIGNATURE_LEN_RANGE, 0x000000c1ul)        \
    X(CKR_TEMPLATE_INCOMPLETE, 0x000000d0ul)        \
    X(CKR_TEMPLATE_INCONSISTENT, 0x000000d1ul)      \
    X(CKR_TOKEN_NOT_PRESENT, 0x000000e0ul)          \
    X(CKR_TOKEN_NOT_RECOGNIZED, 0x000000e1ul)       \
    X(CKR_TOKEN_WRITE_PROTECTED, 0x000000e2ul)      \
    X(CKR_UNWRAPPING_KEY_HANDLE_INVALID, 0x000000f0ul) \
    X(CKR_UNWRAPPING_KEY_SIZE_RANGE, 0x000000f1ul)  \
    X(CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT, 0x000000f2ul) \
    X(CKR_USER_ALREADY_LOGGED_IN, 0x00000100ul)     \
    X(CKR_USER_NOT_LOGGED_IN, 0x00000101ul)         \
    X(CKR_USER_PIN_NOT_INITIALIZED, 0x00000102ul)   \
    X(CKR_USER_TYPE_INVALID, 0x00000103ul)          \
    X(CKR_USER_ANOTHER_ALREADY_LOGGED_IN, 0x00000104ul) \
    X(CKR_USER_TOO_MANY_TYPES, 0x00000105ul)        \
    X(CKR_WRAPPED_KEY_INVALID, 0x00000110ul)        \
    X(CKR_WRAPPED_KEY_LEN_RANGE, 0x00000112ul)      \
    X(CKR_WRAPPING_KEY_HANDLE_INVALID, 0x00000113ul) \
    X(CKR_WRAPPING_KEY_SIZE_RANGE, 0x00000114ul)    \
    X(CKR_WRAPPING_KEY_TYPE_INCONSISTENT, 0x00000115ul) \
    X(CKR_RANDOM_SEED_NOT_SUPPORTED, 0x00000120ul)  \
    X(CKR_RANDOM_NO_RNG, 0x00000121ul)              \
    X(CKR_DOMAIN_PARAMS_INVALID, 0x00000130ul)      \
    X(CKR_CURVE_NOT_SUPPORTED, 0x00000140ul)        \
    X(CKR_BUFFER_TOO_SMALL, 0x00000150ul)           \
    X(CKR_SAVED_STATE_INVALID, 0x00000160ul)        \
    X(CKR_INFORMATION_SENSITIVE, 0x00000170ul)      \
    X(CKR_STATE_UNSAVEABLE, 0x00000180ul)           \
    X(CKR_CRYPTOKI_NOT_INITIALIZED, 0x00000190ul)   \
    X(CKR_CRYPTOKI_ALREADY_INITIALIZED, 0x00000191ul) \
    X(CKR_MUTEX_BAD, 0x000001a0ul)                  \
    X(CKR_MUTEX_NOT_LOCKED, 0x000001a1ul)           \
    X(CKR_FUNCTION_REJECTED, 0x00000200ul)          \
    X(CKR_VENDOR_DEFINED, 0x80000000ul)

enum {
#define HSMUX_P11_RETURN_VALUE(name, number) name = number,
    HSMUX_P11_RETURN_VALUES(HSMUX_P11_RETURN_VALUE)
#undef HSMUX_P11_RETURN_VALUE
};

typedef struct CK_FUNCTION_LIST CK_FUNCTION_LIST;

/* clang-format off */
#define HSMUX_P11_FUNCTIONS(X) \
    X(C_Initialize, (void *pInitArgs), (pInitArgs)) \
    X(C_Finalize, (void *pReserved), (pReserved)) \
    X(C_GetInfo, (CK_INFO *pInfo), (pInfo)) \
    X(C_GetFunctionList, (CK_FUNCTION_LIST **ppFunctionList), (ppFunctionList)) \
    X(C_GetSlotList, (CK_BBOOL tokenPresent, CK_SLOT_ID *pSlotList, CK_ULONG *pulCount), \
      (tokenPresent, pSlotList, pulCount)) \
    X(C_GetSlotInfo, (CK_SLOT_ID slotID, CK_SLOT_INFO *pInfo), (slotID, pInfo)) \
    X(C_GetTokenInfo, (CK_SLOT_ID slotID, CK_TOKEN_INFO *pInfo), (slotID, pInfo)) \
    X(C_GetMechanismList, \
      (CK_SLOT_ID slotID, CK_MECHANISM_TYPE *pMechanismList, CK_ULONG *pulCount), \
      (slotID, pMechanismList, pulCount)) \
    X(C_GetMechanismInfo, \
      (CK_SLOT_ID slotID, CK_MECHANISM_TYPE type, CK_MECHANISM_INFO *pInfo), \
      (slotID, type, pInfo)) \
    X(C_InitToken, \
      (CK_SLOT_ID slotID, CK_UTF8CHAR *pPin, CK_ULONG ulPinLen, CK_UTF8CHAR *pLabel), \
      (slotID, pPin, ulPinLen, pLabel)) \
    X(C_InitPIN, (CK_SESSION_HANDLE hSession, CK_UTF8CHAR *pPin, CK_ULONG ulPinLen), \
      (hSession, pPin, ulPinLen)) \
    X(C_SetPIN, \
      (CK_SESSION_HANDLE hSession, CK_UTF8CHAR *pOldPin, CK_ULONG ulOldLen, \
       CK_UTF8CHAR *pNewPin, CK_ULONG ulNewLen), \
      (hSession, pOldPin, ulOldLen, pNewPin, ulNewLen)) \
    X(C_OpenSession, \
      (CK_SLOT_ID slotID, CK_FLAGS flags, void *pApplication, CK_NOTIFY Notify, \
       CK_SESSION_HANDLE *phSession), \
      (slotID, flags, pApplication, Notify, phSession)) \
    X(C_CloseSession, (CK_SESSION_HANDLE hSession), (hSession)) \
    X(C_CloseAllSessions, (CK_SLOT_ID slotID), (slotID)) \
    X(C_GetSessionInfo, (CK_SESSION_HANDLE hSession, CK_SESSION_INFO *pInfo), \
      (hSession, pInfo)) \
    X(C_GetOperationState, \
      (CK_SESSION_HANDLE hSession, CK_BYTE *pOperationState, CK_ULONG *pulOperationStateLen), \
      (hSession, pOperationState, pulOperationStateLen)) \
    X(C_SetOperationState, \
      (CK_SESSION_HANDLE hSession, CK_BYTE *pOperationState, CK_ULONG ulOperationStateLen, \
       CK_OBJECT_HANDLE hEncryptionKey, CK_OBJECT_HANDLE hAuthenticationKey), \
      (hSession, pOperationState, ulOperationStateLen, hEncryptionKey, hAuthenticationKey)) \
    X(C_Login, \
      (CK_SESSION_HANDLE hSession, CK_USER_TYPE userType, CK_UTF8CHAR *pPin, \
       CK_ULONG ulPinLen), \
      (hSession, userType, pPin, ulPinLen)) \
    X(C_Logout, (CK_SESSION_HANDLE hSession), (hSession)) \
    X(C_CreateObject, \
      (CK_SESSION_HANDLE hSession, CK_ATTRIBUTE *pTemplate, CK_ULONG ulCount, \
       CK_OBJECT_HANDLE *phObject), \
      (hSession, pTemplate, ulCount, phObject)) \
    X(C_CopyObject, \
      (CK_SESSION_HANDLE hSession, CK_OBJECT_HANDLE hObject, CK_ATTRIBUTE *pTemplate, \
       CK_ULONG ulCount, CK_OBJECT_HANDLE *phNewObject), \
      (hSession, hObject, pTemplate, ulCount, phNewObject)) \
    X(C_DestroyObject, (CK_SESSION_HANDLE hSession, CK_OBJECT_HANDLE hObject), \
      (hSession, hObject)) \
    X(C_GetObjectSize, \
      (CK_SESSION_HANDLE hSession, CK_OBJECT_HANDLE hObject, CK_ULONG *pulSize), \
      (hSession, hObject, pulSize)) \
    X(C_GetAttributeValue, \
      (CK_SESSION_HANDLE hSession, CK_OBJECT_HANDLE hObject, CK_ATTRIBUTE *pTemplate, \
       CK_ULONG ulCount), \
      (hSession, hObject, pTemplate, ulCount)) \
    X(C_SetAttributeValue, \
      (CK_SESSION_HANDLE hSession, CK_OBJECT_HANDLE hObject, CK_ATTRIBUTE *pTemplate, \
       CK_ULONG ulCount), \
      (hSession, hObject, pTemplate, ulCount)) \
    X(C_FindObjectsInit, \
      (CK_SESSION_HANDLE hSession, CK_ATTRIBUTE *pTemplate, CK_ULONG ulCount), \
      (hSession, pTemplate, ulCount)) \
    X(C_FindObjects, \
      (CK_SESSION_HANDLE hSession, CK_OBJECT_HANDLE *phObject, CK_ULONG ulMaxObjectCount, \
       CK_ULONG *pulObjectCount), \
      (hSession, phObject, ulMaxObjectCount, pulObjectCount)) \
    X(C_FindObjectsFinal, (CK_SESSION_HANDLE hSession), (hSession)) \
    X(C_EncryptInit, \
      (CK_SESSION_HANDLE hSession, CK_MECHANISM *pMechanism, CK_OBJECT_HANDLE hKey), \
      (hSession, pMechanism, hKey)) \
    X(C_Encrypt, \
      (CK_SESSION_HANDLE hSession, CK_BYTE *pData, CK_ULONG ulDataLen, \
       CK_BYTE *pEncryptedData, CK_ULONG *pulEncryptedDataLen), \
      (hSession, pData, ulDataLen, pEncryptedData, pulEncryptedDataLen)) \
    X(C_EncryptUpdate, \
      (CK_SESSION_HANDLE hSession, CK_BYTE *pPart, CK_ULONG ulPartLen, \
       CK_BYTE *pEncryptedPart, CK_ULONG *pulEncryptedPartLen), \
      (hSession, pPart, ulPartLen, pEncryptedPart, pulEncryptedPartLen)) \
    X(C_EncryptFinal, \
      (CK_SESSION_HANDLE hSession, CK_BYTE *pLastEncryptedPart, \
       CK_ULONG *pulLastEncryptedPartLen), \
      (hSession, pLastEncryptedPart, pulLastEncryptedPartLen)) \
    X(C_DecryptInit, \
      (CK_SESSION_HANDLE hSession, CK_MECHANISM *pMechanism, CK_OBJECT_HANDLE hKey), \
      (hSession, pMechanism, hKey)) \
    X(C_Decrypt, \
      (CK_SESSION_HANDLE hSession, CK_BYTE *pEncryptedData, CK_ULONG ulEncryptedDataLen, \
       CK_BYTE *pData, CK_ULONG *pulDataLen), \
      (hSession, pEncryptedData, ulEncryptedDataLen, pData, pulDataLen)) \
    X(C_DecryptUpdate, \
      (CK_SESSION_HANDLE hSession, CK_BYTE *pEncryptedPart, CK_ULONG ulEncryptedPartLen, \
       CK_BYTE *pPart, CK_ULONG *pulPartLen), \
      (hSession, pEncryptedPart, ulEncryptedPartLen, pPart, pulPartLen)) \
    X(C_DecryptFinal, \
      (CK_SESSION_HANDLE hSession, CK_BYTE *pLastPart, CK_ULONG *pulLastPartLen), \
      (hSession, pLastPart, pulLastPartLen)) \
    X(C_DigestInit, (CK_SESSION_HANDLE hSession, CK_MECHANISM *pMechanism), \
      (hSession, pMechanism)) \
    X(C_Digest, \
      (CK_SESSION_HANDLE hSession, CK_BYTE *pData, CK_ULONG ulDataLen, CK_BYTE *pDigest, \
       CK_ULONG *pulDigestLen), \
      (hSession, pData, ulDataLen, pDigest, pulDigestLen)) \
    X(C_DigestUpdate, (CK_SESSION_HANDLE hSession, CK_BYTE *pPart, CK_ULONG ulPartLen), \
      (hSession, pPart, ulPartLen)) \
    X(C_DigestKey, (CK_SESSION_HANDLE hSession, CK_OBJECT_HANDLE hKey), (hSession, hKey)) \
    X(C_DigestFinal, \
      (CK_SESSION_HANDLE hSession, CK_BYTE *pDigest, CK_ULONG *pulDigestLen), \
      (hSession, pDigest, pulDigestLen)) \
    X(C_SignInit, \
      (CK_SESSION_HANDLE hSession, CK_MECHANISM *pMechanism, CK_OBJECT_HANDLE hKey), \
      (hSession, pMechanism, hKey)) \
    X(C_Sign, \
      (CK_SESSION_HANDLE hSession, CK_BYTE *pData, CK_ULONG ulDataLen, CK_BYTE *pSignature, \
       CK_ULONG *pulSignatureLen), \
      (hSession, pData, ulDataLen, pSignature, pulSignatureLen)) \
    X(C_SignUpdate, (CK_SESSION_HANDLE hSession, CK_BYTE *pPart, CK_ULONG ulPartLen), \
      (hSession, pPart, ulPartLen)) \
    X(C_SignFinal, \
      (CK_SESSION_HANDLE hSession, CK_BYTE *pSignature, CK_ULONG *pulSignatureLen), \
      (hSession, pSignature, pulSignatureLen)) \
    X(C_SignRecoverInit, \
      (CK_SESSION_HANDLE hSession, CK_MECHANISM *pMechanism, CK_OBJECT_HANDLE hKey), \
      (hSession, pMechanism, hKey)) \
    X(C_SignRecover, \
      (CK_SESSION_HANDLE hSession, CK_BYTE *pData, CK_ULONG ulDataLen, CK_BYTE *pSignature, \
       CK_ULONG *pulSignatureLen), \
      (hSession, pData, ulDataLen, pSignature, pulSignatureLen)) \
    X(C_VerifyInit, \
      (CK_SESSION_HANDLE hSession, CK_MECHANISM *pMechanism, CK_OBJECT_HANDLE hKey), \
      (hSession, pMechanism, hKey)) \
    X(C_Verify, \
      (CK_SESSION_HANDLE hSession, CK_BYTE *pData, CK_ULONG ulDataLen, CK_BYTE *pSignature, \
       CK_ULONG ulSignatureLen), \
      (hSession, pData, ulDataLen, pSignature, ulSignatureLen)) \
    X(C_VerifyUpdate, (CK_SESSION_HANDLE hSession, CK_BYTE *pPart, CK_ULONG ulPartLen), \
      (hSession, pPart, ulPartLen)) \
    X(C_VerifyFinal, \
      (CK_SESSION_HANDLE hSession, CK_BYTE *pSignature, CK_ULONG ulSignatureLen), \
      (hSession, pSignature, ulSignatureLen)) \
    X(C_VerifyRecoverInit, \
      (CK_SESSION_HANDLE hSession, CK_MECHANISM *pMechanism, CK_OBJECT_HANDLE hKey), \
      (hSession, pMechanism, hKey)) \
    X(C_VerifyRecover, \
      (CK_SESSION_HANDLE hSession, CK_BYTE *pSignature, CK_ULONG ulSignatureLen, \
       CK_BYTE *pData, CK_ULONG *pulDataLen), \
      (hSession, pSignature, ulSignatureLen, pData, pulDataLen)) \
    X(C_DigestEncryptUpdate, \
      (CK_SESSION_HANDLE hSession, CK_BYTE *pPart, CK_ULONG ulPartLen, \
       CK_BYTE *pEncryptedPart, CK_ULONG *pulEncryptedPartLen), \
      (hSession, pPart, ulPartLen, pEncryptedPart, pulEncryptedPartLen)) \
    X(C_DecryptDigestUpdate, \
      (CK_SESSION_HANDLE hSession, CK_BYTE *pEncryptedPart, CK_ULONG ulEncryptedPartLen, \
       CK_BYTE *pPart, CK_ULONG *pulPartLen), \
      (hSession, pEncryptedPart, ulEncryptedPartLen, pPart, pulPartLen)) \
    X(C_SignEncryptUpdate, \
      (CK_SESSION_HANDLE hSession, CK_BYTE *pPart, CK_ULONG ulPartLen, \
       CK_BYTE *pEncryptedPart, CK_ULONG *pulEncryptedPartLen), \
      (hSession, pPart, ulPartLen, pEncryptedPart, pulEncryptedPartLen)) \
    X(C_DecryptVerifyUpdate, \
      (CK_SESSION_HANDLE hSession, CK_BYTE *pEncryptedPart, CK_ULONG ulEncryptedPartLen, \
       CK_BYTE *pPart, CK_ULONG *pulPartLen), \
      (hSession, pEncryptedPart, ulEncryptedPartLen, pPart, pulPartLen)) \
    X(C_GenerateKey, \
      (CK_SESSION_HANDLE hSession, CK_MECHANISM *pMechanism, CK_ATTRIBUTE *pTemplate, \
       CK_ULONG ulCount, CK_OBJECT_HANDLE *phKey), \
      (hSession, pMechanism, pTemplate, ulCount, phKey)) \
    X(C_GenerateKeyPair, \
      (CK_SESSION_HANDLE hSession, CK_MECHANISM *pMechanism, \
       CK_ATTRIBUTE *pPublicKeyTemplate, CK_ULONG ulPublicKeyAttributeCount, \
       CK_ATTRIBUTE *pPrivateKeyTemplate, CK_ULONG ulPrivateKeyAttributeCount, \
       CK_OBJECT_HANDLE *phPublicKey, CK_OBJECT_HANDLE *phPrivateKey), \
      (hSession, pMechanism, pPublicKeyTemplate, ulPublicKeyAttributeCount, \
       pPrivateKeyTemplate, ulPrivateKeyAttributeCount, phPublicKey, phPrivateKey)) \
    X(C_WrapKey, \
      (CK_SESSION_HANDLE hSession, CK_MECHANISM *pMechanism, CK_OBJECT_HANDLE hWrappingKey, \
       CK_OBJECT_HANDLE hKey, CK_BYTE *pWrappedKey, CK_ULONG *pulWrappedKeyLen), \
      (hSession, pMechanism, hWrappingKey, hKey, pWrappedKey, pulWrappedKeyLen)) \
    X(C_UnwrapKey, \
      (CK_SESSION_HANDLE hSession, CK_MECHANISM *pMechanism, \
       CK_OBJECT_HANDLE hUnwrappingKey, CK_BYTE *pWrappedKey, CK_ULONG ulWrappedKeyLen, \
       CK_ATTRIBUTE *pTemplate, CK_ULONG ulAttributeCount, CK_OBJECT_HANDLE *phKey), \
      (hSession, pMechanism, hUnwrappingKey, pWrappedKey, ulWrappedKeyLen, pTemplate, \
       ulAttributeCount, phKey)) \
    X(C_DeriveKey, \
      (CK_SESSION_HANDLE hSession, CK_MECHANISM *pMechanism, CK_OBJECT_HANDLE hBaseKey, \
       CK_ATTRIBUTE *pTemplate, CK_ULONG ulAttributeCount, CK_OBJECT_HANDLE *phKey), \
      (hSession, pMechanism, hBaseKey, pTemplate, ulAttributeCount, phKey)) \
    X(C_SeedRandom, (CK_SESSION_HANDLE hSession, CK_BYTE *pSeed, CK_ULONG ulSeedLen), \
      (hSession, pSeed, ulSeedLen)) \
    X(C_GenerateRandom, \
      (CK_SESSION_HANDLE hSession, CK_BYTE *pRandomData, CK_ULONG ulRandomLen), \
      (hSession, pRandomData, ulRandomLen)) \
    X(C_GetFunctionStatus, (CK_SESSION_HANDLE hSession), (hSession)) \
    X(C_CancelFunction, (CK_SESSION_HANDLE hSession), (hSession)) \
    X(C_WaitForSlotEvent, (CK_FLAGS flags, CK_SLOT_ID *pSlot, void *pReserved), \
      (flags, pSlot, pReserved))
/* clang-format on */

/* A type for each function: CK_C_Initialize and so on. */
#define HSMUX_P11_TYPE(name, parameters, arguments) typedef CK_RV(*CK_##name) parameters;
HSMUX_P11_FUNCTIONS(HSMUX_P11_TYPE)
#undef HSMUX_P11_TYPE

#define HSMUX_P11_MEMBER(name, parameters, arguments) CK_##name name;
struct CK_FUNCTION_LIST {
    CK_VERSION version;
    HSMUX_P11_FUNCTIONS(HSMUX_P11_MEMBER)
};
#undef HSMUX_P11_MEMBER

#define HSMUX_P11_COUNT_ONE(name, parameters, arguments) +1
enum { HSMUX_P11_FUNCTION_COUNT = 0 HSMUX_P11_FUNCTIONS(HSMUX_P11_COUNT_ONE) };
#undef HSMUX_P11_COUNT_ONE

_Static_assert(HSMUX_P11_FUNCTION_COUNT == 68, "PKCS#11 v2.40 has 68 functions");
_Static_assert(sizeof(CK_FUNCTION_LIST) == (1 + 68) * sizeof(void *), "an unexpected layout");

#endif
