"""Token objects of key versions, and the one place where a token's errors become a caller's.

PKCS#11 return codes and texts never come this far: the `hsm` package raises its own few types, and
`presented` turns each into what the caller may know. The rest stands in the log.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

from hsmux_protocol import errors

from ..hsm.errors import (
    InvalidInput,
    KeyMissing,
    KeyQuarantined,
    TokenBusy,
    TokenDeadlineExceeded,
    TokenError,
    TokenOutcomeUnknown,
    Unsupported,
)
from ..hsm.token import HsmKey, Token
from ..logs import structlog
from ..store.rows import GatewayKeyRow, KeyVersionRow
from .material import Materials

__all__ = ["HsmKeys", "gateway_hsm_key", "presented"]

log = structlog.get_logger("hsmux.keys")

T = TypeVar("T")

RETRY_AFTER_MS: Final = 500
"""What a caller is told to wait while a token is away."""


def presented(error: TokenError) -> errors.HsmuxError:
    """What a caller sees of an error of a token."""
    if isinstance(error, TokenBusy):
        return errors.Busy("the token has too much work", retry_after_ms=error.retry_after_ms)
    if isinstance(error, TokenDeadlineExceeded):
        return errors.DeadlineExceeded("the time for this request ran out")
    if isinstance(error, TokenOutcomeUnknown):
        return errors.OutcomeUnknown("the token was lost in the middle of the change")
    if isinstance(error, Unsupported):
        return errors.Unsupported("the token does not offer this; see `hsmux hsm probe`")
    if isinstance(error, InvalidInput):
        return errors.InvalidArgument("the token refuses this input")
    if isinstance(error, KeyMissing | KeyQuarantined):
        log.error("a key is not usable in its token", error=str(error))
        return errors.Unavailable("the key cannot be used in its token; ask the operator")
    return errors.Unavailable("the token is away", retry_after_ms=RETRY_AFTER_MS)


class HsmKeys:
    """Finds token objects and calls their tokens.

    Args:
        tokens: By configured name.
        materials: Opens the proofs of token objects.
    """

    def __init__(self, tokens: Mapping[str, Token], materials: Materials) -> None:
        self.tokens = tokens
        self._materials = materials
        self._found: dict[tuple[bytes, int], HsmKey] = {}

    def token(self, name: str) -> Token:
        """A token by name.

        Raises:
            Unavailable: It is not configured here.
        """
        token = self.tokens.get(name)
        if token is None:
            raise errors.Unavailable(f"token {name} is not configured at this gateway")
        return token

    def find(self, spec: str, version: KeyVersionRow) -> tuple[Token, HsmKey]:
        """The token of a version, and the version as that token knows it.

        Raises:
            Unavailable: The token is not configured here.
        """
        name = (version.key_id, version.version)
        found = self._found.get(name)
        if found is None:
            proof = self._materials.open_proof(version) if version.proof else b""
            found = HsmKey(version.cka_id, spec, proof, version.public_key)
            self._found[name] = found
        return self.token(version.token), found

    def drop(self, key_id: bytes) -> None:
        """Forget what was found of a key, because it changed."""
        for name in [name for name in self._found if name[0] == key_id]:
            del self._found[name]

    async def forget(self, spec: str, version: KeyVersionRow, *, deadline: float) -> None:
        """Have every worker of its token forget a version that was disabled or destroyed.

        On return no worker does anything with it any more but after a new lookup.

        Raises:
            HsmuxError: See `presented`.
        """
        token, found = self.find(spec, version)
        self._found.pop((version.key_id, version.version), None)
        await self.ask(lambda: token.drop_key(found, deadline=deadline))

    async def ask(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call a token; its errors become a caller's.

        Raises:
            HsmuxError: See `presented`.
        """
        try:
            return await call()
        except TokenError as error:
            raise presented(error) from error


def gateway_hsm_key(row: GatewayKeyRow) -> HsmKey:
    """A key of the gateway's own as its token knows it."""
    return HsmKey(row.cka_id, row.spec, row.proof, row.public_key, row.name)
