"""What a module really does: one small trial for each question, with keys of the session alone.

Mechanism lists lie, and the standard leaves much open. Each trial runs in a worker, in a session of
its own that is closed afterwards, so its keys are gone; the one trial that makes a token object
destroys it again. A trial answers in a few words; a module that hangs or crashes in one costs the
worker and shows as that. `QUIRKS` is what there is to ask.

No answer contains key material or a raw block encryption: check values are only compared here.
"""

import ctypes
import secrets
from collections.abc import Callable
from typing import Any, Final

import pkcs11
from cryptography.hazmat.primitives import keywrap
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from pkcs11 import MGF, Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass
from pkcs11.util.ec import encode_named_curve_parameters

from .application import Application
from .codes import UNKNOWN_CODE, code_of, name_of
from .function_list import FunctionList, GcmParameters, MechanismRecord, plain_mechanism

__all__ = ["QUIRKS", "SESSIONS_TRIED", "Refused", "Trial", "try_quirk"]

CKM_AES_GCM: Final = 0x1087
CKM_RSA_AES_KEY_WRAP: Final = 0x1054
CKR_MECHANISM_INVALID: Final = 0x70

SESSIONS_TRIED: Final = 64
"""Sessions that are opened to find a limit, at most."""

OBJECTS_TRIED: Final = 128
"""Session objects that are made to find a limit, at most."""

_TEXT: Final = b"sixteen bytes ok"
_TAG_SIZE: Final = 16
_SESSION_KEY: Final = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False}
_CRYPT: Final = MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT


class Trial:
    """A session to try things in.

    Args:
        functions: The module's.
        session: Of python-pkcs11.
    """

    def __init__(self, functions: FunctionList, session: Any) -> None:
        self.functions = functions
        self.session = session
        self.handle = ctypes.c_ulong(session.handle)

    def key(self, flags: MechanismFlag = _CRYPT, *, extractable: bool = False) -> Any:
        """A new AES-256 session key."""
        template = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: extractable}
        return self.session.generate_key(
            KeyType.AES, 256, store=False, capabilities=flags, template=template
        )

    def known_key(self, value: bytes, flags: dict[Attribute, bool]) -> Any:
        """A session key whose value is known here."""
        return self.session.create_object(
            {
                Attribute.CLASS: ObjectClass.SECRET_KEY,
                Attribute.KEY_TYPE: KeyType.AES,
                Attribute.VALUE: value,
                Attribute.TOKEN: False,
                **flags,
            }
        )

    def begin_gcm(
        self, key: Any, iv: bytes, tag_bits: int = 128, *, encrypting: bool = True
    ) -> tuple[int, bytes]:
        """C_EncryptInit or C_DecryptInit; the code, and the IV as the module left it."""
        buffer = ctypes.create_string_buffer(iv, len(iv)) if iv else None
        pointer = ctypes.cast(buffer, ctypes.c_char_p) if buffer is not None else None
        parameters = GcmParameters(pointer, len(iv), 8 * len(iv), None, 0, tag_bits)
        mechanism = MechanismRecord(
            CKM_AES_GCM, ctypes.addressof(parameters), ctypes.sizeof(parameters)
        )
        name = "C_EncryptInit" if encrypting else "C_DecryptInit"
        code = self.functions.call(
            name, self.handle, ctypes.pointer(mechanism), ctypes.c_ulong(key.handle)
        )
        return code, buffer.raw if buffer is not None else b""

    def crypt(
        self, data: bytes, room: int | None, *, encrypting: bool = True
    ) -> tuple[int, int, bytes]:
        """C_Encrypt or C_Decrypt; the code, the length it tells, and the output."""
        output = ctypes.create_string_buffer(max(room or 0, 1)) if room is not None else None
        length = ctypes.c_ulong(room or 0)
        code = self.functions.call(
            "C_Encrypt" if encrypting else "C_Decrypt",
            self.handle,
            ctypes.c_char_p(data),
            ctypes.c_ulong(len(data)),
            ctypes.cast(output, ctypes.c_char_p) if output is not None else None,
            ctypes.pointer(length),
        )
        is_there = code == 0 and output is not None
        return code, length.value, output.raw[: length.value] if is_there and output else b""

    def wrap(self, wrapping: Any, key: Any, mechanism: MechanismRecord) -> bytes:
        """A wrapped key.

        Raises:
            Refused: The module does not wrap.
        """
        code, wrapped = self.functions.wrap_key(
            self.handle.value, wrapping.handle, key.handle, mechanism
        )
        _must(code)
        return wrapped

    def sealed(self, key: Any, data: bytes = _TEXT, iv: bytes = b"i" * 12) -> bytes:
        """A ciphertext and its tag.

        Raises:
            Refused: The module does not encrypt.
        """
        _must(self.begin_gcm(key, iv)[0])
        code, _, output = self.crypt(data, len(data) + _TAG_SIZE)
        _must(code)
        return output


class Refused(Exception):
    """The module answered a code where the trial needs success.

    Attributes:
        code: Which.
    """

    def __init__(self, code: int) -> None:
        super().__init__(name_of(code))
        self.code = code


def _must(code: int) -> None:
    if code:
        raise Refused(code)


def _answer_to(code: int) -> str:
    return "accepted (!)" if code == 0 else name_of(code)


# AES-GCM


def _gcm_iv(trial: Trial) -> str:
    """Whose IV it is: some tokens refuse a caller's, and write their own where zeros were."""
    iv = secrets.token_bytes(12)
    code, left = trial.begin_gcm(trial.key(), iv)
    if code == 0:
        return "the caller's" if left == iv else "the token's, written over the caller's"
    refused = name_of(code)
    code, left = trial.begin_gcm(trial.key(), bytes(12))
    if code == 0 and left != bytes(12):
        return "the token's, written where zeros were"
    return f"the caller's: {refused}, zeros: {_answer_to(code)}"


def _gcm_length_query(trial: Trial) -> str:
    """What C_Encrypt answers to a null output."""
    _must(trial.begin_gcm(trial.key(), b"i" * 12)[0])
    code, length, _ = trial.crypt(_TEXT, None)
    _must(code)
    off = length - len(_TEXT) - _TAG_SIZE
    return "right" if off == 0 else f"{abs(off)} too {'many' if off > 0 else 'few'}"


def _gcm_small_buffer(trial: Trial) -> str:
    """Whether an output buffer that is too small ends the operation."""
    _must(trial.begin_gcm(trial.key(), b"i" * 12)[0])
    refused, _, _ = trial.crypt(_TEXT, 4)
    code, _, _ = trial.crypt(_TEXT, len(_TEXT) + _TAG_SIZE)
    goes_on = "the operation goes on" if code == 0 else "the operation ends"
    return f"{_answer_to(refused)}, {goes_on}"


def _gcm_bad_tag(trial: Trial) -> str:
    """The code for a tag that is wrong."""
    key = trial.key()
    sealed = trial.sealed(key)
    _must(trial.begin_gcm(key, b"i" * 12, encrypting=False)[0])
    changed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    return _answer_to(trial.crypt(changed, len(changed), encrypting=False)[0])


def _gcm_short_input(trial: Trial) -> str:
    """The code for an input shorter than a tag."""
    _must(trial.begin_gcm(trial.key(), b"i" * 12, encrypting=False)[0])
    return _answer_to(trial.crypt(bytes(8), 64, encrypting=False)[0])


def _gcm_after_error(trial: Trial) -> str:
    """Whether the session goes on after a tag that was wrong."""
    key = trial.key()
    sealed = trial.sealed(key)
    _must(trial.begin_gcm(key, b"i" * 12, encrypting=False)[0])
    trial.crypt(bytes(len(sealed)), len(sealed), encrypting=False)
    code = trial.begin_gcm(key, b"i" * 12, encrypting=False)[0]
    return "goes on" if code == 0 else name_of(code)


def _gcm_empty_iv(trial: Trial) -> str:
    """Whether an empty IV is taken."""
    code, _ = trial.begin_gcm(trial.key(), b"")
    return _answer_to(code or trial.crypt(_TEXT, len(_TEXT) + _TAG_SIZE)[0])


def _gcm_short_tag(bits: int) -> Callable[[Trial], str]:
    def try_it(trial: Trial) -> str:
        code, _ = trial.begin_gcm(trial.key(), b"i" * 12, bits)
        return _answer_to(code or trial.crypt(_TEXT, len(_TEXT) + _TAG_SIZE)[0])

    return try_it


def _gcm_large(size: int) -> Callable[[Trial], str]:
    def try_it(trial: Trial) -> str:
        key, text = trial.key(), bytes(size)
        sealed = trial.sealed(key, text)
        _must(trial.begin_gcm(key, b"i" * 12, encrypting=False)[0])
        code, _, opened = trial.crypt(sealed, len(sealed), encrypting=False)
        _must(code)
        return "ok" if opened == text else "another plaintext came back (!)"

    return try_it


def _gcm_parts(trial: Trial) -> str:
    """Whether a text can be encrypted in parts."""
    key = trial.key()
    try:
        pieces = key.encrypt(
            [_TEXT, _TEXT],
            mechanism=Mechanism.AES_GCM,
            mechanism_param=pkcs11.GCMParams(b"i" * 12),
        )
        is_same = b"".join(pieces) == trial.sealed(key, _TEXT + _TEXT)
    except pkcs11.exceptions.PKCS11Error as error:
        return f"no: {name_of(code_of(error))}"
    return "ok" if is_same else "no: another ciphertext"


# Keys


def _check_value(trial: Trial) -> str:
    """Whether a symmetric key shows the check value the standard defines."""
    value = secrets.token_bytes(32)
    key = trial.known_key(value, {Attribute.ENCRYPT: True})
    # ECB of a zero block with a key thrown away here: the standard's definition, never kept.
    block = Cipher(algorithms.AES(value), modes.ECB()).encryptor().update(bytes(16))
    try:
        shown = bytes(key[Attribute.CHECK_VALUE])
    except pkcs11.exceptions.PKCS11Error:
        shown = b""
    return {block[:3]: "right", b"": "none"}.get(shown, "wrong (!)")


_EDWARDS25519: Final = b"\x13\x0cedwards25519"
"""PKCS#11 v3.0 section 2.3.10: a curveName, as PrintableString."""


def _curve(parameters: bytes, key_type: KeyType) -> Callable[[Trial], str]:
    def try_it(trial: Trial) -> str:
        domain = trial.session.create_domain_parameters(
            key_type, {Attribute.EC_PARAMS: parameters}, local=True
        )
        flags = MechanismFlag.SIGN | MechanismFlag.VERIFY
        public, private = domain.generate_keypair(capabilities=flags, store=False)
        is_edwards = key_type is KeyType.EC_EDWARDS
        mechanism = Mechanism.EDDSA if is_edwards else Mechanism.ECDSA
        signature = private.sign(bytes(32), mechanism=mechanism)
        is_valid = public.verify(bytes(32), signature, mechanism=mechanism)
        return "ok" if is_valid else "no: the signature does not verify (!)"

    return try_it


def _oaep(hash_name: str) -> Callable[[Trial], str]:
    def try_it(trial: Trial) -> str:
        public, private = trial.session.generate_keypair(
            KeyType.RSA, 2048, store=False, capabilities=_CRYPT
        )
        chosen = (getattr(Mechanism, hash_name), getattr(MGF, hash_name.replace("_", "")), None)
        options = {"mechanism": Mechanism.RSA_PKCS_OAEP, "mechanism_param": chosen}
        opened = private.decrypt(public.encrypt(_TEXT, **options), **options)
        return "ok" if opened == _TEXT else "another plaintext came back (!)"

    return try_it


# Wrapping


def _pkcs7(data: bytes) -> bytes:
    count = 8 - len(data) % 8
    return data + bytes([count]) * count


_FORMATS: Final[dict[str, Callable[[bytes, bytes], bytes]]] = {
    "RFC 5649": keywrap.aes_key_wrap_with_padding,
    "RFC 3394": keywrap.aes_key_wrap,
    "RFC 3394 over PKCS#7 padding": lambda kek, key: keywrap.aes_key_wrap(kek, _pkcs7(key)),
}


def _wrap_format(mechanism: Mechanism) -> Callable[[Trial], str]:
    """In which format a mechanism wraps, told by keys that are known here."""

    def try_it(trial: Trial) -> str:
        kek, value = secrets.token_bytes(32), secrets.token_bytes(32)
        wrapping = trial.known_key(kek, {Attribute.WRAP: True, Attribute.UNWRAP: True})
        key = trial.known_key(value, {Attribute.EXTRACTABLE: True, Attribute.ENCRYPT: True})
        wrapped = trial.wrap(wrapping, key, plain_mechanism(mechanism))
        for name, wrap in _FORMATS.items():
            if wrapped == wrap(kek, value):
                return name
        return f"another format, {len(wrapped)} bytes of {len(value)}"

    return try_it


def _unwrap_as_non_extractable(mechanism: Mechanism) -> Callable[[Trial], str]:
    """Whether a key can live as `storage="wrapped"` wants: wrapped once, then only unwrapped."""

    def try_it(trial: Trial) -> str:
        wrapping = trial.key(MechanismFlag.WRAP | MechanismFlag.UNWRAP)
        key = trial.key(extractable=True)
        sealed = trial.sealed(key)
        wrapped = trial.wrap(wrapping, key, plain_mechanism(mechanism))
        key.destroy()
        unwrapped = wrapping.unwrap_key(
            ObjectClass.SECRET_KEY,
            KeyType.AES,
            wrapped,
            mechanism=mechanism,
            store=False,
            capabilities=_CRYPT,
            template=dict(_SESSION_KEY),
        )
        if any(unwrapped[name] != value for name, value in _SESSION_KEY.items()):
            return "no: the unwrapped key can leave the token (!)"
        _must(trial.begin_gcm(unwrapped, b"i" * 12, encrypting=False)[0])
        code, _, opened = trial.crypt(sealed, len(sealed), encrypting=False)
        _must(code)
        return "ok" if opened == _TEXT else "no: another key came back (!)"

    return try_it


def _wrap_non_extractable(trial: Trial) -> str:
    """Whether a key that must not leave the token is wrapped all the same."""
    wrapping = trial.key(MechanismFlag.WRAP | MechanismFlag.UNWRAP)
    answer = "no wrapping mechanism works"
    for mechanism in _WRAPS:
        try:
            trial.wrap(wrapping, trial.key(), plain_mechanism(mechanism))
            return "wraps it (!)"
        except Refused as error:
            if error.code != CKR_MECHANISM_INVALID:
                answer = f"refused: {error}"
    return answer


class _OaepParameters(ctypes.Structure):
    """CK_RSA_PKCS_OAEP_PARAMS."""

    _fields_ = (
        ("hashAlg", ctypes.c_ulong),
        ("mgf", ctypes.c_ulong),
        ("source", ctypes.c_ulong),
        ("pSourceData", ctypes.c_void_p),
        ("ulSourceDataLen", ctypes.c_ulong),
    )


class _RsaAesParameters(ctypes.Structure):
    """CK_RSA_AES_KEY_WRAP_PARAMS."""

    _fields_ = (("ulAESKeyBits", ctypes.c_ulong), ("pOAEPParams", ctypes.c_void_p))


def _rsa_aes_key_wrap(trial: Trial) -> str:
    """Whether an RSA key wraps a key of any size, the format of imports."""
    public, _ = trial.session.generate_keypair(
        KeyType.RSA, 2048, store=False, capabilities=MechanismFlag.WRAP | MechanismFlag.UNWRAP
    )
    key = trial.key(extractable=True)
    oaep = _OaepParameters(int(Mechanism.SHA256), int(MGF.SHA256), 1, None, 0)
    parameters = _RsaAesParameters(256, ctypes.addressof(oaep))
    mechanism = MechanismRecord(
        CKM_RSA_AES_KEY_WRAP, ctypes.addressof(parameters), ctypes.sizeof(parameters)
    )
    trial.wrap(public, key, mechanism)
    return "ok"


# Limits


def _sessions(trial: Trial) -> str:
    """How many sessions one process can open."""
    opened: list[Any] = []
    try:
        while len(opened) < SESSIONS_TRIED:
            opened.append(trial.session.token.open(rw=True))
    except pkcs11.exceptions.PKCS11Error as error:
        return f"{len(opened)} more than a worker has, then {name_of(code_of(error))}"
    finally:
        for session in opened:
            session.close()
    return f"{SESSIONS_TRIED} or more"


def _session_objects(trial: Trial) -> str:
    """How many session objects one process can make."""
    for count in range(OBJECTS_TRIED):
        try:
            trial.key()
        except pkcs11.exceptions.PKCS11Error as error:
            return f"{count}, then {name_of(code_of(error))}"
    return f"{OBJECTS_TRIED} or more"


def _data_objects(trial: Trial) -> str:
    """Whether data objects can be kept in the token; destroyed again."""
    value = secrets.token_bytes(300)
    made = trial.session.create_object(
        {
            Attribute.CLASS: ObjectClass.DATA,
            Attribute.TOKEN: True,
            Attribute.PRIVATE: True,
            Attribute.LABEL: "hsmux probe",
            Attribute.VALUE: value,
        }
    )
    try:
        return "ok" if bytes(made[Attribute.VALUE]) == value else "no: another value (!)"
    finally:
        made.destroy()


def _random(size: int) -> Callable[[Trial], str]:
    def try_it(trial: Trial) -> str:
        buffer = ctypes.create_string_buffer(max(size, 1))
        code = trial.functions.call(
            "C_GenerateRandom",
            trial.handle,
            ctypes.cast(buffer, ctypes.c_char_p),
            ctypes.c_ulong(size),
        )
        return "ok" if code == 0 else f"no: {name_of(code)}"

    return try_it


_WRAPS: Final = (
    Mechanism.AES_KEY_WRAP,
    Mechanism.AES_KEY_WRAP_PAD,
    Mechanism.AES_KEY_WRAP_KWP,
    Mechanism.AES_KEY_WRAP_PKCS7,
)

QUIRKS: Final[dict[str, Callable[[Trial], str]]] = {
    "gcm_iv": _gcm_iv,
    "gcm_length_query": _gcm_length_query,
    "gcm_small_buffer": _gcm_small_buffer,
    "gcm_bad_tag": _gcm_bad_tag,
    "gcm_short_input": _gcm_short_input,
    "gcm_after_error": _gcm_after_error,
    "gcm_empty_iv": _gcm_empty_iv,
    "gcm_tag_0_bits": _gcm_short_tag(0),
    "gcm_tag_32_bits": _gcm_short_tag(32),
    "gcm_parts": _gcm_parts,
    "gcm_1_mib": _gcm_large(1 << 20),
    "check_value": _check_value,
    "curve:P-521": _curve(encode_named_curve_parameters("secp521r1"), KeyType.EC),
    "curve:secp256k1": _curve(encode_named_curve_parameters("secp256k1"), KeyType.EC),
    "curve:Ed25519": _curve(_EDWARDS25519, KeyType.EC_EDWARDS),
    **{f"oaep:{name}": _oaep(name) for name in ("SHA_1", "SHA256", "SHA384", "SHA512")},
    **{f"wrap:{wrap.name}": _wrap_format(wrap) for wrap in _WRAPS},
    **{f"wrap_then_unwrap:{wrap.name}": _unwrap_as_non_extractable(wrap) for wrap in _WRAPS},
    "wrap:RSA_AES_KEY_WRAP": _rsa_aes_key_wrap,
    "wrap_non_extractable": _wrap_non_extractable,
    "sessions": _sessions,
    "session_objects": _session_objects,
    "data_objects": _data_objects,
    "random_0_bytes": _random(0),
    "random_128_kib": _random(1 << 17),
}
"""The trials by name."""


def try_quirk(application: Application, name: str) -> str:
    """Try one thing in a session of its own; what came of it, in a few words."""
    try:
        session = application.token.open(rw=True)
    except pkcs11.exceptions.PKCS11Error as error:
        return f"not tried: {name_of(code_of(error))}"
    try:
        return QUIRKS[name](Trial(application.functions, session))
    except Refused as error:
        return f"no: {error}"
    except pkcs11.exceptions.PKCS11Error as error:
        code = code_of(error)
        return f"no: {type(error).__name__ if code == UNKNOWN_CODE else name_of(code)}"
    finally:
        session.close()
