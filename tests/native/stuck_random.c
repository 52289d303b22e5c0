/* getrandom(2) as a broken machine has it, for LD_PRELOAD: the same bytes in each call, or none.
 * HSMUX_TEST_RANDOM is `stuck` or `fails`; everything else is the kernel's. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

ssize_t getrandom(void *bytes, size_t size, unsigned flags)
{
    const char *how = getenv("HSMUX_TEST_RANDOM");
    if (how != NULL && strcmp(how, "fails") == 0) {
        errno = EIO;
        return -1;
    }
    if (how != NULL && strcmp(how, "stuck") == 0) {
        memset(bytes, 7, size);
        return (ssize_t)size;
    }
    return syscall(SYS_getrandom, bytes, size, flags);
}
