"""The thin client of the hsmux gateway.

    from hsmux import Client

    with Client.connect() as client:
        sealed = client.encrypt("alias/first", b"hello")
        assert client.decrypt(sealed.ciphertext).plaintext == b"hello"

`Client` blocks and is thread-safe; `TrioClient` has the same methods to await and needs
`pip install hsmux[trio]`. Importing this package loads neither Trio nor anything of the gateway.
"""

from typing import TYPE_CHECKING, Any

from hsmux_protocol import __version__
from hsmux_protocol.errors import (
    ApprovalsMissing,
    Busy,
    Cancelled,
    ChecksumMismatch,
    Conflict,
    DeadlineExceeded,
    Denied,
    HsmuxError,
    InternalError,
    InvalidArgument,
    InvalidCiphertext,
    InvalidMac,
    InvalidSignature,
    NotFound,
    OutcomeUnknown,
    ProtocolError,
    TooLarge,
    Unauthenticated,
    Unavailable,
    Unsupported,
    WrongState,
)

from .client import Client
from .results import (
    AccessPoint,
    ClientKey,
    Decrypted,
    Encrypted,
    Explanation,
    IssuedClientKey,
    Key,
    NetworkRule,
    PendingRequest,
    Policy,
    PolicyDecision,
    PublicKey,
    Quorum,
    Signature,
    Status,
    TokenStatus,
)

if TYPE_CHECKING:
    from .trio_client import TrioClient

__all__ = [
    "AccessPoint",
    "ApprovalsMissing",
    "Busy",
    "Cancelled",
    "ChecksumMismatch",
    "Client",
    "ClientKey",
    "Conflict",
    "DeadlineExceeded",
    "Decrypted",
    "Denied",
    "Encrypted",
    "Explanation",
    "HsmuxError",
    "InternalError",
    "InvalidArgument",
    "InvalidCiphertext",
    "InvalidMac",
    "InvalidSignature",
    "IssuedClientKey",
    "Key",
    "NetworkRule",
    "NotFound",
    "OutcomeUnknown",
    "PendingRequest",
    "Policy",
    "PolicyDecision",
    "ProtocolError",
    "PublicKey",
    "Quorum",
    "Signature",
    "Status",
    "TokenStatus",
    "TooLarge",
    "TrioClient",
    "Unauthenticated",
    "Unavailable",
    "Unsupported",
    "WrongState",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """`TrioClient`, when it is asked for: it loads Trio."""
    if name != "TrioClient":
        raise AttributeError(f"module 'hsmux' has no attribute {name!r}")
    try:
        from .trio_client import TrioClient
    except ModuleNotFoundError as error:
        if error.name != "trio":
            raise
        raise ImportError("TrioClient needs Trio: pip install 'hsmux[trio]'") from None
    return TrioClient
