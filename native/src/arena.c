/* Key memory: one fixed region of locked pages that holds every key the process has open.
 *
 * The region is memfd_secret(2) memory where the kernel has it: pages that no other process, no
 * core file and not even the kernel's own direct map can read, and that a forked child does not
 * get (MADV_DONTFORK). Elsewhere it is locked anonymous memory, left out of core files and zeroed
 * in a forked child. A page without access stands before and behind it. The region and each slot
 * begin with a magic number that is not zero (a slot ends with one too), so a zeroed page holds no
 * valid key. A process other than the one that made the arena is refused before it looks at the
 * region: its pid is another, and where it is not (a child in a pid namespace of its own), a page
 * that the kernel zeroes in forked children tells.
 *
 * A slot's number is its place and how often that place was used, so a number that outlived its
 * key is refused and never means the next key there; a place whose uses cannot be numbered any more
 * is not used again. Freeing zeroes.
 *
 * One mutex guards a region. Calls are short (a batch of 1 MiB takes a few hundred microseconds)
 * and come from one thread nearly always; two threads never see a slot's nonce counter half-way.
 */
#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#define SLOT_MAGIC 0x68736d75785f6b31ULL
#define ARENA_MAGIC 0x68736d75785f6131ULL
#define BLOBS 32u
#define BLOB_MARK (1ULL << 63)
#define GENERATION_MAX 0x7fffffffu
#define PROBE_SIZE 8u
#define SYS_MEMFD_SECRET 447
#define SECRETMEM_MAGIC 0x5345434d /* linux/magic.h */

typedef struct {
    uint64_t magic;
    uint32_t generation;
    uint32_t used;
    uint64_t size;
    uint8_t data[HS_BLOB_SIZE_MAX];
    uint64_t magic_behind;
} blob_data;

/* What stands first in the region; 64 bytes, so that slots keep their alignment. */
typedef struct {
    _Alignas(64) uint64_t magic;
} region_head;

struct hs_arena {
    pthread_mutex_t mutex;
    pid_t pid;
    uint64_t *owner; /* ARENA_MAGIC, and zero in a forked child */
    const char *kind;
    uint8_t *region;
    region_head *head;
    size_t region_size;
    size_t mapped_size;
    hs_slot_data *slots;
    blob_data *blobs;
    uint32_t *free_slots;
    uint32_t slot_count;
    uint32_t free_count;
    uint32_t slots_used; /* changed under the mutex, and read without it */
    uint32_t blobs_used; /* the same */
    uint32_t *generations;
};

/* Each draw takes eight bytes more than it gives, and those must differ from the ones before: a
 * source that has got stuck is refused before it repeats a nonce or a key. */
hs_status hs_random(uint8_t *bytes, size_t size)
{
    static uint64_t last_probe;
    uint8_t drawn[PROBE_SIZE + HS_KEY_SIZE];
    size_t wanted = PROBE_SIZE + size, have = 0;
    uint64_t probe;
    if (size > HS_KEY_SIZE)
        return HS_BAD_ARGUMENT;
    while (have < wanted) {
        ssize_t got = getrandom(drawn + have, wanted - have, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return HS_NO_RANDOM;
        have += (size_t)got;
    }
    memcpy(&probe, drawn, sizeof probe);
    int stuck = __atomic_exchange_n(&last_probe, probe, __ATOMIC_RELAXED) == probe;
    if (!stuck)
        memcpy(bytes, drawn + PROBE_SIZE, size);
    OPENSSL_cleanse(drawn, sizeof drawn);
    return stuck ? HS_NO_RANDOM : HS_OK;
}

uint64_t hs_now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (uint64_t)now.tv_sec;
}

static int is_kind(const char *kind, const char *name)
{
    return kind == NULL || strcmp(kind, name) == 0;
}

/* Memory that two processes share by a descriptor and nobody else can read: "memfd_secret", or
 * "memfd" where the kernel has no such, or the first that can be had (NULL). Its size is fixed: a
 * process that made it smaller would crash the other. */
int hs_secret_fd(size_t size, const char *kind)
{
    int fd = -1, is_fixed = 1; /* the kernel fixes the size of secret memory when it is set */
    if (is_kind(kind, "memfd_secret"))
        fd = (int)syscall(SYS_MEMFD_SECRET, O_CLOEXEC);
    if (fd < 0 && is_kind(kind, "memfd")) {
        fd = memfd_create("hsmux", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        is_fixed = 0;
    }
    if (fd < 0)
        return -1;
    if (ftruncate(fd, (off_t)size) == 0 &&
        (is_fixed || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0))
        return fd;
    close(fd);
    return -1;
}

/* Keep a mapping of such memory in RAM, out of core files and out of forked children. Secret memory
 * is locked from the beginning, and mlock(2) refuses it. */
hs_status hs_secret_protect(int fd, void *mapped, size_t size)
{
    struct statfs filesystem;
    if (fstatfs(fd, &filesystem) != 0)
        return HS_NO_MEMORY;
    int is_locked = filesystem.f_type == SECRETMEM_MAGIC || mlock(mapped, size) == 0;
    return is_locked && madvise(mapped, size, MADV_DONTFORK) == 0 &&
                   madvise(mapped, size, MADV_DONTDUMP) == 0
               ? HS_OK
               : HS_NO_MEMORY;
}

static int map_secret(hs_arena *arena, uint8_t *at)
{
    int fd = (int)syscall(SYS_MEMFD_SECRET, O_CLOEXEC);
    if (fd < 0)
        return 0;
    void *mapped = MAP_FAILED;
    if (ftruncate(fd, (off_t)arena->region_size) == 0)
        mapped = mmap(at, arena->region_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
                      0);
    close(fd);
    if (mapped == MAP_FAILED)
        return 0;
    arena->kind = "memfd_secret";
    return madvise(at, arena->region_size, MADV_DONTFORK) == 0;
}

static int map_locked(hs_arena *arena, uint8_t *at)
{
    void *mapped = mmap(at, arena->region_size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (mapped == MAP_FAILED || mlock(at, arena->region_size) != 0)
        return 0;
    arena->kind = "mlock";
    return madvise(at, arena->region_size, MADV_WIPEONFORK) == 0 &&
           madvise(at, arena->region_size, MADV_DONTDUMP) == 0;
}

/* Pages in a row: one without access, the region, one without access, the owner's mark. */
static int map_region(hs_arena *arena, const char *kind, size_t page)
{
    arena->mapped_size = arena->region_size + 3 * page;
    uint8_t *whole =
        mmap(NULL, arena->mapped_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (whole == MAP_FAILED)
        return 0;
    arena->region = whole + page;
    uint8_t *mark = arena->region + arena->region_size + page;
    arena->owner = (uint64_t *)(void *)mark;
    if (mprotect(mark, page, PROT_READ | PROT_WRITE) == 0 &&
        madvise(mark, page, MADV_WIPEONFORK) == 0 &&
        ((is_kind(kind, "memfd_secret") && map_secret(arena, arena->region)) ||
         (is_kind(kind, "mlock") && map_locked(arena, arena->region)))) {
        memset(arena->region, 0, arena->region_size);
        *arena->owner = ARENA_MAGIC;
        return 1;
    }
    munmap(whole, arena->mapped_size);
    arena->region = NULL;
    return 0;
}

static int is_owner(const hs_arena *arena)
{
    return arena->pid == getpid() && *arena->owner == ARENA_MAGIC;
}

hs_status hs_arena_create(size_t size, const char *kind, hs_arena **result)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t blobs = sizeof(region_head) + BLOBS * sizeof(blob_data);
    if (size < blobs + 64 * sizeof(hs_slot_data) || size > (1ULL << 30))
        return HS_BAD_ARGUMENT;
    hs_arena *arena = calloc(1, sizeof *arena);
    if (arena == NULL)
        return HS_NO_MEMORY;
    arena->region_size = (size + page - 1) / page * page;
    arena->slot_count = (uint32_t)((arena->region_size - blobs) / sizeof(hs_slot_data));
    arena->free_slots = calloc(arena->slot_count, sizeof *arena->free_slots);
    arena->generations = calloc((size_t)arena->slot_count + BLOBS, sizeof *arena->generations);
    if (arena->free_slots == NULL || arena->generations == NULL || !map_region(arena, kind, page)) {
        free(arena->free_slots);
        free(arena->generations);
        free(arena);
        return HS_NO_MEMORY;
    }
    pthread_mutex_init(&arena->mutex, NULL);
    arena->pid = getpid();
    arena->head = (region_head *)(void *)arena->region;
    arena->head->magic = ARENA_MAGIC;
    arena->slots = (hs_slot_data *)(void *)(arena->region + sizeof(region_head));
    arena->blobs = (blob_data *)(void *)(arena->slots + arena->slot_count);
    for (uint32_t i = 0; i < arena->slot_count; i++)
        arena->free_slots[i] = arena->slot_count - 1 - i;
    arena->free_count = arena->slot_count;
    *result = arena;
    return HS_OK;
}

void hs_arena_destroy(hs_arena *arena)
{
    /* In a forked child the region is not there, and something else may be in its place. */
    if (is_owner(arena)) {
        size_t page = (size_t)sysconf(_SC_PAGESIZE);
        OPENSSL_cleanse(arena->region, arena->region_size);
        munmap(arena->region - page, arena->mapped_size);
        pthread_mutex_destroy(&arena->mutex);
    }
    free(arena->free_slots);
    free(arena->generations);
    free(arena);
}

const char *hs_arena_kind(const hs_arena *arena)
{
    return arena->kind;
}

size_t hs_arena_slots(const hs_arena *arena)
{
    return arena->slot_count;
}

size_t hs_arena_slots_used(const hs_arena *arena)
{
    return __atomic_load_n(&arena->slots_used, __ATOMIC_RELAXED);
}

size_t hs_arena_blobs_used(const hs_arena *arena)
{
    return __atomic_load_n(&arena->blobs_used, __ATOMIC_RELAXED);
}

static void count(uint32_t *counter, int change)
{
    __atomic_store_n(counter, *counter + (uint32_t)change, __ATOMIC_RELAXED);
}

hs_status hs_arena_enter(hs_arena *arena)
{
    if (!is_owner(arena))
        return HS_FORKED;
    pthread_mutex_lock(&arena->mutex);
    if (arena->head->magic == ARENA_MAGIC)
        return HS_OK;
    pthread_mutex_unlock(&arena->mutex);
    return HS_BAD_SLOT;
}

void hs_arena_leave(hs_arena *arena)
{
    pthread_mutex_unlock(&arena->mutex);
}

hs_slot_data *hs_slot_find(hs_arena *arena, uint64_t slot)
{
    uint32_t index = (uint32_t)slot - 1, generation = (uint32_t)(slot >> 32);
    if (index >= arena->slot_count)
        return NULL;
    hs_slot_data *data = &arena->slots[index];
    return data->magic == SLOT_MAGIC && data->magic_behind == SLOT_MAGIC && data->used &&
                   data->generation == generation
               ? data
               : NULL;
}

hs_status hs_slot_take(hs_arena *arena, const uint8_t *key, uint64_t *slot)
{
    if (arena->free_count == 0)
        return HS_FULL;
    uint32_t index = arena->free_slots[--arena->free_count];
    hs_slot_data *data = &arena->slots[index];
    data->magic = data->magic_behind = SLOT_MAGIC;
    data->generation = ++arena->generations[index];
    data->used = 1;
    /* `key` may be memory that another process writes; it is read once. */
    memcpy(data->key, key, HS_KEY_SIZE);
    hs_xaes_prepare(&data->xaes, data->key);
    count(&arena->slots_used, 1);
    *slot = (uint64_t)data->generation << 32 | (index + 1);
    return HS_OK;
}

hs_status hs_slot_generate(hs_arena *arena, uint64_t *slot)
{
    uint8_t key[HS_KEY_SIZE];
    hs_status status = hs_random(key, sizeof key);
    if (status == HS_OK)
        status = hs_slot_load(arena, key, slot);
    OPENSSL_cleanse(key, sizeof key);
    return status;
}

hs_status hs_slot_load(hs_arena *arena, const uint8_t *material, uint64_t *slot)
{
    hs_status status = hs_arena_enter(arena);
    if (status != HS_OK)
        return status;
    status = hs_slot_take(arena, material, slot);
    hs_arena_leave(arena);
    return status;
}

hs_status hs_slot_store(hs_arena *arena, uint64_t slot, uint8_t *destination)
{
    hs_status status = hs_arena_enter(arena);
    if (status != HS_OK)
        return status;
    hs_slot_data *data = hs_slot_find(arena, slot);
    if (data != NULL)
        memcpy(destination, data->key, HS_KEY_SIZE);
    hs_arena_leave(arena);
    return data != NULL ? HS_OK : HS_BAD_SLOT;
}

hs_status hs_slot_free(hs_arena *arena, uint64_t slot)
{
    hs_status status = hs_arena_enter(arena);
    if (status != HS_OK)
        return status;
    hs_slot_data *data = hs_slot_find(arena, slot);
    if (data != NULL) {
        uint32_t index = (uint32_t)slot - 1;
        OPENSSL_cleanse(data, sizeof *data);
        if (arena->generations[index] < GENERATION_MAX)
            arena->free_slots[arena->free_count++] = index;
        count(&arena->slots_used, -1);
    }
    hs_arena_leave(arena);
    return data != NULL ? HS_OK : HS_BAD_SLOT;
}

hs_status hs_slot_set_epoch(hs_arena *arena, uint64_t slot, uint32_t messages, uint64_t age_s)
{
    hs_status status = hs_arena_enter(arena);
    if (status != HS_OK)
        return status;
    hs_slot_data *data = hs_slot_find(arena, slot);
    /* Only forwards: a counter that went back would repeat a nonce. */
    int forwards = data != NULL && data->epoch.born_s != 0 && messages >= data->epoch.messages;
    if (forwards) {
        data->epoch.messages = messages;
        data->epoch.born_s -= age_s; /* before the boot it wraps, as its age does */
        data->epoch.born_s -= data->epoch.born_s == 0;
    }
    hs_arena_leave(arena);
    return forwards ? HS_OK : HS_BAD_SLOT;
}

static blob_data *find_blob(hs_arena *arena, uint64_t blob)
{
    uint32_t index = (uint32_t)blob - 1, generation = (uint32_t)((blob & ~BLOB_MARK) >> 32);
    if (!(blob & BLOB_MARK) || index >= BLOBS)
        return NULL;
    blob_data *data = &arena->blobs[index];
    return data->magic == SLOT_MAGIC && data->magic_behind == SLOT_MAGIC && data->used &&
                   data->generation == generation
               ? data
               : NULL;
}

static void drop_blob(hs_arena *arena, blob_data *blob)
{
    OPENSSL_cleanse(blob, sizeof *blob);
    count(&arena->blobs_used, -1);
}

hs_status hs_blob_take(hs_arena *arena, uint8_t **data, uint64_t *blob)
{
    for (uint32_t i = 0; i < BLOBS; i++) {
        blob_data *found = &arena->blobs[i];
        uint32_t *generation = &arena->generations[arena->slot_count + i];
        if (found->used || *generation == GENERATION_MAX)
            continue;
        found->magic = found->magic_behind = SLOT_MAGIC;
        found->generation = ++*generation;
        found->used = 1;
        count(&arena->blobs_used, 1);
        *data = found->data;
        *blob = BLOB_MARK | (uint64_t)found->generation << 32 | (i + 1);
        return HS_OK;
    }
    return HS_FULL;
}

void hs_blob_end(hs_arena *arena, uint64_t blob, size_t size, int keep)
{
    blob_data *data = find_blob(arena, blob);
    if (data != NULL && keep)
        data->size = size;
    else if (data != NULL)
        drop_blob(arena, data);
}

hs_status hs_blob_view(hs_arena *arena, uint64_t blob, const uint8_t **data, size_t *size)
{
    hs_status status = hs_arena_enter(arena);
    if (status != HS_OK)
        return status;
    blob_data *found = find_blob(arena, blob);
    if (found != NULL) {
        *data = found->data;
        *size = found->size;
    }
    hs_arena_leave(arena);
    return found != NULL ? HS_OK : HS_BAD_SLOT;
}

hs_status hs_blob_free(hs_arena *arena, uint64_t blob)
{
    hs_status status = hs_arena_enter(arena);
    if (status != HS_OK)
        return status;
    blob_data *found = find_blob(arena, blob);
    if (found != NULL)
        drop_blob(arena, found);
    hs_arena_leave(arena);
    return found != NULL ? HS_OK : HS_BAD_SLOT;
}
