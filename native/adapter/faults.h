/* One call on its way through the adapter, and what fault injection does before and after it. */
#ifndef HSMUX_ADAPTER_FAULTS_H
#define HSMUX_ADAPTER_FAULTS_H

#include <stddef.h>
#include <stdint.h>

#include "adapter.h"
#include "rules.h"

enum { OBJECTS_MAX = 2 };

typedef struct call {
    /* Roles of the function's parameters, by roles.h; NULL where it has no such parameter. */
    int function;
    CK_SESSION_HANDLE *session;
    CK_SLOT_ID *slot;
    CK_MECHANISM *mechanism;
    CK_ULONG input_size;
    CK_BYTE *output;
    CK_ULONG *output_size;
    CK_OBJECT_HANDLE *objects[OBJECTS_MAX]; /* in */
    CK_OBJECT_HANDLE *made[OBJECTS_MAX];    /* out */
    CK_OBJECT_HANDLE *found;
    CK_ULONG *found_count;
    CK_SESSION_HANDLE *opened;
    CK_ULONG *present_count; /* C_GetSlotList of slots with a token */
    CK_SLOT_INFO *slot_info;

    /* What faults_enter leaves for the stub and for faults_leave. */
    int forwarded; /* the module is to be called */
    int alone;     /* it holds the place of the one thread */
    int has_mechanism_type;
    CK_MECHANISM_TYPE mechanism_type; /* its own, or that of the session's last C_...Init */
    device device;
    rule fault; /* action is ACTION_NONE when there is none */
} call;

/* Answers for the module when call->forwarded is left 0. */
CK_RV faults_enter(call *call);

/* Takes the module's answer and gives the caller's. Always called after faults_enter. */
CK_RV faults_leave(call *call, CK_RV code);

#endif
