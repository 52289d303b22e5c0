/* Key memory: slots and their numbers, limits, guard pages, magic numbers, fork, random bytes. */
#include <sched.h>

#include "seams.h"

enum { ARENA_SIZE = 1 << 20 };

static const uint8_t KEY[HS_KEY_SIZE] = "a key of thirty-two bytes, here";

static hs_arena *make(const char *kind)
{
    hs_arena *arena = NULL;
    CHECK(hs_arena_create(ARENA_SIZE, kind, &arena) == HS_OK);
    CHECK(strcmp(hs_arena_kind(arena), kind) == 0);
    return arena;
}

/* What every way to use a slot says to a number. */
static void check_refused(hs_arena *arena, uint64_t slot, hs_status expected)
{
    uint8_t bytes[256] = {0};
    static const uint8_t none[8], one[12] = {0, 0, 0, 1};
    size_t size = sizeof none;
    CHECK(hs_slot_store(arena, slot, bytes) == expected);
    CHECK(hs_slot_free(arena, slot) == expected);
    CHECK(hs_slot_set_epoch(arena, slot, 0, 0) == expected);
    CHECK(hs_seal(arena, slot, bytes, 0, bytes, 0, bytes, 0, bytes + 8) == expected);
    CHECK(hs_open(arena, slot, 0, bytes, 0, bytes, 64, bytes + 64) == expected);
    CHECK(hs_seal_batch(arena, slot, bytes, 0, one, sizeof one, none, sizeof none, bytes, &size,
                        bytes + 64) == expected);
    CHECK(hs_open_batch(arena, slot, bytes, 0, one, sizeof one, none, sizeof none, bytes, &size,
                        bytes + 64) == expected);
    CHECK(hs_seal_bytes(arena, slot, bytes, 0, bytes, 0, bytes + 64) == expected);
    CHECK(hs_open_bytes(arena, slot, bytes, 0, bytes, 64, bytes + 64) == expected);
    CHECK(hs_seal_slot(arena, slot, bytes, 0, slot, bytes + 64) == expected);
    CHECK(hs_open_slot(arena, slot, bytes, 0, bytes, 72, &slot) == expected);
    CHECK(hs_open_blob(arena, slot, bytes, 0, bytes, 64, &slot) == expected);
    CHECK(hs_slot_hmac_sha256(arena, slot, bytes, 0, bytes + 64) == expected);
    CHECK(hs_blob_free(arena, slot) == expected);
    const uint8_t *data;
    CHECK(hs_blob_view(arena, slot, &data, &size) == expected);
}

static void test_sizes(void)
{
    hs_arena *arena = NULL;
    size_t least = sizeof(region_head) + BLOBS * sizeof(blob_data) + 64 * sizeof(hs_slot_data);
    CHECK(hs_arena_create(0, NULL, &arena) == HS_BAD_ARGUMENT);
    CHECK(hs_arena_create(least - 1, NULL, &arena) == HS_BAD_ARGUMENT);
    CHECK(hs_arena_create((1u << 30) + 1, NULL, &arena) == HS_BAD_ARGUMENT);
    CHECK(hs_arena_create(SIZE_MAX, NULL, &arena) == HS_BAD_ARGUMENT);
    CHECK(hs_arena_create(ARENA_SIZE, "paper", &arena) == HS_NO_MEMORY);
    CHECK(hs_arena_create(least, NULL, &arena) == HS_OK);
    CHECK(hs_arena_slots(arena) >= 64);
    CHECK((uintptr_t)arena->slots % _Alignof(hs_slot_data) == 0);
    CHECK((uint8_t *)(arena->blobs + BLOBS) <= arena->region + arena->region_size);
    hs_arena_destroy(arena);
}

static void test_slots(const char *kind)
{
    hs_arena *arena = make(kind);
    size_t slots = hs_arena_slots(arena);
    uint64_t *numbers = calloc(slots, sizeof *numbers), extra = 1234;
    uint8_t stored[HS_KEY_SIZE];
    CHECK(numbers != NULL);
    for (size_t i = 0; i < slots; i++) {
        CHECK(hs_slot_generate(arena, &numbers[i]) == HS_OK);
        for (size_t j = 0; j < i; j++)
            CHECK(numbers[j] != numbers[i]);
    }
    CHECK(hs_arena_slots_used(arena) == slots);
    CHECK(hs_slot_generate(arena, &extra) == HS_FULL && extra == 1234);
    CHECK(hs_slot_load(arena, KEY, &extra) == HS_FULL);
    uint64_t gone = numbers[slots / 2];
    hs_slot_data *place = hs_slot_find(arena, gone);
    CHECK(hs_slot_free(arena, gone) == HS_OK);
    for (size_t i = 0; i < sizeof *place; i++)
        CHECK(((uint8_t *)place)[i] == 0);
    check_refused(arena, gone, HS_BAD_SLOT);
    CHECK(hs_slot_load(arena, KEY, &extra) == HS_OK && extra != gone);
    CHECK((uint32_t)extra == (uint32_t)gone); /* the same place under another number */
    check_refused(arena, gone, HS_BAD_SLOT);
    CHECK(hs_slot_store(arena, extra, stored) == HS_OK);
    CHECK(memcmp(stored, KEY, sizeof stored) == 0);
    const uint64_t nonsense[] = {0,
                                 slots + 1,
                                 UINT64_MAX,
                                 extra ^ 1ULL << 32,
                                 extra | BLOB_MARK,
                                 extra & UINT32_MAX,
                                 (extra & ~(uint64_t)UINT32_MAX),
                                 BLOB_MARK | 1};
    for (size_t i = 0; i < COUNT(nonsense); i++)
        check_refused(arena, nonsense[i], HS_BAD_SLOT);
    free(numbers);
    hs_arena_destroy(arena);
}

/* Memory that is shared with a worker can change while a key is loaded from it. */
static void test_a_key_is_read_once(void)
{
    hs_arena *arena = make("mlock");
    uint8_t material[HS_KEY_SIZE], sealed[41], opened[1];
    uint64_t slot;
    memcpy(material, KEY, sizeof material);
    seam_material = material;
    CHECK(hs_slot_load(arena, material, &slot) == HS_OK);
    seam_material = NULL;
    CHECK(memcmp(material, KEY, sizeof material) != 0);
    CHECK(hs_seal_bytes(arena, slot, KEY, 0, KEY, 1, sealed) == HS_OK);
    CHECK(hs_xaes_open(KEY, sealed, KEY, 0, sealed + HS_NONCE_SIZE, 17, opened) == HS_OK);
    hs_arena_destroy(arena);
}

/* A place is given up before its number would come again. */
static void test_worn_places(void)
{
    hs_arena *arena = make("mlock");
    uint64_t slot, next, kek, blob;
    const uint8_t *data;
    size_t size;
    CHECK(hs_slot_generate(arena, &slot) == HS_OK);
    uint32_t index = (uint32_t)slot - 1;
    CHECK(hs_slot_free(arena, slot) == HS_OK);
    arena->generations[index] = GENERATION_MAX - 1;
    CHECK(hs_slot_generate(arena, &slot) == HS_OK);
    CHECK((uint32_t)slot - 1 == index && slot >> 32 == GENERATION_MAX);
    CHECK(hs_slot_free(arena, slot) == HS_OK && hs_arena_slots_used(arena) == 0);
    for (size_t i = 1; i < hs_arena_slots(arena); i++) {
        CHECK(hs_slot_generate(arena, &next) == HS_OK);
        CHECK((uint32_t)next - 1 != index);
        kek = next;
    }
    CHECK(hs_slot_generate(arena, &next) == HS_FULL);

    uint8_t sealed[40 + 5];
    CHECK(hs_seal_bytes(arena, kek, KEY, 0, KEY, 5, sealed) == HS_OK);
    for (uint32_t i = 0; i < BLOBS; i++)
        arena->generations[arena->slot_count + i] = GENERATION_MAX - (i == 3);
    CHECK(hs_open_blob(arena, kek, KEY, 0, sealed, sizeof sealed, &blob) == HS_OK);
    CHECK(hs_blob_view(arena, blob, &data, &size) == HS_OK && size == 5);
    CHECK(hs_blob_free(arena, blob) == HS_OK);
    CHECK(hs_open_blob(arena, kek, KEY, 0, sealed, sizeof sealed, &blob) == HS_FULL);
    hs_arena_destroy(arena);
}

static void test_blobs(void)
{
    hs_arena *arena = make("mlock");
    uint64_t kek, blobs[BLOBS], extra;
    const uint8_t *data;
    size_t size, room = HS_BLOB_SIZE_MAX + 41;
    uint8_t *text = exact(NULL, HS_BLOB_SIZE_MAX + 1), *sealed = exact(NULL, room);
    fill(text, HS_BLOB_SIZE_MAX + 1, 9);
    CHECK(hs_slot_generate(arena, &kek) == HS_OK);
    CHECK(hs_seal_bytes(arena, kek, KEY, 3, text, HS_BLOB_SIZE_MAX, sealed) == HS_OK);
    for (size_t i = 0; i < BLOBS; i++)
        CHECK(hs_open_blob(arena, kek, KEY, 3, sealed, room - 1, &blobs[i]) == HS_OK);
    CHECK(hs_arena_blobs_used(arena) == BLOBS);
    CHECK(hs_open_blob(arena, kek, KEY, 3, sealed, room - 1, &extra) == HS_FULL);
    CHECK(hs_blob_view(arena, blobs[7], &data, &size) == HS_OK);
    CHECK(size == HS_BLOB_SIZE_MAX && memcmp(data, text, size) == 0);
    check_refused(arena, blobs[7] & ~BLOB_MARK, HS_BAD_SLOT);
    CHECK(hs_blob_free(arena, blobs[7]) == HS_OK);
    for (size_t i = 0; i < size; i++)
        CHECK(data[i] == 0);
    check_refused(arena, blobs[7], HS_BAD_SLOT);

    /* What does not open takes no place and leaves nothing behind. */
    sealed[room - 2] ^= 1;
    CHECK(hs_open_blob(arena, kek, KEY, 3, sealed, room - 1, &extra) == HS_INVALID);
    CHECK(hs_open_blob(arena, kek, KEY, 3, sealed, 39, &extra) == HS_INVALID);
    CHECK(hs_open_blob(arena, kek, KEY, 3, sealed, room, &extra) == HS_INVALID);
    CHECK(hs_arena_blobs_used(arena) == BLOBS - 1);
    for (size_t i = 0; i < sizeof(blob_data); i++)
        CHECK(((uint8_t *)&arena->blobs[7])[i] == 0);
    free(text);
    free(sealed);
    hs_arena_destroy(arena);
}

/* Memory that lost its content holds no key, whichever page of it was lost. */
static void test_zeroed_memory(const char *kind)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (size_t lost = 0;; lost++) {
        hs_arena *arena = make(kind);
        if (lost == arena->region_size / page) {
            hs_arena_destroy(arena);
            break;
        }
        uint64_t slots[64];
        for (size_t i = 0; i < COUNT(slots); i++)
            CHECK(hs_slot_generate(arena, &slots[i]) == HS_OK);
        uint8_t *at = arena->region + lost * page;
        memset(at, 0, page);
        for (size_t i = 0; i < COUNT(slots); i++) {
            uint8_t *slot = (uint8_t *)&arena->slots[(uint32_t)slots[i] - 1], stored[HS_KEY_SIZE];
            int is_hit = lost == 0 || (slot < at + page && slot + sizeof(hs_slot_data) > at);
            CHECK(hs_slot_store(arena, slots[i], stored) == (is_hit ? HS_BAD_SLOT : HS_OK));
        }
        if (lost == 0)
            check_refused(arena, slots[0], HS_BAD_SLOT);
        hs_arena_destroy(arena);
    }
}

static void touch(void *address)
{
    *(volatile uint8_t *)address;
}

static void test_guard_pages(const char *kind)
{
    hs_arena *arena = make(kind);
    CHECK(in_child(touch, arena->region - 1) == -SIGSEGV);
    CHECK(in_child(touch, arena->region + arena->region_size) == -SIGSEGV);
    hs_arena_destroy(arena);
}

typedef struct {
    hs_arena *arena;
    uint64_t slot;
} inherited;

static void use_inherited(void *argument)
{
    const inherited *given = argument;
    check_refused(given->arena, given->slot, HS_FORKED);
    /* A child in a pid namespace of its own can have the pid of the arena's maker. */
    given->arena->pid = getpid();
    check_refused(given->arena, given->slot, HS_FORKED);
    uint64_t slot;
    CHECK(hs_slot_generate(given->arena, &slot) == HS_FORKED);
    CHECK(hs_arena_slots_used(given->arena) == 1);
    hs_arena_destroy(given->arena);
}

static void look_for_zeros(void *argument)
{
    const hs_arena *arena = ((const inherited *)argument)->arena;
    for (size_t i = 0; i < arena->region_size; i++)
        CHECK(arena->region[i] == 0);
}

static int use_shared_memory(void *argument)
{
    uint8_t stored[HS_KEY_SIZE];
    const inherited *given = argument;
    return (int)hs_slot_store(given->arena, given->slot, stored);
}

static void test_fork(const char *kind)
{
    inherited given = {.arena = make(kind)};
    CHECK(hs_slot_generate(given.arena, &given.slot) == HS_OK);
    CHECK(in_child(use_inherited, &given) == 0);
    int is_absent = strcmp(kind, "memfd_secret") == 0;
    CHECK(in_child(look_for_zeros, &given) == (is_absent ? -SIGSEGV : 0));
    /* A child that shares all memory, as vfork's, is another process all the same. */
    static _Alignas(16) uint8_t stack[1 << 18];
    int status;
    pid_t child = clone(use_shared_memory, stack + sizeof stack, CLONE_VM | SIGCHLD, &given);
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == HS_FORKED);
    uint8_t stored[HS_KEY_SIZE];
    CHECK(hs_slot_store(given.arena, given.slot, stored) == HS_OK);
    hs_arena_destroy(given.arena);
}

static void test_random(void)
{
    uint8_t bytes[HS_KEY_SIZE + 1] = {0}, other[HS_KEY_SIZE];
    static const uint8_t zeros[HS_KEY_SIZE];
    CHECK(hs_random(bytes, HS_KEY_SIZE + 1) == HS_BAD_ARGUMENT);
    seam_random = RANDOM_SLOW;
    CHECK(hs_random(bytes, HS_KEY_SIZE) == HS_OK);
    seam_random = RANDOM_REAL;
    CHECK(hs_random(other, HS_KEY_SIZE) == HS_OK && memcmp(bytes, other, HS_KEY_SIZE) != 0);
    memset(bytes, 0, sizeof bytes);
    seam_random = RANDOM_FAILS;
    CHECK(hs_random(bytes, HS_KEY_SIZE) == HS_NO_RANDOM);
    seam_random = RANDOM_STUCK;
    hs_random(other, 8);
    CHECK(hs_random(bytes, HS_KEY_SIZE) == HS_NO_RANDOM);
    CHECK(memcmp(bytes, zeros, HS_KEY_SIZE) == 0);
    hs_arena *arena = make("mlock");
    uint64_t slot;
    CHECK(hs_slot_generate(arena, &slot) == HS_NO_RANDOM);
    CHECK(hs_arena_slots_used(arena) == 0);
    seam_random = RANDOM_REAL;
    CHECK(hs_slot_generate(arena, &slot) == HS_OK);
    hs_arena_destroy(arena);
}

static void use_shared(void *mapped)
{
    ((volatile uint8_t *)mapped)[0] = 1;
}

static void test_secret_pages(const char *kind)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    CHECK(hs_secret_fd(page, "paper") == -1);
    int fd = hs_secret_fd(page, kind);
    CHECK(fd >= 0);
    void *mapped = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    void *again = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(mapped != MAP_FAILED && again != MAP_FAILED);
    CHECK(hs_secret_protect(fd, mapped, page) == HS_OK);
    memcpy(mapped, KEY, sizeof KEY);
    CHECK(memcmp(again, KEY, sizeof KEY) == 0);
    /* Who has the descriptor cannot take the pages from under somebody else. */
    CHECK(ftruncate(fd, 0) != 0 && ftruncate(fd, 2 * (off_t)page) != 0);
    CHECK(memcmp(mapped, KEY, sizeof KEY) == 0);
    CHECK(in_child(use_shared, mapped) == -SIGSEGV);
    CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    munmap(mapped, page);
    munmap(again, page);
    close(fd);
    CHECK(hs_secret_protect(fd, mapped, page) == HS_NO_MEMORY);
}

int main(int count, char **words)
{
    static const char *const kinds[] = {"memfd_secret", "mlock"};
    choose_backend(count, words);
    test_sizes();
    test_a_key_is_read_once();
    test_worn_places();
    test_blobs();
    test_random();
    test_secret_pages("memfd");
    for (size_t i = 0; i < COUNT(kinds); i++) {
        hs_arena *probe;
        if (hs_arena_create(ARENA_SIZE, kinds[i], &probe) != HS_OK) {
            printf("this kernel has no %s\n", kinds[i]);
            continue;
        }
        hs_arena_destroy(probe);
        test_slots(kinds[i]);
        test_zeroed_memory(kinds[i]);
        test_guard_pages(kinds[i]);
        test_fork(kinds[i]);
        if (i == 0)
            test_secret_pages(kinds[i]);
    }
    return 0;
}
