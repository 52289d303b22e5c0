"""TLS 1.3 key updates, which Python's `ssl` cannot ask for but the OpenSSL below it can."""

import _ssl
import ctypes
import ssl

__all__ = ["update_keys"]

_openssl = ctypes.CDLL(_ssl.__file__)
_openssl.SSL_key_update.argtypes = [ctypes.c_void_p, ctypes.c_int]
_openssl.SSL_do_handshake.argtypes = [ctypes.c_void_p]

_POINTER_OFFSET = object.__basicsize__ + ctypes.sizeof(ctypes.c_void_p)
"""Of `SSL *` in CPython's object, behind the object's head and the weak reference to its owner."""


def update_keys(tls: ssl.SSLSocket | ssl.SSLObject, *, asks: bool = False) -> bool:
    """Send one KeyUpdate; whether it could be sent.

    Args:
        tls: After its handshake.
        asks: Ask the peer for an update of its own, which it then sends.
    """
    pointer = ctypes.c_void_p.from_address(id(tls._sslobj) + _POINTER_OFFSET)  # type: ignore[union-attr]
    assert _openssl.SSL_key_update(pointer, asks) == 1
    return bool(_openssl.SSL_do_handshake(pointer) == 1)
