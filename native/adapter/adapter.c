/* The PKCS#11 adapter: a module that stands before the vendor's module in one process.
 *
 * PKCS#11 callers such as python-pkcs11 call C_Initialize without arguments, which promises a
 * module that only one thread will call, and gives modules that want parameters (NSS) none. The
 * adapter exports C_GetFunctionList alone, loads the module that HSMUX_ADAPTER_MODULE names, and
 * forwards every function to it. It changes three things:
 *
 * - C_Initialize always asks for the operating system's locks (CKF_OS_LOCKING_OK) and passes
 *   HSMUX_ADAPTER_PARAMETERS, when set, as LibraryParameters.
 * - After a fork the child gets CKR_CRYPTOKI_NOT_INITIALIZED from everything: most modules would
 *   silently share the parent's sessions. A page that the kernel zeroes in children
 *   (MADV_WIPEONFORK) tells them apart at the price of one load, and sees clone() too. A fork
 *   before C_Initialize is harmless and allowed.
 * - A module that cannot be loaded is said in one line on stderr, since C_GetFunctionList can only
 *   answer CKR_GENERAL_ERROR.
 *
 * Calls go through `real`, a copy of the vendor's list in which C_Initialize, C_Finalize and
 * C_GetFunctionList are ours; so the table in pkcs11.h needs no exceptions. Once loaded, the
 * adapter stays (it is linked with nodelete) and serves that one module until the process ends.
 *
 * Built with HSMUX_FAULTS the same functions ask faults.c before and after each call. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "adapter.h"
#ifdef HSMUX_FAULTS
#include "faults.h"
#include "roles.h"
#endif

enum { PATH_SIZE = 4096, LINE_SIZE = 1024 };

CK_FUNCTION_LIST adapter_real;

static CK_FUNCTION_LIST adapter_list;
static const CK_FUNCTION_LIST *vendor;
static char vendor_path[PATH_SIZE];
static pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER;
static atomic_int initialised;
static atomic_int *mark; /* equals `initialised`, but is zero in a forked child */

void adapter_say(const char *format, ...)
{
    char line[LINE_SIZE] = "hsmux adapter: ";
    size_t used = strlen(line);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line + used, sizeof line - used - 1, format, arguments);
    va_end(arguments);
    used = strlen(line);
    line[used++] = '\n';
    if (write(STDERR_FILENO, line, used) < 0)
        return; /* nobody listens */
}

static int is_forked(void)
{
    return atomic_load_explicit(mark, memory_order_relaxed) !=
           atomic_load_explicit(&initialised, memory_order_relaxed);
}

static void set_initialised(int value)
{
    atomic_store(mark, value);
    atomic_store(&initialised, value);
}

/* NSS's structure serves every module: where the standard's has pReserved, it has
 * LibraryParameters, and behind that one more pointer, read by NSS alone, which must be NULL. */
static CK_RV initialise(void *arguments)
{
    const CK_C_INITIALIZE_ARGS *given = arguments;
    const char *parameters = getenv("HSMUX_ADAPTER_PARAMETERS");
    CK_NSS_C_INITIALIZE_ARGS own = {.flags = CKF_OS_LOCKING_OK,
                                    .LibraryParameters = (CK_CHAR **)(uintptr_t)parameters};
    if (given != NULL) {
        own.flags |= given->flags & CKF_LIBRARY_CANT_CREATE_OS_THREADS;
        if (parameters == NULL)
            own.LibraryParameters = given->pReserved;
    }
    CK_RV code = vendor->C_Initialize(&own);
    if (code == CKR_OK)
        set_initialised(1);
    return code;
}

static CK_RV finalise(void *reserved)
{
    CK_RV code = vendor->C_Finalize(reserved);
    if (code == CKR_OK)
        set_initialised(0);
    return code;
}

#ifdef HSMUX_FAULTS
#define FUNCTION(name, parameters, arguments)                                                    \
    static CK_RV adapter_##name parameters                                                       \
    {                                                                                            \
        call this = {.function = F_##name, ROLES_##name};                                         \
        CK_RV code;                                                                              \
        if (is_forked())                                                                         \
            return CKR_CRYPTOKI_NOT_INITIALIZED;                                                 \
        if (adapter_real.name == NULL)                                                           \
            return CKR_FUNCTION_NOT_SUPPORTED;                                                   \
        code = faults_enter(&this);                                                              \
        if (this.forwarded)                                                                      \
            code = adapter_real.name arguments;                                                  \
        return faults_leave(&this, code);                                                        \
    }
#else
#define FUNCTION(name, parameters, arguments)                                                    \
    static CK_RV adapter_##name parameters                                                       \
    {                                                                                            \
        if (is_forked())                                                                         \
            return CKR_CRYPTOKI_NOT_INITIALIZED;                                                 \
        if (adapter_real.name == NULL)                                                           \
            return CKR_FUNCTION_NOT_SUPPORTED;                                                   \
        return adapter_real.name arguments;                                                      \
    }
#endif
HSMUX_P11_FUNCTIONS(FUNCTION)
#undef FUNCTION

static CK_FUNCTION_LIST adapter_list = {
    .version = {2, 40},
#define FUNCTION(name, parameters, arguments) .name = adapter_##name,
    HSMUX_P11_FUNCTIONS(FUNCTION)
#undef FUNCTION
};

__attribute__((visibility("default"))) CK_RV C_GetFunctionList(CK_FUNCTION_LIST **list);

static const CK_FUNCTION_LIST *open_module(const char *path)
{
    CK_RV (*get)(CK_FUNCTION_LIST **) = NULL;
    CK_FUNCTION_LIST *found = NULL;
    void *module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (module == NULL) {
        adapter_say("HSMUX_ADAPTER_MODULE: %s; name the PKCS#11 module's file", dlerror());
        return NULL;
    }
    *(void **)&get = dlsym(module, "C_GetFunctionList");
    if (get == NULL) {
        adapter_say("HSMUX_ADAPTER_MODULE: %s; it is not a PKCS#11 module", dlerror());
        return NULL;
    }
    if (get == C_GetFunctionList) {
        adapter_say("HSMUX_ADAPTER_MODULE: %s is the adapter; name the vendor's module", path);
        return NULL;
    }
    CK_RV code = get(&found);
    if (code != CKR_OK || found == NULL || found->version.major < 2) {
        adapter_say("HSMUX_ADAPTER_MODULE: %s: C_GetFunctionList answered 0x%lx and no list of "
                    "PKCS#11 v2; look at the module's own configuration", path, code);
        return NULL;
    }
    return found;
}

static CK_RV load(void)
{
    const char *path = getenv("HSMUX_ADAPTER_MODULE");
    if (path == NULL || path[0] == '\0' || strlen(path) >= sizeof vendor_path) {
        adapter_say("HSMUX_ADAPTER_MODULE is not set; name the vendor's PKCS#11 module in it");
        return CKR_GENERAL_ERROR;
    }
    if (vendor != NULL && strcmp(path, vendor_path) != 0) {
        adapter_say("HSMUX_ADAPTER_MODULE: %s: this process already serves %s; one process has "
                    "one module", path, vendor_path);
        return CKR_GENERAL_ERROR;
    }
    if (vendor != NULL)
        return CKR_OK;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *memory = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || madvise(memory, page, MADV_WIPEONFORK) != 0) {
        adapter_say("no memory that is wiped on fork (Linux 4.14 or later has it)");
        return CKR_GENERAL_ERROR;
    }
    const CK_FUNCTION_LIST *found = open_module(path);
    if (found == NULL) {
        munmap(memory, page);
        return CKR_GENERAL_ERROR;
    }
    memcpy(&adapter_real, found, sizeof adapter_real);
    adapter_real.C_Initialize = initialise;
    adapter_real.C_Finalize = finalise;
    adapter_real.C_GetFunctionList = C_GetFunctionList;
    strcpy(vendor_path, path);
    mark = memory;
    vendor = found;
    return CKR_OK;
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST **list)
{
    if (list == NULL)
        return CKR_ARGUMENTS_BAD;
    pthread_mutex_lock(&loading);
    CK_RV code = load();
    pthread_mutex_unlock(&loading);
    if (code == CKR_OK)
        *list = &adapter_list;
    return code;
}
