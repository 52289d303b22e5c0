/* What the parameters of each PKCS#11 function mean to fault injection.
 *
 * ROLES_<function> initialises a `call` (faults.h) inside the function's stub. Sessions and object
 * handles are given by address, so that what stands before the module can change the arguments. A
 * function without a row does not compile. */
#ifndef HSMUX_ADAPTER_ROLES_H
#define HSMUX_ADAPTER_ROLES_H

#define NO_ROLES .session = NULL
#define SLOT .slot = &slotID
#define SESSION .session = &hSession
#define OBJECT SESSION, .objects = {&hObject}
#define START SESSION, .mechanism = pMechanism
#define START_KEY START, .objects = {&hKey}
#define IN(size) SESSION, .input_size = size
#define OUT(bytes, size) .output = bytes, .output_size = size

#define ROLES_C_Initialize NO_ROLES
#define ROLES_C_Finalize NO_ROLES
#define ROLES_C_GetInfo NO_ROLES
#define ROLES_C_GetFunctionList NO_ROLES
#define ROLES_C_GetSlotList .present_count = tokenPresent ? pulCount : NULL
#define ROLES_C_GetSlotInfo .slot_info = pInfo
#define ROLES_C_GetTokenInfo SLOT
#define ROLES_C_GetMechanismList SLOT
#define ROLES_C_GetMechanismInfo SLOT
#define ROLES_C_InitToken SLOT
#define ROLES_C_InitPIN SESSION
#define ROLES_C_SetPIN SESSION
#define ROLES_C_OpenSession SLOT, .opened = phSession
#define ROLES_C_CloseSession SESSION
#define ROLES_C_CloseAllSessions SLOT
#define ROLES_C_GetSessionInfo SESSION
#define ROLES_C_GetOperationState SESSION, OUT(pOperationState, pulOperationStateLen)
#define ROLES_C_SetOperationState                                                                \
    IN(ulOperationStateLen), .objects = {&hEncryptionKey, &hAuthenticationKey}
#define ROLES_C_Login SESSION
#define ROLES_C_Logout SESSION
#define ROLES_C_CreateObject SESSION, .made = {phObject}
#define ROLES_C_CopyObject OBJECT, .made = {phNewObject}
#define ROLES_C_DestroyObject OBJECT
#define ROLES_C_GetObjectSize OBJECT
#define ROLES_C_GetAttributeValue OBJECT
#define ROLES_C_SetAttributeValue OBJECT
#define ROLES_C_FindObjectsInit SESSION
#define ROLES_C_FindObjects SESSION, .found = phObject, .found_count = pulObjectCount
#define ROLES_C_FindObjectsFinal SESSION
#define ROLES_C_EncryptInit START_KEY
#define ROLES_C_Encrypt IN(ulDataLen), OUT(pEncryptedData, pulEncryptedDataLen)
#define ROLES_C_EncryptUpdate IN(ulPartLen), OUT(pEncryptedPart, pulEncryptedPartLen)
#define ROLES_C_EncryptFinal SESSION, OUT(pLastEncryptedPart, pulLastEncryptedPartLen)
#define ROLES_C_DecryptInit START_KEY
#define ROLES_C_Decrypt IN(ulEncryptedDataLen), OUT(pData, pulDataLen)
#define ROLES_C_DecryptUpdate IN(ulEncryptedPartLen), OUT(pPart, pulPartLen)
#define ROLES_C_DecryptFinal SESSION, OUT(pLastPart, pulLastPartLen)
#define ROLES_C_DigestInit START
#define ROLES_C_Digest IN(ulDataLen), OUT(pDigest, pulDigestLen)
#define ROLES_C_DigestUpdate IN(ulPartLen)
#define ROLES_C_DigestKey SESSION, .objects = {&hKey}
#define ROLES_C_DigestFinal SESSION, OUT(pDigest, pulDigestLen)
#define ROLES_C_SignInit START_KEY
#define ROLES_C_Sign IN(ulDataLen), OUT(pSignature, pulSignatureLen)
#define ROLES_C_SignUpdate IN(ulPartLen)
#define ROLES_C_SignFinal SESSION, OUT(pSignature, pulSignatureLen)
#define ROLES_C_SignRecoverInit START_KEY
#define ROLES_C_SignRecover IN(ulDataLen), OUT(pSignature, pulSignatureLen)
#define ROLES_C_VerifyInit START_KEY
#define ROLES_C_Verify IN(ulDataLen)
#define ROLES_C_VerifyUpdate IN(ulPartLen)
#define ROLES_C_VerifyFinal IN(ulSignatureLen)
#define ROLES_C_VerifyRecoverInit START_KEY
#define ROLES_C_VerifyRecover IN(ulSignatureLen), OUT(pData, pulDataLen)
#define ROLES_C_DigestEncryptUpdate IN(ulPartLen), OUT(pEncryptedPart, pulEncryptedPartLen)
#define ROLES_C_DecryptDigestUpdate IN(ulEncryptedPartLen), OUT(pPart, pulPartLen)
#define ROLES_C_SignEncryptUpdate IN(ulPartLen), OUT(pEncryptedPart, pulEncryptedPartLen)
#define ROLES_C_DecryptVerifyUpdate IN(ulEncryptedPartLen), OUT(pPart, pulPartLen)
#define ROLES_C_GenerateKey START, .made = {phKey}
#define ROLES_C_GenerateKeyPair START, .made = {phPublicKey, phPrivateKey}
#define ROLES_C_WrapKey                                                                          \
    START, .objects = {&hWrappingKey, &hKey}, OUT(pWrappedKey, pulWrappedKeyLen)
#define ROLES_C_UnwrapKey                                                                        \
    START, .objects = {&hUnwrappingKey}, .input_size = ulWrappedKeyLen, .made = {phKey}
#define ROLES_C_DeriveKey START, .objects = {&hBaseKey}, .made = {phKey}
#define ROLES_C_SeedRandom IN(ulSeedLen)
#define ROLES_C_GenerateRandom SESSION, OUT(pRandomData, &ulRandomLen)
#define ROLES_C_GetFunctionStatus SESSION
#define ROLES_C_CancelFunction SESSION
#define ROLES_C_WaitForSlotEvent NO_ROLES

#endif
