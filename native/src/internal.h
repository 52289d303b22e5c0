/* What the translation units of the C module share and nobody else sees. */
#ifndef HSMUX_INTERNAL_H
#define HSMUX_INTERNAL_H

#include <openssl/aes.h>
#include <stdint.h>

#include "hsmux_native.h"

/* An expanded GCM key: what a backend needs to seal or open without looking at the key again. It
 * is large enough and aligned for each of them, and is wiped by whoever owns it. */
#define HS_EXPANDED_SIZE 2560u
typedef struct {
    _Alignas(64) uint8_t bytes[HS_EXPANDED_SIZE];
} hs_expanded;

typedef struct {
    const char *name;
    void (*expand)(hs_expanded *expanded, const uint8_t *key);
    hs_status (*seal)(const hs_expanded *expanded, const uint8_t *iv, const uint8_t *aad,
                      size_t aad_size, const uint8_t *plaintext, size_t size, uint8_t *output);
    hs_status (*open)(const hs_expanded *expanded, const uint8_t *iv, const uint8_t *aad,
                      size_t aad_size, const uint8_t *sealed, size_t size, uint8_t *output);
} hs_backend_ops;

const hs_backend_ops *hs_gcm(void);

/* An XAES-256-GCM key made ready: the AES schedule and the CMAC subkey K1. */
typedef struct {
    AES_KEY schedule;
    uint8_t k1[16];
} hs_xaes_key;

void hs_xaes_prepare(hs_xaes_key *prepared, const uint8_t *key);
void hs_xaes_derive(const hs_xaes_key *prepared, const uint8_t *prefix, uint8_t *derived);

typedef struct {
    uint8_t prefix[HS_IV_SIZE];
    uint32_t messages;
    uint64_t born_s;
    hs_expanded expanded;
} hs_epoch;

/* Smaller than a page, so any page of it that was zeroed takes one of the two magic numbers. */
typedef struct {
    uint64_t magic;
    uint32_t generation;
    uint32_t used;
    uint8_t key[HS_KEY_SIZE];
    hs_xaes_key xaes;
    hs_epoch epoch;
    uint64_t magic_behind;
} hs_slot_data;
_Static_assert(sizeof(hs_slot_data) <= 4096, "two magic numbers do not cover three pages");

hs_status hs_arena_enter(hs_arena *arena);
void hs_arena_leave(hs_arena *arena);
hs_slot_data *hs_slot_find(hs_arena *arena, uint64_t slot);
hs_status hs_slot_take(hs_arena *arena, const uint8_t *key, uint64_t *slot);
hs_status hs_blob_take(hs_arena *arena, uint8_t **data, uint64_t *blob);
void hs_blob_end(hs_arena *arena, uint64_t blob, size_t size, int keep);
hs_status hs_random(uint8_t *bytes, size_t size);
uint64_t hs_now_s(void);

/* columns.c */
typedef struct {
    uint32_t count;
    const uint8_t *offsets;
    const uint8_t *bytes;
} hs_column;

hs_status hs_column_parse(hs_column *column, const uint8_t *data, size_t size);
const uint8_t *hs_column_item(const hs_column *column, uint32_t index, size_t *size);
void hs_put_u32(uint8_t *at, uint32_t value);

#endif
