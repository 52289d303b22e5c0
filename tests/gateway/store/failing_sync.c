/* Preloaded under a program: fsync and fdatasync fail with EIO while the file named by
   FAILING_SYNC exists. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

typedef int sync_function(int);

static int failing(void)
{
    const char *file = getenv("FAILING_SYNC");
    return file != NULL && access(file, F_OK) == 0;
}

static int sync_or_fail(const char *name, int descriptor)
{
    if (failing()) {
        errno = EIO;
        return -1;
    }
    sync_function *real = (sync_function *)dlsym(RTLD_NEXT, name);
    return real(descriptor);
}

int fsync(int descriptor) { return sync_or_fail("fsync", descriptor); }

int fdatasync(int descriptor) { return sync_or_fail("fdatasync", descriptor); }
