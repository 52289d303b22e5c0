/* Fault injection: what happens before and after each call to the module.
 *
 * The rules file (rules.c, docs/fault-injection.md) says faults to do at chosen calls, and settings
 * of a simulated device that has what a software token lacks: a limit of sessions, idle time-outs,
 * removal, handles that change their meaning, IVs of its own, one thread only. Whatever prevents
 * that (a mistake in the rules, counters that cannot be used) answers CKR_GENERAL_ERROR.
 *
 * A call passes, in this order: the counters, the token's presence, the one thread, the session's
 * idle time, the first rule due, the session limit, the handles, the IV; then the module; then its
 * handles, and the rules that come after. A rule says latency inside of the thread check, so that
 * tests can make two calls overlap. */
#include "faults.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "counters.h"
#include "objects.h"
#include "sessions.h"

enum { GCM_IV_SIZE = 12 };

#define FUNCTION(name, parameters, arguments) #name,
static const char *const NAMES[] = {HSMUX_P11_FUNCTIONS(FUNCTION)};
#undef FUNCTION

static atomic_int running = -1; /* the function that the one thread is in */

static void sleep_ms(uint64_t ms)
{
    struct timespec left = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};
    while (ms > 0 && nanosleep(&left, &left) != 0 && errno == EINTR)
        continue;
}

static void flip(const call *call)
{
    uint64_t bits = (uint64_t)*call->output_size * 8;
    if (bits == 0)
        return;
    uint64_t bit = call->fault.argument % bits;
    call->output[bit / 8] ^= (CK_BYTE)(1u << (bit % 8));
}

/* Does the call's fault; answers for the caller. */
static CK_RV do_fault(const call *call, CK_RV code)
{
    if (!counters_count_fault(call->function))
        return CKR_GENERAL_ERROR;
    switch (call->fault.action) {
    case ACTION_RETURN:
        return call->fault.argument;
    case ACTION_SLEEP:
        sleep_ms(call->fault.argument);
        break;
    case ACTION_HANG:
        for (;;)
            pause();
    case ACTION_SEGV:
        signal(SIGSEGV, SIG_DFL);
        raise(SIGSEGV);
        break;
    case ACTION_EXIT:
        _exit((int)call->fault.argument);
    case ACTION_FLIP:
        flip(call);
        break;
    case ACTION_RESIZE:
        *call->output_size = call->fault.argument;
        break;
    case ACTION_LATENCY:
    case ACTION_NONE:
        break;
    }
    return code;
}

/* A removed token takes its sessions with it: they stay invalid when it is back. */
static CK_RV answer_removed(const call *call)
{
    CK_SLOT_ID slot;
    while (sessions_any_slot(&slot)) {
        adapter_real.C_CloseAllSessions(slot);
        counters_give_sessions(sessions_forget_slot(slot));
    }
    if (call->session != NULL)
        return CKR_DEVICE_REMOVED;
    return call->slot != NULL ? CKR_TOKEN_NOT_PRESENT : CKR_OK;
}

/* Takes the place of the one thread. */
static CK_RV be_alone(call *call)
{
    int other = -1;
    call->alone = atomic_compare_exchange_strong(&running, &other, call->function);
    if (call->alone)
        return CKR_OK;
    counters_count_fault(call->function);
    adapter_say("single_thread=on: %s was called while %s runs in another thread; call a module "
                "from one thread at a time", NAMES[call->function], NAMES[other]);
    return CKR_GENERAL_ERROR;
}

static CK_RV close_idle(const call *call)
{
    adapter_real.C_CloseSession(*call->session);
    counters_give_sessions(sessions_forget(*call->session));
    return CKR_SESSION_HANDLE_INVALID;
}

/* The device makes IVs itself, writes them where the caller gave zeros, and refuses others. */
static CK_RV make_iv(const call *call)
{
    static const CK_BYTE ZEROS[GCM_IV_SIZE];
    const CK_MECHANISM *mechanism = call->mechanism;
    if (call->function != F_C_EncryptInit || mechanism == NULL ||
        mechanism->mechanism != CKM_AES_GCM)
        return CKR_OK;
    const CK_GCM_PARAMS *gcm = mechanism->pParameter;
    if (gcm == NULL || mechanism->ulParameterLen != sizeof *gcm || gcm->pIv == NULL ||
        gcm->ulIvLen != GCM_IV_SIZE || memcmp(gcm->pIv, ZEROS, GCM_IV_SIZE) != 0)
        return CKR_MECHANISM_PARAM_INVALID;
    return getrandom(gcm->pIv, GCM_IV_SIZE, 0) == GCM_IV_SIZE ? CKR_OK : CKR_DEVICE_ERROR;
}

/* What the simulated device itself says to a call, before any rule. */
static CK_RV ask_device(call *call)
{
    const device *device = &call->device;
    CK_RV code = device->token_removed ? answer_removed(call) : CKR_OK;
    if (code == CKR_OK && device->single_thread)
        code = be_alone(call);
    if (code == CKR_OK && call->session != NULL &&
        !sessions_use(*call->session, device->idle_timeout_ms))
        code = close_idle(call);
    return code;
}

/* The arguments as the module gets them. */
static CK_RV prepare(call *call)
{
    CK_RV code = objects_enter(call);
    if (code == CKR_OK && call->device.iv_written_back)
        code = make_iv(call);
    if (code == CKR_OK && call->opened != NULL &&
        !counters_take_session(call->device.sessions_max))
        code = CKR_SESSION_COUNT;
    return code;
}

CK_RV faults_enter(call *call)
{
    uint64_t latency_ms = 0;
    CK_RV code = CKR_OK;
    if (!counters_count_call(call->function) || !rules_device(&call->device))
        return CKR_GENERAL_ERROR;
    code = ask_device(call);
    if (code != CKR_OK)
        return code;
    sessions_mechanism(call);
    if (!rules_match(call, &call->fault, &latency_ms))
        return CKR_GENERAL_ERROR;
    sleep_ms(latency_ms);
    if (call->fault.action != ACTION_NONE && !call->fault.after) {
        code = do_fault(call, CKR_OK);
        if (code != CKR_OK || call->fault.action == ACTION_RETURN)
            return code;
    }
    code = prepare(call);
    call->forwarded = code == CKR_OK;
    return code;
}

static CK_RV note_opened(const call *call, CK_RV code)
{
    if (code == CKR_OK && sessions_add(*call->opened, *call->slot))
        return CKR_OK;
    if (code == CKR_OK)
        adapter_real.C_CloseSession(*call->opened);
    counters_give_sessions(1);
    return code == CKR_OK ? CKR_SESSION_COUNT : code;
}

/* What the call changed, when the module says it was done. */
static void note_done(call *call)
{
    switch (call->function) {
    case F_C_Initialize:
        objects_start(call->device.renumber);
        break;
    case F_C_CloseSession:
        counters_give_sessions(sessions_forget(*call->session));
        break;
    case F_C_CloseAllSessions:
        counters_give_sessions(sessions_forget_slot(*call->slot));
        break;
    case F_C_Finalize:
        counters_give_sessions(sessions_forget_all());
        objects_end();
        break;
    default:
        break;
    }
    if (call->device.token_removed && call->present_count != NULL)
        *call->present_count = 0;
    if (call->device.token_removed && call->slot_info != NULL)
        call->slot_info->flags &= ~CKF_TOKEN_PRESENT;
}

CK_RV faults_leave(call *call, CK_RV code)
{
    if (call->forwarded) {
        if (call->opened != NULL)
            code = note_opened(call, code);
        if (code == CKR_OK) {
            note_done(call);
            code = objects_leave(call);
        }
        int needs_output = call->fault.action == ACTION_FLIP || call->fault.action == ACTION_RESIZE;
        if (call->fault.after && (!needs_output || code == CKR_OK))
            code = do_fault(call, code);
    }
    if (call->alone)
        atomic_store(&running, -1);
    return code;
}
