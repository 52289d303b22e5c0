/* Columns: `u32 n | (n + 1) x u32 offsets | bytes`, checked once and then walked without checks. */
#include "internal.h"

static uint32_t get_u32(const uint8_t *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

void hs_put_u32(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 24);
    at[1] = (uint8_t)(value >> 16);
    at[2] = (uint8_t)(value >> 8);
    at[3] = (uint8_t)value;
}

hs_status hs_column_parse(hs_column *column, const uint8_t *data, size_t size)
{
    if (size < 8 || size > UINT32_MAX)
        return HS_BAD_ARGUMENT;
    column->count = get_u32(data);
    if (column->count > HS_BATCH_ITEMS_MAX)
        return HS_BAD_ARGUMENT;
    size_t start = 4 * ((size_t)column->count + 2);
    if (size < start)
        return HS_BAD_ARGUMENT;
    column->offsets = data + 4;
    column->bytes = data + start;
    uint32_t last = get_u32(column->offsets);
    if (last != 0)
        return HS_BAD_ARGUMENT;
    for (uint32_t i = 1; i <= column->count; i++) {
        uint32_t next = get_u32(column->offsets + 4 * (size_t)i);
        if (next < last)
            return HS_BAD_ARGUMENT;
        last = next;
    }
    return last == size - start ? HS_OK : HS_BAD_ARGUMENT;
}

const uint8_t *hs_column_item(const hs_column *column, uint32_t index, size_t *size)
{
    uint32_t begin = get_u32(column->offsets + 4 * (size_t)index);
    *size = get_u32(column->offsets + 4 * ((size_t)index + 1)) - begin;
    return column->bytes + begin;
}
