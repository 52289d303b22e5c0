/* The sessions that this process has open: see sessions.c. */
#ifndef HSMUX_ADAPTER_SESSIONS_H
#define HSMUX_ADAPTER_SESSIONS_H

#include <stdint.h>

#include "faults.h"

enum { SESSIONS_OF_PROCESS_MAX = 4096 };

/* 0: there is no place for one more. */
int sessions_add(CK_SESSION_HANDLE session, CK_SLOT_ID slot);

/* These answer how many sessions were forgotten. */
uint64_t sessions_forget(CK_SESSION_HANDLE session);
uint64_t sessions_forget_slot(CK_SLOT_ID slot);
uint64_t sessions_forget_all(void);

/* Some slot with an open session; 0: there is none. */
int sessions_any_slot(CK_SLOT_ID *slot);

/* Notes that the session is used now. 0: it was idle for longer than `idle_timeout_ms`. */
int sessions_use(CK_SESSION_HANDLE session, uint64_t idle_timeout_ms);

/* Sets the call's mechanism: its own, which the session remembers, or else the session's last. */
void sessions_mechanism(call *call);

#endif
