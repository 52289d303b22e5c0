/* Columns: what is well formed, and every way not to be. */
#include "check.h"

static hs_status parse(const uint8_t *bytes, size_t size)
{
    hs_column column;
    uint8_t *copy = exact(bytes, size);
    hs_status status = hs_column_parse(&column, copy, size);
    if (status == HS_OK) {
        /* What passes can be walked: every byte of every item is there. */
        size_t sum = 0;
        for (uint32_t i = 0; i < column.count; i++) {
            size_t item_size;
            const uint8_t *item = hs_column_item(&column, i, &item_size);
            for (size_t j = 0; j < item_size; j++)
                sum += item[j] == copy[(size_t)(item - copy) + j];
        }
        CHECK(sum == size - 4 * ((size_t)column.count + 2));
    }
    free(copy);
    return status;
}

static void test_small(void)
{
    static const struct {
        const char *why;
        hs_status expected;
        size_t size;
        uint8_t bytes[24];
    } rows[] = {
        {"nothing", HS_BAD_ARGUMENT, 0, {0}},
        {"less than a count", HS_BAD_ARGUMENT, 3, {0}},
        {"a count alone", HS_BAD_ARGUMENT, 4, {0}},
        {"an offset cut short", HS_BAD_ARGUMENT, 7, {0}},
        {"no items", HS_OK, 8, {0}},
        {"no items, and a byte", HS_BAD_ARGUMENT, 9, {0}},
        {"the first offset is not 0", HS_BAD_ARGUMENT, 8, {0, 0, 0, 0, 0, 0, 0, 1}},
        {"a byte before", HS_BAD_ARGUMENT, 13, {0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 'x'}},
        {"an empty item", HS_OK, 12, {0, 0, 0, 1}},
        {"its offset is missing", HS_BAD_ARGUMENT, 11, {0, 0, 0, 1}},
        {"one byte", HS_OK, 13, {0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 'x'}},
        {"one byte too few", HS_BAD_ARGUMENT, 12, {0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1}},
        {"one byte too many", HS_BAD_ARGUMENT, 14, {0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 'x', 'y'}},
        {"the largest offset", HS_BAD_ARGUMENT, 13, {0, 0, 0, 1, 0, 0, 0, 0, 255, 255, 255, 255}},
        {"back", HS_BAD_ARGUMENT, 17, {0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 'x'}},
        {"twice the same", HS_OK, 17, {0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 'x'}},
        {"the largest count", HS_BAD_ARGUMENT, 24, {255, 255, 255, 255}},
        {"a count whose table's size would wrap", HS_BAD_ARGUMENT, 24, {0x3f, 255, 255, 255}},
    };
    for (size_t i = 0; i < COUNT(rows); i++)
        if (parse(rows[i].bytes, rows[i].size) != rows[i].expected) {
            fprintf(stderr, "%s\n", rows[i].why);
            exit(1);
        }
}

static void test_limits(void)
{
    size_t size = 4 * ((size_t)HS_BATCH_ITEMS_MAX + 3);
    uint8_t *bytes = calloc(1, size);
    CHECK(bytes != NULL);
    hs_put_u32(bytes, HS_BATCH_ITEMS_MAX);
    CHECK(parse(bytes, size - 4) == HS_OK);
    hs_put_u32(bytes, HS_BATCH_ITEMS_MAX + 1);
    CHECK(parse(bytes, size) == HS_BAD_ARGUMENT);
    free(bytes);
}

/* One item as large as an offset can say: its column has more bytes than that. */
static void test_the_largest_item(void)
{
    hs_column column;
    size_t size = 12 + (size_t)UINT32_MAX;
    uint8_t *bytes = mmap(NULL, size, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(bytes != MAP_FAILED);
    hs_put_u32(bytes, 1);
    hs_put_u32(bytes + 8, UINT32_MAX);
    CHECK(hs_column_parse(&column, bytes, size) == HS_BAD_ARGUMENT);
    munmap(bytes, size);
}

int main(void)
{
    test_small();
    test_limits();
    test_the_largest_item();
    return 0;
}
