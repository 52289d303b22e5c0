/* The C module's interface: key memory and AES-256-GCM for the gateway's hot path.
 *
 * Every function checks every length it is given. Results are `hs_status`; we allocate nothing on
 * the way from a request to its answer (OpenSSL allocates a cipher's state in each call). Inputs
 * and outputs never overlap, and nobody changes an input during a call. All integers in columns are
 * big-endian. */
#ifndef HSMUX_NATIVE_H
#define HSMUX_NATIVE_H

#include <stddef.h>
#include <stdint.h>

#define HS_KEY_SIZE 32u          /* bytes of an AES-256 key */
#define HS_TAG_SIZE 16u          /* bytes of a GCM tag */
#define HS_IV_SIZE 12u           /* bytes of a GCM IV */
#define HS_NONCE_SIZE 24u        /* bytes of an XAES-256-GCM nonce */
#define HS_ITEM_SIZE_MAX 65536u  /* bytes of one plaintext */
#define HS_AAD_SIZE_MAX 8192u    /* bytes of an item's associated data: a header and a context */
#define HS_ROW_AAD_SIZE_MAX (1u << 18) /* bytes of a store row's associated data */
#define HS_BATCH_ITEMS_MAX 16384u
#define HS_BLOB_SIZE_MAX 4096u   /* bytes of one private key as DER */
#define HS_HEADER_SIZE_MAX 64u
#define HS_EPOCH_MESSAGES_MAX (1u << 24) /* messages under one nonce prefix */
#define HS_EPOCH_AGE_MAX_S 3600u         /* seconds of one nonce prefix */

typedef enum {
    HS_OK = 0,
    HS_INVALID = 1,      /* does not open: tag, length, or header; never says which */
    HS_TOO_LARGE = 2,    /* a plaintext of more than HS_ITEM_SIZE_MAX bytes */
    HS_BAD_ARGUMENT = 3, /* a length or column that a correct caller does not pass */
    HS_BAD_SLOT = 4,     /* no key there: freed, never made, or zeroed memory */
    HS_FULL = 5,         /* no free slot */
    HS_NO_RANDOM = 6,    /* getrandom failed, or repeated itself */
    HS_NO_MEMORY = 7,    /* memory cannot be had, mapped or locked */
    HS_FORKED = 8,       /* used in a process that did not make it */
    HS_SELF_TEST = 9,    /* a known answer came out differently */
    HS_NOT_FOUND = 10    /* no such module, or it is no PKCS#11 module */
} hs_status;

typedef struct hs_arena hs_arena;

/* aead.c: the two implementations of AES-256-GCM behind one interface. `corrupt` is the name of a
 * known-answer test that is made to fail, or NULL. Not while another thread seals or opens. */
hs_status hs_select_backend(const char *wanted, const char *corrupt);
const char *hs_backend(void);
hs_status hs_gcm_seal(const uint8_t *key, const uint8_t *iv, const uint8_t *aad, size_t aad_size,
                      const uint8_t *plaintext, size_t size, uint8_t *output);
hs_status hs_gcm_open(const uint8_t *key, const uint8_t *iv, const uint8_t *aad, size_t aad_size,
                      const uint8_t *sealed, size_t size, uint8_t *output);

/* xaes.c: XAES-256-GCM with a given nonce, for vectors. */
hs_status hs_xaes_seal(const uint8_t *key, const uint8_t *nonce, const uint8_t *aad,
                       size_t aad_size, const uint8_t *plaintext, size_t size, uint8_t *output);
hs_status hs_xaes_open(const uint8_t *key, const uint8_t *nonce, const uint8_t *aad,
                       size_t aad_size, const uint8_t *sealed, size_t size, uint8_t *output);
hs_status hs_hmac_sha256(const uint8_t *key, size_t key_size, const uint8_t *message, size_t size,
                         uint8_t *mac);

/* pkcs11.c: AES-GCM over the function list of an initialised PKCS#11 module. */
#define HS_P11_NOT_STARTED 0xffffffff00000000ull /* an earlier item ended the column */
#define HS_P11_BAD_OUTPUT 0xffffffff00000001ull  /* the module gave an output that cannot be */
#define HS_P11_DEADLINE 0xffffffff00000002ull    /* the deadline passed before the item's turn */
#define HS_P11_COLUMN_SIZE_MAX (1u << 30)        /* bytes of a column of items */
typedef struct {
    int encrypting;
    int general_error_is_data; /* some modules answer a wrong tag with CKR_GENERAL_ERROR */
    uint64_t session;
    uint64_t key;
    const uint8_t *ivs; /* 12 bytes for each item when encrypting */
    size_t ivs_size;
    const uint8_t *aads; /* a column of one for all, or one for each item */
    size_t aads_size;
    const uint8_t *items; /* a column: plaintexts, or IV | ciphertext | tag */
    size_t items_size;
    const uint64_t *deadlines_ns; /* CLOCK_MONOTONIC; 0 is none; none, one for all, or one each */
    size_t deadlines_count;
    uint32_t *progress; /* or NULL; index + 1 of the item that is with the module, 0 at the end */
} hs_p11_batch;
hs_status hs_p11_open(const char *path, void **list);
uint64_t hs_p11_gcm_one(void *list, int encrypting, uint64_t session, uint64_t key,
                        const uint8_t *iv, const uint8_t *aad, size_t aad_size,
                        const uint8_t *input, size_t size, uint8_t *output, size_t *output_size);
hs_status hs_p11_gcm(void *list, const hs_p11_batch *batch, uint8_t *outputs, size_t *outputs_size,
                     uint64_t *codes);

/* selftest.c */
size_t hs_self_test_count(void);
const char *hs_self_test_name(size_t index);
hs_status hs_self_test(size_t index, int corrupt);
const char *hs_self_test_failed(void); /* the test that the last hs_select_backend failed, or "" */

/* arena.c: key memory. A slot is a number that names a place and how often it was used. */
int hs_secret_fd(size_t size, const char *kind);
hs_status hs_secret_protect(int fd, void *mapped, size_t size);
hs_status hs_arena_create(size_t size, const char *kind, hs_arena **arena);
void hs_arena_destroy(hs_arena *arena);
const char *hs_arena_kind(const hs_arena *arena);
size_t hs_arena_slots(const hs_arena *arena);
size_t hs_arena_slots_used(const hs_arena *arena);
size_t hs_arena_blobs_used(const hs_arena *arena);
hs_status hs_slot_generate(hs_arena *arena, uint64_t *slot);
hs_status hs_slot_load(hs_arena *arena, const uint8_t *material, uint64_t *slot);
hs_status hs_slot_store(hs_arena *arena, uint64_t slot, uint8_t *destination);
hs_status hs_slot_free(hs_arena *arena, uint64_t slot);
hs_status hs_slot_set_epoch(hs_arena *arena, uint64_t slot, uint32_t messages, uint64_t age_s);
hs_status hs_blob_view(hs_arena *arena, uint64_t blob, const uint8_t **data, size_t *size);
hs_status hs_blob_free(hs_arena *arena, uint64_t blob);

/* seal.c: what is done with keys in slots. */
hs_status hs_seal(hs_arena *arena, uint64_t slot, const uint8_t *header, size_t header_size,
                  const uint8_t *context, size_t context_size, const uint8_t *plaintext,
                  size_t size, uint8_t *envelope);
hs_status hs_open(hs_arena *arena, uint64_t slot, size_t header_size, const uint8_t *context,
                  size_t context_size, const uint8_t *envelope, size_t size, uint8_t *plaintext);
hs_status hs_seal_batch(hs_arena *arena, uint64_t slot, const uint8_t *header, size_t header_size,
                        const uint8_t *contexts, size_t contexts_size, const uint8_t *plaintexts,
                        size_t plaintexts_size, uint8_t *envelopes, size_t *envelopes_size,
                        uint8_t *statuses);
hs_status hs_open_batch(hs_arena *arena, uint64_t slot, const uint8_t *header, size_t header_size,
                        const uint8_t *contexts, size_t contexts_size, const uint8_t *envelopes,
                        size_t envelopes_size, uint8_t *plaintexts, size_t *plaintexts_size,
                        uint8_t *statuses);
hs_status hs_seal_bytes(hs_arena *arena, uint64_t kek, const uint8_t *aad, size_t aad_size,
                        const uint8_t *plaintext, size_t size, uint8_t *sealed);
hs_status hs_open_bytes(hs_arena *arena, uint64_t kek, const uint8_t *aad, size_t aad_size,
                        const uint8_t *sealed, size_t size, uint8_t *plaintext);
hs_status hs_seal_slot(hs_arena *arena, uint64_t kek, const uint8_t *aad, size_t aad_size,
                       uint64_t slot, uint8_t *sealed);
hs_status hs_open_slot(hs_arena *arena, uint64_t kek, const uint8_t *aad, size_t aad_size,
                       const uint8_t *sealed, size_t size, uint64_t *slot);
hs_status hs_open_blob(hs_arena *arena, uint64_t kek, const uint8_t *aad, size_t aad_size,
                       const uint8_t *sealed, size_t size, uint64_t *blob);
hs_status hs_slot_hmac_sha256(hs_arena *arena, uint64_t slot, const uint8_t *message, size_t size,
                              uint8_t *mac);

#endif
