"""What the compiled module offers: `native/src/native.cdef`, in the types of Python.

A pointer is a value of cffi, or `bytes` where C only reads; cffi checks both and every integer's
range. `ffi` stays untyped: what it makes has the members of whichever C type a text names.
"""

from typing import Any, Final, TypeAlias

_Pointer: TypeAlias = Any

class _Lib:
    HS_P11_COLUMN_SIZE_MAX: Final[int]
    HS_P11_NOT_STARTED: Final[int]
    HS_P11_BAD_OUTPUT: Final[int]
    HS_P11_DEADLINE: Final[int]
    HS_ROW_AAD_SIZE_MAX: Final[int]
    HS_KEY_SIZE: Final[int]
    HS_TAG_SIZE: Final[int]
    HS_IV_SIZE: Final[int]
    HS_NONCE_SIZE: Final[int]
    HS_ITEM_SIZE_MAX: Final[int]
    HS_AAD_SIZE_MAX: Final[int]
    HS_BATCH_ITEMS_MAX: Final[int]
    HS_BLOB_SIZE_MAX: Final[int]
    HS_HEADER_SIZE_MAX: Final[int]
    HS_EPOCH_MESSAGES_MAX: Final[int]
    HS_EPOCH_AGE_MAX_S: Final[int]
    HS_OK: Final[int]
    HS_INVALID: Final[int]
    HS_TOO_LARGE: Final[int]
    HS_BAD_ARGUMENT: Final[int]
    HS_BAD_SLOT: Final[int]
    HS_FULL: Final[int]
    HS_NO_RANDOM: Final[int]
    HS_NO_MEMORY: Final[int]
    HS_FORKED: Final[int]
    HS_SELF_TEST: Final[int]
    HS_NOT_FOUND: Final[int]
    def hs_select_backend(self, wanted: _Pointer, corrupt: _Pointer, /) -> int: ...
    def hs_backend(self) -> _Pointer: ...
    def hs_gcm_seal(
        self,
        key: _Pointer,
        iv: _Pointer,
        aad: _Pointer,
        aad_size: int,
        plaintext: _Pointer,
        size: int,
        output: _Pointer,
        /,
    ) -> int: ...
    def hs_gcm_open(
        self,
        key: _Pointer,
        iv: _Pointer,
        aad: _Pointer,
        aad_size: int,
        sealed: _Pointer,
        size: int,
        output: _Pointer,
        /,
    ) -> int: ...
    def hs_xaes_seal(
        self,
        key: _Pointer,
        nonce: _Pointer,
        aad: _Pointer,
        aad_size: int,
        plaintext: _Pointer,
        size: int,
        output: _Pointer,
        /,
    ) -> int: ...
    def hs_xaes_open(
        self,
        key: _Pointer,
        nonce: _Pointer,
        aad: _Pointer,
        aad_size: int,
        sealed: _Pointer,
        size: int,
        output: _Pointer,
        /,
    ) -> int: ...
    def hs_hmac_sha256(
        self,
        key: _Pointer,
        key_size: int,
        message: _Pointer,
        size: int,
        mac: _Pointer,
        /,
    ) -> int: ...
    def hs_self_test_count(self) -> int: ...
    def hs_self_test_name(self, index: int, /) -> _Pointer: ...
    def hs_self_test(self, index: int, corrupt: int, /) -> int: ...
    def hs_self_test_failed(self) -> _Pointer: ...
    def hs_arena_create(self, size: int, kind: _Pointer, arena: _Pointer, /) -> int: ...
    def hs_arena_destroy(self, arena: _Pointer, /) -> None: ...
    def hs_arena_kind(self, arena: _Pointer, /) -> _Pointer: ...
    def hs_arena_slots(self, arena: _Pointer, /) -> int: ...
    def hs_arena_slots_used(self, arena: _Pointer, /) -> int: ...
    def hs_arena_blobs_used(self, arena: _Pointer, /) -> int: ...
    def hs_slot_generate(self, arena: _Pointer, slot: _Pointer, /) -> int: ...
    def hs_slot_load(self, arena: _Pointer, material: _Pointer, slot: _Pointer, /) -> int: ...
    def hs_slot_store(self, arena: _Pointer, slot: int, destination: _Pointer, /) -> int: ...
    def hs_slot_free(self, arena: _Pointer, slot: int, /) -> int: ...
    def hs_slot_set_epoch(
        self,
        arena: _Pointer,
        slot: int,
        messages: int,
        age_s: int,
        /,
    ) -> int: ...
    def hs_blob_view(
        self,
        arena: _Pointer,
        blob: int,
        data: _Pointer,
        size: _Pointer,
        /,
    ) -> int: ...
    def hs_blob_free(self, arena: _Pointer, blob: int, /) -> int: ...
    def hs_seal(
        self,
        arena: _Pointer,
        slot: int,
        header: _Pointer,
        header_size: int,
        context: _Pointer,
        context_size: int,
        plaintext: _Pointer,
        size: int,
        envelope: _Pointer,
        /,
    ) -> int: ...
    def hs_open(
        self,
        arena: _Pointer,
        slot: int,
        header_size: int,
        context: _Pointer,
        context_size: int,
        envelope: _Pointer,
        size: int,
        plaintext: _Pointer,
        /,
    ) -> int: ...
    def hs_seal_batch(
        self,
        arena: _Pointer,
        slot: int,
        header: _Pointer,
        header_size: int,
        contexts: _Pointer,
        contexts_size: int,
        plaintexts: _Pointer,
        plaintexts_size: int,
        envelopes: _Pointer,
        envelopes_size: _Pointer,
        statuses: _Pointer,
        /,
    ) -> int: ...
    def hs_open_batch(
        self,
        arena: _Pointer,
        slot: int,
        header: _Pointer,
        header_size: int,
        contexts: _Pointer,
        contexts_size: int,
        envelopes: _Pointer,
        envelopes_size: int,
        plaintexts: _Pointer,
        plaintexts_size: _Pointer,
        statuses: _Pointer,
        /,
    ) -> int: ...
    def hs_seal_bytes(
        self,
        arena: _Pointer,
        kek: int,
        aad: _Pointer,
        aad_size: int,
        plaintext: _Pointer,
        size: int,
        sealed: _Pointer,
        /,
    ) -> int: ...
    def hs_open_bytes(
        self,
        arena: _Pointer,
        kek: int,
        aad: _Pointer,
        aad_size: int,
        sealed: _Pointer,
        size: int,
        plaintext: _Pointer,
        /,
    ) -> int: ...
    def hs_seal_slot(
        self,
        arena: _Pointer,
        kek: int,
        aad: _Pointer,
        aad_size: int,
        slot: int,
        sealed: _Pointer,
        /,
    ) -> int: ...
    def hs_open_slot(
        self,
        arena: _Pointer,
        kek: int,
        aad: _Pointer,
        aad_size: int,
        sealed: _Pointer,
        size: int,
        slot: _Pointer,
        /,
    ) -> int: ...
    def hs_open_blob(
        self,
        arena: _Pointer,
        kek: int,
        aad: _Pointer,
        aad_size: int,
        sealed: _Pointer,
        size: int,
        blob: _Pointer,
        /,
    ) -> int: ...
    def hs_slot_hmac_sha256(
        self,
        arena: _Pointer,
        slot: int,
        message: _Pointer,
        size: int,
        mac: _Pointer,
        /,
    ) -> int: ...
    def hs_secret_fd(self, size: int, kind: _Pointer, /) -> int: ...
    def hs_secret_protect(self, fd: int, mapped: _Pointer, size: int, /) -> int: ...
    def hs_p11_open(self, path: _Pointer, list: _Pointer, /) -> int: ...
    def hs_p11_gcm_one(
        self,
        list: _Pointer,
        encrypting: int,
        session: int,
        key: int,
        iv: _Pointer,
        aad: _Pointer,
        aad_size: int,
        input: _Pointer,
        size: int,
        output: _Pointer,
        output_size: _Pointer,
        /,
    ) -> int: ...
    def hs_p11_gcm(
        self,
        list: _Pointer,
        batch: _Pointer,
        outputs: _Pointer,
        outputs_size: _Pointer,
        codes: _Pointer,
        /,
    ) -> int: ...

ffi: Any
lib: _Lib
