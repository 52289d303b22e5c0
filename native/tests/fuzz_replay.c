/* Runs the fuzz target over a number of inputs that are the same in each run: well-formed ones,
 * most of them with some bytes changed, cut off or repeated. For compilers without libFuzzer.
 *
 * usage: fuzz_replay BACKEND INPUTS
 *        fuzz_replay BACKEND FILE...               run what a fuzzer found
 *        fuzz_replay BACKEND --seeds DIRECTORY     write well-formed inputs for a fuzzer */
#include "fuzz.h"

#include "check.h"

enum { SIZE_MAX_HERE = 2 * FUZZ_SEED_SIZE_MAX, SEEDS = 60 };

/* Bytes at which lengths and counts go wrong. */
static const uint8_t EDGES[] = {0, 1, 2, 0x3f, 0x40, 0x7f, 0x80, 0xff};

static size_t below(uint64_t *state, size_t end)
{
    return end == 0 ? 0 : (size_t)(next_number(state) >> 11) % end;
}

static size_t mutate(uint64_t *state, uint8_t *data, size_t size)
{
    for (size_t left = below(state, 4); left > 0; left--) {
        /* The tables in front decide more than the bytes behind. */
        size_t at = below(state, below(state, 2) ? size : size < 48 ? size : 48);
        switch (below(state, 5)) {
        case 0:
            data[at] = EDGES[below(state, COUNT(EDGES))];
            break;
        case 1:
            data[at] ^= (uint8_t)(1 << below(state, 8));
            break;
        case 2:
            data[at] = (uint8_t)(next_number(state) >> 56);
            break;
        case 3:
            size = at;
            break;
        default:
            if (size - at <= SIZE_MAX_HERE - size) {
                memmove(data + size, data + at, size - at);
                size += size - at;
            }
            break;
        }
    }
    return size;
}

static void run_file(const char *path)
{
    uint8_t data[1 << 16];
    FILE *file = fopen(path, "rb");
    CHECK(file != NULL);
    size_t size = fread(data, 1, sizeof data, file);
    fclose(file);
    LLVMFuzzerTestOneInput(data, size);
}

static void write_seeds(const char *directory)
{
    for (uint64_t number = 0; number < SEEDS; number++) {
        static uint8_t data[FUZZ_SEED_SIZE_MAX];
        char path[4096];
        snprintf(path, sizeof path, "%s/seed-%02u", directory, (unsigned)number);
        FILE *file = fopen(path, "wb");
        CHECK(file != NULL);
        size_t size = fuzz_seed(number, data);
        CHECK(fwrite(data, 1, size, file) == size && fclose(file) == 0);
    }
}

int main(int count, char **words)
{
    char *end;
    CHECK(count > 2);
    LLVMFuzzerInitialize(&count, &words);
    if (strcmp(words[2], "--seeds") == 0) {
        CHECK(count == 4);
        write_seeds(words[3]);
        return 0;
    }
    uint64_t inputs = strtoull(words[2], &end, 10);
    for (int i = 2; *end != '\0' && i < count; i++)
        run_file(words[i]);
    for (uint64_t number = 0; *end == '\0' && number < inputs; number++) {
        static uint8_t data[SIZE_MAX_HERE];
        uint64_t state = number * 2 + 1;
        size_t size = fuzz_seed(number, data);
        LLVMFuzzerTestOneInput(data, mutate(&state, data, size));
    }
    return 0;
}
