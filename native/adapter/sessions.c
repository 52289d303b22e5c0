/* What is known of the sessions that this process has open: their slot, when they were last used,
 * and the mechanism that their last C_...Init named (C_Encrypt itself has no mechanism to match).
 * */
#include "sessions.h"

#include <pthread.h>
#include <stddef.h>
#include <time.h>

typedef struct {
    CK_SESSION_HANDLE handle;
    CK_SLOT_ID slot;
    uint64_t used_ms;
    int has_mechanism_type;
    CK_MECHANISM_TYPE mechanism_type;
} session;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards what follows */
static session sessions[SESSIONS_OF_PROCESS_MAX];
static size_t count;

static uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static session *find(CK_SESSION_HANDLE handle)
{
    for (size_t i = 0; i < count; i++)
        if (sessions[i].handle == handle)
            return &sessions[i];
    return NULL;
}

int sessions_add(CK_SESSION_HANDLE handle, CK_SLOT_ID slot)
{
    pthread_mutex_lock(&lock);
    int fits = count < SESSIONS_OF_PROCESS_MAX;
    if (fits)
        sessions[count++] = (session){.handle = handle, .slot = slot, .used_ms = now_ms()};
    pthread_mutex_unlock(&lock);
    return fits;
}

enum { BY_HANDLE, BY_SLOT, ALL };

static uint64_t forget(int by, CK_ULONG value)
{
    pthread_mutex_lock(&lock);
    size_t kept = 0, before = count;
    for (size_t i = 0; i < count; i++)
        if (by != ALL && (by == BY_HANDLE ? sessions[i].handle : sessions[i].slot) != value)
            sessions[kept++] = sessions[i];
    count = kept;
    pthread_mutex_unlock(&lock);
    return before - kept;
}

uint64_t sessions_forget(CK_SESSION_HANDLE handle) { return forget(BY_HANDLE, handle); }
uint64_t sessions_forget_slot(CK_SLOT_ID slot) { return forget(BY_SLOT, slot); }
uint64_t sessions_forget_all(void) { return forget(ALL, 0); }

int sessions_any_slot(CK_SLOT_ID *slot)
{
    pthread_mutex_lock(&lock);
    int is_there = count > 0;
    if (is_there)
        *slot = sessions[0].slot;
    pthread_mutex_unlock(&lock);
    return is_there;
}

int sessions_use(CK_SESSION_HANDLE handle, uint64_t idle_timeout_ms)
{
    pthread_mutex_lock(&lock);
    session *found = find(handle);
    uint64_t now = now_ms();
    int awake = found == NULL || idle_timeout_ms == 0 || now - found->used_ms <= idle_timeout_ms;
    if (found != NULL)
        found->used_ms = now;
    pthread_mutex_unlock(&lock);
    return awake;
}

void sessions_mechanism(call *call)
{
    if (call->mechanism != NULL) {
        call->has_mechanism_type = 1;
        call->mechanism_type = call->mechanism->mechanism;
    }
    if (call->session == NULL)
        return;
    pthread_mutex_lock(&lock);
    session *found = find(*call->session);
    if (found != NULL && call->has_mechanism_type) {
        found->has_mechanism_type = 1;
        found->mechanism_type = call->mechanism_type;
    } else if (found != NULL) {
        call->has_mechanism_type = found->has_mechanism_type;
        call->mechanism_type = found->mechanism_type;
    }
    pthread_mutex_unlock(&lock);
}
