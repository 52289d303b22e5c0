/* Counters that all processes of a test share.
 *
 * HSMUX_ADAPTER_COUNTERS names a file, made when it is missing; without it the counters are this
 * process's own. The file is an array of 64-bit numbers in the machine's byte order, changed with
 * atomic operations through a shared mapping:
 *
 *   word 0            magic, the bytes "hsmuxct1"
 *   word 1 + f        calls of function f, f being its place in CK_FUNCTION_LIST (C_Initialize: 0)
 *   word 128 + f      faults done in function f, counted before they are done
 *   word 256 + 2 i    process i: its pid; word 257 + 2 i: its open sessions
 *   word 512 + 2 i    rule i: its key; word 513 + 2 i: how often it matched
 *
 * A process that opens sessions holds an open-file-description lock on byte 1 + i as long as it
 * lives, so that the sessions of a killed one stop to count, zombie or not. Byte 0 is the lock
 * around counting sessions. A rule's key comes from the rules file's identity and the line, so
 * rules that are written anew count anew. */
#include "counters.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "adapter.h"

enum { FUNCTIONS_MAX = 127, PROCESSES_MAX = 128, RULES_MAX = 1024 };

typedef struct {
    _Atomic uint64_t magic;
    _Atomic uint64_t calls[FUNCTIONS_MAX];
    _Atomic uint64_t faults[FUNCTIONS_MAX + 1];
    struct {
        _Atomic uint64_t pid, sessions;
    } processes[PROCESSES_MAX];
    struct {
        _Atomic uint64_t key, matches;
    } rules[RULES_MAX];
} counters;

_Static_assert(sizeof(counters) == 20480, "the layout is documented");

static counters own;
static counters *shared; /* NULL when the file cannot be used */
static const char *path; /* NULL: the counters are this process's own */
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* Guarded by sessions_lock. A forked child has its own descriptor, so its own locks. */
static pthread_mutex_t sessions_lock = PTHREAD_MUTEX_INITIALIZER;
static int locks = -1;
static pid_t locks_pid;
static int own_process = -1;

static int lock_byte(int command, short type, off_t byte)
{
    struct flock range = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    int result;
    do
        result = fcntl(locks, command, &range);
    while (result != 0 && errno == EINTR);
    return result == 0;
}

static int is_locked_by_another(off_t byte)
{
    struct flock range = {
        .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    return fcntl(locks, F_OFD_GETLK, &range) == 0 && range.l_type != F_UNLCK;
}

static counters *map_file(void)
{
    uint64_t magic;
    memcpy(&magic, "hsmuxct1", sizeof magic);
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    void *memory = MAP_FAILED;
    if (file >= 0 && ftruncate(file, sizeof(counters)) == 0)
        memory = mmap(NULL, sizeof(counters), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (file >= 0)
        close(file);
    if (memory == MAP_FAILED)
        return NULL;
    counters *mapped = memory;
    uint64_t found = 0;
    if (!atomic_compare_exchange_strong(&mapped->magic, &found, magic) && found != magic) {
        errno = EINVAL;
        return NULL;
    }
    return mapped;
}

static void open_counters(void)
{
    path = getenv("HSMUX_ADAPTER_COUNTERS");
    shared = path == NULL ? &own : map_file();
    if (shared == NULL)
        adapter_say("HSMUX_ADAPTER_COUNTERS: %s: %s; name a new file in a directory that can be "
                    "written; until then every call answers CKR_GENERAL_ERROR",
                    path, strerror(errno));
}

static counters *get(void)
{
    pthread_once(&once, open_counters);
    return shared;
}

int counters_count_call(int function)
{
    counters *all = get();
    if (all != NULL)
        atomic_fetch_add(&all->calls[function], 1);
    return all != NULL;
}

int counters_count_fault(int function)
{
    counters *all = get();
    if (all != NULL)
        atomic_fetch_add(&all->faults[function], 1);
    return all != NULL;
}

int counters_next_match(uint64_t key, uint64_t *before)
{
    counters *all = get();
    for (size_t i = 0; all != NULL && i < RULES_MAX; i++) {
        size_t place = (key + i) % RULES_MAX;
        uint64_t found = 0;
        if (atomic_compare_exchange_strong(&all->rules[place].key, &found, key) ||
            found == key) {
            *before = atomic_fetch_add(&all->rules[place].matches, 1);
            return 1;
        }
    }
    adapter_say("HSMUX_ADAPTER_COUNTERS: %d rules were counted; start with a new file", RULES_MAX);
    return 0;
}

/* Whether this process has a place to count its sessions in. */
static int enter_sessions(counters *all)
{
    pthread_mutex_lock(&sessions_lock);
    if (path != NULL && locks_pid != getpid()) {
        locks = open(path, O_RDWR | O_CLOEXEC);
        locks_pid = getpid();
        own_process = -1;
    }
    if (path != NULL)
        lock_byte(F_OFD_SETLKW, F_WRLCK, 0);
    for (int i = 0; i < PROCESSES_MAX && own_process < 0; i++)
        if (path == NULL || !is_locked_by_another(1 + i)) {
            own_process = i;
            all->processes[i].pid = (uint64_t)getpid();
            all->processes[i].sessions = 0;
            if (path != NULL)
                lock_byte(F_OFD_SETLK, F_WRLCK, 1 + i);
        }
    return own_process >= 0;
}

static void leave_sessions(void)
{
    if (path != NULL)
        lock_byte(F_OFD_SETLK, F_UNLCK, 0);
    pthread_mutex_unlock(&sessions_lock);
}

static uint64_t count_sessions(counters *all)
{
    uint64_t sessions = all->processes[own_process].sessions;
    for (int i = 0; path != NULL && i < PROCESSES_MAX; i++)
        if (i != own_process && is_locked_by_another(1 + i))
            sessions += all->processes[i].sessions;
    return sessions;
}

int counters_take_session(uint64_t max)
{
    counters *all = get();
    if (all == NULL)
        return 0;
    int taken = enter_sessions(all) && count_sessions(all) < max;
    if (taken)
        all->processes[own_process].sessions++;
    leave_sessions();
    return taken;
}

void counters_give_sessions(uint64_t sessions)
{
    counters *all = get();
    if (all == NULL)
        return;
    if (enter_sessions(all))
        all->processes[own_process].sessions -= sessions;
    leave_sessions();
}
