/* Sealing and opening with keys in slots.
 *
 * Why no nonce repeats. An envelope's nonce is prefix 12 | r 8 | n 4 (bytes). The prefix is drawn
 * from getrandom(2) when a slot's nonce epoch begins; r is drawn once in each call; n is the
 * epoch's message counter, incremented before it is used and never set back. Two envelopes under
 * one key have the same nonce only if prefix, r and n are all equal. Within an epoch n differs. In
 * two epochs (another slot for the same key, another process, after a restart, after an hour) the
 * prefixes differ except with probability 2^-96 for each pair of epochs, and r would have to be
 * equal too. A forked child has no arena; a virtual machine that was copied shares prefix and n
 * with its copy, and there r alone keeps them apart: 64 fresh bits in each call, from a kernel that
 * learns of the copy (vmgenid). An epoch ends after 2^24 messages or an hour, which also bounds
 * what one derived GCM key seals to 2^24 messages of 64 KiB: 2^36 blocks, at distinct IVs.
 *
 * What is sealed for the gateway itself (seal_bytes, seal_slot) takes 24 fresh random bytes each.
 *
 * Opening says HS_INVALID for everything that is wrong with a ciphertext and nothing else. */
#include <openssl/crypto.h>
#include <string.h>

#include "internal.h"

#define NONCE_RANDOM_SIZE 8u
#define SEALED_OVERHEAD (HS_NONCE_SIZE + HS_TAG_SIZE)
#define CONTEXT_SIZE_MAX (HS_AAD_SIZE_MAX - HS_HEADER_SIZE_MAX)

/* Associated data of an item: header | context. */
typedef struct {
    size_t size;
    size_t header_size;
    uint8_t bytes[HS_AAD_SIZE_MAX];
} item_aad;

static hs_status set_header(item_aad *aad, const uint8_t *header, size_t header_size)
{
    if (header_size > HS_HEADER_SIZE_MAX)
        return HS_BAD_ARGUMENT;
    memcpy(aad->bytes, header, header_size);
    aad->header_size = aad->size = header_size;
    return HS_OK;
}

static hs_status set_context(item_aad *aad, const uint8_t *context, size_t context_size)
{
    if (context_size > CONTEXT_SIZE_MAX)
        return HS_BAD_ARGUMENT;
    memcpy(aad->bytes + aad->header_size, context, context_size);
    aad->size = aad->header_size + context_size;
    return HS_OK;
}

static void expand_prefix(const hs_slot_data *slot, const uint8_t *prefix, hs_expanded *expanded)
{
    uint8_t derived[HS_KEY_SIZE];
    hs_xaes_derive(&slot->xaes, prefix, derived);
    hs_gcm()->expand(expanded, derived);
    OPENSSL_cleanse(derived, sizeof derived);
}

/* Begin a new nonce epoch if there is none, or the current one is worn. */
static hs_status renew_epoch(hs_slot_data *slot, uint64_t now_s)
{
    hs_epoch *epoch = &slot->epoch;
    if (epoch->born_s != 0 && epoch->messages < HS_EPOCH_MESSAGES_MAX &&
        now_s - epoch->born_s < HS_EPOCH_AGE_MAX_S)
        return HS_OK;
    uint8_t prefix[HS_IV_SIZE];
    hs_status status = hs_random(prefix, sizeof prefix);
    if (status != HS_OK)
        return status;
    if (CRYPTO_memcmp(prefix, epoch->prefix, sizeof prefix) == 0)
        return HS_NO_RANDOM;
    memcpy(epoch->prefix, prefix, sizeof prefix);
    epoch->messages = 0;
    epoch->born_s = now_s;
    expand_prefix(slot, prefix, &epoch->expanded);
    return HS_OK;
}

/* One item: header | nonce | ciphertext | tag into `envelope`. */
static hs_status seal_item(hs_slot_data *slot, const uint8_t *random, uint64_t now_s,
                           const item_aad *aad, const uint8_t *plaintext, size_t size,
                           uint8_t *envelope)
{
    hs_status status = renew_epoch(slot, now_s);
    if (status != HS_OK)
        return status;
    hs_epoch *epoch = &slot->epoch;
    uint8_t *nonce = envelope + aad->header_size;
    epoch->messages++;
    memcpy(envelope, aad->bytes, aad->header_size);
    memcpy(nonce, epoch->prefix, HS_IV_SIZE);
    memcpy(nonce + HS_IV_SIZE, random, NONCE_RANDOM_SIZE);
    hs_put_u32(nonce + HS_IV_SIZE + NONCE_RANDOM_SIZE, epoch->messages);
    return hs_gcm()->seal(&epoch->expanded, nonce + HS_IV_SIZE, aad->bytes, aad->size, plaintext,
                          size, nonce + HS_NONCE_SIZE);
}

/* A derived key kept from item to item: most envelopes of a batch share their prefix. */
typedef struct {
    int ready;
    uint8_t prefix[HS_IV_SIZE];
    hs_expanded expanded;
} derived_key;

static hs_status open_item(const hs_slot_data *slot, derived_key *kept, const item_aad *aad,
                           const uint8_t *envelope, size_t size, uint8_t *plaintext)
{
    if (size < aad->header_size + SEALED_OVERHEAD ||
        size > aad->header_size + SEALED_OVERHEAD + HS_ITEM_SIZE_MAX ||
        memcmp(envelope, aad->bytes, aad->header_size) != 0)
        return HS_INVALID;
    const uint8_t *nonce = envelope + aad->header_size;
    if (!kept->ready || memcmp(kept->prefix, nonce, HS_IV_SIZE) != 0) {
        memcpy(kept->prefix, nonce, HS_IV_SIZE);
        expand_prefix(slot, nonce, &kept->expanded);
        kept->ready = 1;
    }
    return hs_gcm()->open(&kept->expanded, nonce + HS_IV_SIZE, aad->bytes, aad->size,
                          nonce + HS_NONCE_SIZE, size - aad->header_size - HS_NONCE_SIZE,
                          plaintext);
}

static hs_status enter(hs_arena *arena, uint64_t slot, hs_slot_data **data)
{
    hs_status status = hs_arena_enter(arena);
    if (status != HS_OK)
        return status;
    *data = hs_slot_find(arena, slot);
    if (*data != NULL)
        return HS_OK;
    hs_arena_leave(arena);
    return HS_BAD_SLOT;
}

hs_status hs_seal(hs_arena *arena, uint64_t slot, const uint8_t *header, size_t header_size,
                  const uint8_t *context, size_t context_size, const uint8_t *plaintext,
                  size_t size, uint8_t *envelope)
{
    item_aad aad;
    uint8_t random[NONCE_RANDOM_SIZE];
    hs_slot_data *data;
    if (size > HS_ITEM_SIZE_MAX)
        return HS_TOO_LARGE;
    if (set_header(&aad, header, header_size) != HS_OK ||
        set_context(&aad, context, context_size) != HS_OK)
        return HS_BAD_ARGUMENT;
    hs_status status = hs_random(random, sizeof random);
    if (status == HS_OK)
        status = enter(arena, slot, &data);
    if (status != HS_OK)
        return status;
    status = seal_item(data, random, hs_now_s(), &aad, plaintext, size, envelope);
    hs_arena_leave(arena);
    return status;
}

hs_status hs_open(hs_arena *arena, uint64_t slot, size_t header_size, const uint8_t *context,
                  size_t context_size, const uint8_t *envelope, size_t size, uint8_t *plaintext)
{
    item_aad aad;
    derived_key kept = {.ready = 0};
    hs_slot_data *data;
    if (size < header_size)
        return HS_INVALID;
    if (set_header(&aad, envelope, header_size) != HS_OK ||
        set_context(&aad, context, context_size) != HS_OK)
        return HS_BAD_ARGUMENT;
    hs_status status = enter(arena, slot, &data);
    if (status != HS_OK)
        return status;
    status = open_item(data, &kept, &aad, envelope, size, plaintext);
    hs_arena_leave(arena);
    OPENSSL_cleanse(&kept, sizeof kept);
    return status;
}

/* The columns of a batch, checked before any work: contexts is one for all or one for each item,
 * and none is over its limit. */
static hs_status parse_batch(hs_column *contexts, hs_column *items, const uint8_t *contexts_data,
                             size_t contexts_size, const uint8_t *items_data, size_t items_size)
{
    if (hs_column_parse(contexts, contexts_data, contexts_size) != HS_OK ||
        hs_column_parse(items, items_data, items_size) != HS_OK ||
        (contexts->count != 1 && contexts->count != items->count))
        return HS_BAD_ARGUMENT;
    for (uint32_t i = 0; i < contexts->count; i++) {
        size_t size;
        hs_column_item(contexts, i, &size);
        if (size > CONTEXT_SIZE_MAX)
            return HS_BAD_ARGUMENT;
    }
    return HS_OK;
}

/* Where the next output of a column goes. */
typedef struct {
    uint8_t *data;
    uint8_t *bytes;
    size_t used;
} output_column;

static void begin_output(output_column *output, uint8_t *data, uint32_t count)
{
    output->data = data;
    output->bytes = data + 4 * ((size_t)count + 2);
    output->used = 0;
    hs_put_u32(data, count);
    hs_put_u32(data + 4, 0);
}

static void end_item(output_column *output, uint32_t index, size_t size)
{
    output->used += size;
    hs_put_u32(output->data + 4 * ((size_t)index + 2), (uint32_t)output->used);
}

static hs_status next_context(item_aad *aad, const hs_column *contexts, uint32_t index)
{
    size_t size;
    if (contexts->count == 1 && index > 0)
        return HS_OK;
    const uint8_t *context = hs_column_item(contexts, index, &size);
    return set_context(aad, context, size);
}

hs_status hs_seal_batch(hs_arena *arena, uint64_t slot, const uint8_t *header, size_t header_size,
                        const uint8_t *contexts_data, size_t contexts_size,
                        const uint8_t *plaintexts, size_t plaintexts_size, uint8_t *envelopes,
                        size_t *envelopes_size, uint8_t *statuses)
{
    hs_column contexts, items;
    item_aad aad;
    uint8_t random[NONCE_RANDOM_SIZE];
    hs_slot_data *data;
    if (parse_batch(&contexts, &items, contexts_data, contexts_size, plaintexts,
                    plaintexts_size) != HS_OK ||
        set_header(&aad, header, header_size) != HS_OK ||
        *envelopes_size <
            plaintexts_size + items.count * (header_size + (size_t)SEALED_OVERHEAD))
        return HS_BAD_ARGUMENT;
    hs_status status = hs_random(random, sizeof random);
    if (status == HS_OK)
        status = enter(arena, slot, &data);
    if (status != HS_OK)
        return status;
    output_column output;
    begin_output(&output, envelopes, items.count);
    uint64_t now_s = hs_now_s();
    for (uint32_t i = 0; i < items.count && status == HS_OK; i++) {
        size_t size, written = 0;
        const uint8_t *plaintext = hs_column_item(&items, i, &size);
        status = next_context(&aad, &contexts, i);
        statuses[i] = size > HS_ITEM_SIZE_MAX ? HS_TOO_LARGE : HS_OK;
        if (status == HS_OK && statuses[i] == HS_OK) {
            status = seal_item(data, random, now_s, &aad, plaintext, size,
                               output.bytes + output.used);
            written = header_size + SEALED_OVERHEAD + size;
        }
        end_item(&output, i, written);
    }
    hs_arena_leave(arena);
    *envelopes_size = (size_t)(output.bytes - envelopes) + output.used;
    return status;
}

hs_status hs_open_batch(hs_arena *arena, uint64_t slot, const uint8_t *header, size_t header_size,
                        const uint8_t *contexts_data, size_t contexts_size,
                        const uint8_t *envelopes, size_t envelopes_size, uint8_t *plaintexts,
                        size_t *plaintexts_size, uint8_t *statuses)
{
    hs_column contexts, items;
    item_aad aad;
    derived_key kept = {.ready = 0};
    hs_slot_data *data;
    if (parse_batch(&contexts, &items, contexts_data, contexts_size, envelopes,
                    envelopes_size) != HS_OK ||
        set_header(&aad, header, header_size) != HS_OK || *plaintexts_size < envelopes_size)
        return HS_BAD_ARGUMENT;
    hs_status status = enter(arena, slot, &data);
    if (status != HS_OK)
        return status;
    output_column output;
    begin_output(&output, plaintexts, items.count);
    for (uint32_t i = 0; i < items.count && status == HS_OK; i++) {
        size_t size, written = 0;
        const uint8_t *envelope = hs_column_item(&items, i, &size);
        status = next_context(&aad, &contexts, i);
        if (status == HS_OK)
            status = open_item(data, &kept, &aad, envelope, size, output.bytes + output.used);
        if (status == HS_OK)
            written = size - header_size - SEALED_OVERHEAD;
        /* An item that does not open ends with its own status; anything else ends the batch. */
        statuses[i] = (uint8_t)status;
        status = status == HS_INVALID ? HS_OK : status;
        end_item(&output, i, written);
    }
    hs_arena_leave(arena);
    OPENSSL_cleanse(&kept, sizeof kept);
    *plaintexts_size = (size_t)(output.bytes - plaintexts) + output.used;
    return status;
}

/* nonce 24 | ciphertext | tag under a key-encryption key, with a fresh random nonce. */
static hs_status seal_random(const hs_slot_data *kek, const uint8_t *aad, size_t aad_size,
                             const uint8_t *plaintext, size_t size, uint8_t *sealed)
{
    hs_expanded expanded;
    if (size > HS_ITEM_SIZE_MAX || aad_size > HS_ROW_AAD_SIZE_MAX)
        return HS_BAD_ARGUMENT;
    hs_status status = hs_random(sealed, HS_NONCE_SIZE);
    if (status != HS_OK)
        return status;
    expand_prefix(kek, sealed, &expanded);
    status = hs_gcm()->seal(&expanded, sealed + HS_IV_SIZE, aad, aad_size, plaintext, size,
                            sealed + HS_NONCE_SIZE);
    OPENSSL_cleanse(&expanded, sizeof expanded);
    return status;
}

static hs_status open_random(const hs_slot_data *kek, const uint8_t *aad, size_t aad_size,
                             const uint8_t *sealed, size_t size, uint8_t *plaintext)
{
    hs_expanded expanded;
    if (size < SEALED_OVERHEAD || size > SEALED_OVERHEAD + HS_ITEM_SIZE_MAX ||
        aad_size > HS_ROW_AAD_SIZE_MAX)
        return HS_INVALID;
    expand_prefix(kek, sealed, &expanded);
    hs_status status = hs_gcm()->open(&expanded, sealed + HS_IV_SIZE, aad, aad_size,
                                      sealed + HS_NONCE_SIZE, size - HS_NONCE_SIZE, plaintext);
    OPENSSL_cleanse(&expanded, sizeof expanded);
    return status;
}

hs_status hs_seal_bytes(hs_arena *arena, uint64_t kek, const uint8_t *aad, size_t aad_size,
                        const uint8_t *plaintext, size_t size, uint8_t *sealed)
{
    hs_slot_data *data;
    hs_status status = enter(arena, kek, &data);
    if (status != HS_OK)
        return status;
    status = seal_random(data, aad, aad_size, plaintext, size, sealed);
    hs_arena_leave(arena);
    return status;
}

hs_status hs_open_bytes(hs_arena *arena, uint64_t kek, const uint8_t *aad, size_t aad_size,
                        const uint8_t *sealed, size_t size, uint8_t *plaintext)
{
    hs_slot_data *data;
    hs_status status = enter(arena, kek, &data);
    if (status != HS_OK)
        return status;
    status = open_random(data, aad, aad_size, sealed, size, plaintext);
    hs_arena_leave(arena);
    return status;
}

hs_status hs_seal_slot(hs_arena *arena, uint64_t kek, const uint8_t *aad, size_t aad_size,
                       uint64_t slot, uint8_t *sealed)
{
    hs_slot_data *data;
    hs_status status = enter(arena, kek, &data);
    if (status != HS_OK)
        return status;
    const hs_slot_data *inner = hs_slot_find(arena, slot);
    status = inner == NULL ? HS_BAD_SLOT
                           : seal_random(data, aad, aad_size, inner->key, HS_KEY_SIZE, sealed);
    hs_arena_leave(arena);
    return status;
}

hs_status hs_open_slot(hs_arena *arena, uint64_t kek, const uint8_t *aad, size_t aad_size,
                       const uint8_t *sealed, size_t size, uint64_t *slot)
{
    hs_slot_data *data;
    uint8_t key[HS_KEY_SIZE];
    if (size != SEALED_OVERHEAD + HS_KEY_SIZE)
        return HS_INVALID;
    hs_status status = enter(arena, kek, &data);
    if (status != HS_OK)
        return status;
    status = open_random(data, aad, aad_size, sealed, size, key);
    if (status == HS_OK)
        status = hs_slot_take(arena, key, slot);
    hs_arena_leave(arena);
    OPENSSL_cleanse(key, sizeof key);
    return status;
}

hs_status hs_open_blob(hs_arena *arena, uint64_t kek, const uint8_t *aad, size_t aad_size,
                       const uint8_t *sealed, size_t size, uint64_t *blob)
{
    hs_slot_data *data;
    uint8_t *into;
    if (size < SEALED_OVERHEAD || size > SEALED_OVERHEAD + HS_BLOB_SIZE_MAX)
        return HS_INVALID;
    hs_status status = enter(arena, kek, &data);
    if (status != HS_OK)
        return status;
    status = hs_blob_take(arena, &into, blob);
    if (status == HS_OK) {
        status = open_random(data, aad, aad_size, sealed, size, into);
        hs_blob_end(arena, *blob, size - SEALED_OVERHEAD, status == HS_OK);
    }
    hs_arena_leave(arena);
    return status;
}

hs_status hs_slot_hmac_sha256(hs_arena *arena, uint64_t slot, const uint8_t *message, size_t size,
                              uint8_t *mac)
{
    hs_slot_data *data;
    hs_status status = enter(arena, slot, &data);
    if (status != HS_OK)
        return status;
    status = hs_hmac_sha256(data->key, HS_KEY_SIZE, message, size, mac);
    hs_arena_leave(arena);
    return status;
}
