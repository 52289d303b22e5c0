/* Object handles under numbers of our own, so that a handle kept over C_Finalize and C_Initialize
 * names another object, as it does with modules that number objects in the order they meet them.
 *
 * Between C_Initialize and C_Finalize each object has one number. Before a C_FindObjectsInit all
 * objects that its session sees and that have no number yet get one. The first time they are 1, 2,
 * 3 in the module's order. After C_Initialize has been called again, an object is known again by
 * its class, CKA_ID and CKA_LABEL, and the objects met together swap: each gets the number that the
 * next one had before. So every old number names another object, whatever order the module lists
 * them in and whatever a caller searches for; a lone object gets a new number, and its old one
 * names none. Objects made by the caller get new numbers.
 *
 * The mode is that of the rules at C_Initialize; without it handles pass unchanged. */
#include "objects.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { ATTRIBUTE_SIZE_MAX = 256, FIND_COUNT = 64, OBJECTS_OF_PROCESS_MAX = 16384 };

typedef struct {
    CK_OBJECT_HANDLE number, handle;
    uint64_t fingerprint;
} object;

typedef struct {
    object items[OBJECTS_OF_PROCESS_MAX];
    size_t count;
} object_list;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards what follows */
static int renumbering;
static CK_OBJECT_HANDLE last_number;
static object_list known, before; /* since C_Initialize; at the last C_Finalize */

void objects_start(int renumber)
{
    pthread_mutex_lock(&lock);
    renumbering = renumber;
    pthread_mutex_unlock(&lock);
}

void objects_end(void)
{
    pthread_mutex_lock(&lock);
    before = known;
    known.count = 0;
    renumbering = 0;
    pthread_mutex_unlock(&lock);
}

static object *by_handle(CK_OBJECT_HANDLE handle)
{
    for (size_t i = 0; i < known.count; i++)
        if (known.items[i].handle == handle)
            return &known.items[i];
    return NULL;
}

static object *by_number(CK_OBJECT_HANDLE number)
{
    for (size_t i = 0; i < known.count; i++)
        if (known.items[i].number == number)
            return &known.items[i];
    return NULL;
}

/* The number that an object had before the last C_Finalize, or 0; given out once. */
static CK_OBJECT_HANDLE take_number_before(uint64_t fingerprint)
{
    for (size_t i = 0; i < before.count; i++) {
        CK_OBJECT_HANDLE number = before.items[i].number;
        if (before.items[i].fingerprint == fingerprint && number != 0) {
            before.items[i].number = 0;
            return number;
        }
    }
    return 0;
}

static uint64_t fingerprint_of(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE handle)
{
    static const CK_ATTRIBUTE_TYPE TYPES[] = {CKA_CLASS, CKA_ID, CKA_LABEL};
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < sizeof TYPES / sizeof TYPES[0]; i++) {
        CK_BYTE value[ATTRIBUTE_SIZE_MAX];
        CK_ATTRIBUTE attribute = {TYPES[i], value, sizeof value};
        if (adapter_real.C_GetAttributeValue(session, handle, &attribute, 1) != CKR_OK)
            attribute.ulValueLen = 0;
        hash = (hash ^ attribute.ulValueLen) * 0x100000001b3u;
        for (size_t j = 0; j < attribute.ulValueLen; j++)
            hash = (hash ^ value[j]) * 0x100000001b3u;
    }
    return hash;
}

static int add(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE handle, CK_OBJECT_HANDLE number)
{
    if (known.count == OBJECTS_OF_PROCESS_MAX) {
        adapter_say("renumber=on serves %d objects; use a token with fewer",
                    OBJECTS_OF_PROCESS_MAX);
        return 0;
    }
    known.items[known.count++] = (object){number, handle, fingerprint_of(session, handle)};
    return 1;
}

/* The handle's number, a new one if it has none; 0: there is no place for it. */
static CK_OBJECT_HANDLE number_of(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE handle)
{
    object *found = by_handle(handle);
    if (found != NULL)
        return found->number;
    return add(session, handle, last_number + 1) ? ++last_number : 0;
}

/* Adds all objects that the session sees, numbered 0 for now. */
static void discover(CK_SESSION_HANDLE session)
{
    CK_OBJECT_HANDLE handles[FIND_COUNT];
    CK_ULONG count = 0;
    if (adapter_real.C_FindObjectsInit(session, NULL, 0) != CKR_OK)
        return; /* a search is running; the caller's own C_FindObjectsInit will say so */
    size_t first = known.count;
    while (adapter_real.C_FindObjects(session, handles, FIND_COUNT, &count) == CKR_OK && count > 0)
        for (CK_ULONG i = 0; i < count && known.count < OBJECTS_OF_PROCESS_MAX; i++)
            if (by_handle(handles[i]) == NULL)
                known.items[known.count++] = (object){.handle = handles[i]};
    adapter_real.C_FindObjectsFinal(session);
    for (size_t i = first; i < known.count; i++)
        known.items[i].fingerprint = fingerprint_of(session, known.items[i].handle);
}

/* Numbers the objects from `first` on: those with a number before swap in a ring. */
static void number_from(size_t first)
{
    object *last = NULL; /* of the ring; gets the number of its first at the end */
    size_t ring_size = 0;
    CK_OBJECT_HANDLE ring_number = 0;
    for (size_t i = first; i < known.count; i++) {
        CK_OBJECT_HANDLE old = take_number_before(known.items[i].fingerprint);
        if (old == 0) {
            known.items[i].number = ++last_number;
            continue;
        }
        if (last == NULL)
            ring_number = old;
        else
            last->number = old;
        last = &known.items[i];
        ring_size++;
    }
    if (last != NULL)
        last->number = ring_size > 1 ? ring_number : ++last_number;
}

static CK_RV unknown_handle(const call *call)
{
    return call->mechanism != NULL ? CKR_KEY_HANDLE_INVALID : CKR_OBJECT_HANDLE_INVALID;
}

CK_RV objects_enter(call *call)
{
    CK_RV code = CKR_OK;
    pthread_mutex_lock(&lock);
    if (renumbering && call->function == F_C_FindObjectsInit) {
        size_t first = known.count;
        discover(*call->session);
        number_from(first);
    }
    for (int i = 0; renumbering && i < OBJECTS_MAX && call->objects[i] != NULL; i++) {
        object *found = by_number(*call->objects[i]);
        if (found != NULL)
            *call->objects[i] = found->handle;
        else if (*call->objects[i] != CK_INVALID_HANDLE)
            code = unknown_handle(call);
    }
    pthread_mutex_unlock(&lock);
    return code;
}

static CK_RV renumber(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE *handle)
{
    CK_OBJECT_HANDLE number = number_of(session, *handle);
    *handle = number;
    return number != 0 ? CKR_OK : CKR_DEVICE_MEMORY;
}

CK_RV objects_leave(call *call)
{
    CK_RV code = CKR_OK;
    pthread_mutex_lock(&lock);
    for (int i = 0; renumbering && i < OBJECTS_MAX && call->made[i] != NULL; i++)
        code = code == CKR_OK ? renumber(*call->session, call->made[i]) : code;
    CK_ULONG count = renumbering && call->found != NULL ? *call->found_count : 0;
    for (CK_ULONG i = 0; i < count; i++)
        code = code == CKR_OK ? renumber(*call->session, &call->found[i]) : code;
    if (renumbering && call->function == F_C_DestroyObject) {
        object *gone = by_handle(*call->objects[0]);
        if (gone != NULL)
            *gone = known.items[--known.count];
    }
    pthread_mutex_unlock(&lock);
    return code;
}
