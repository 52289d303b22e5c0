"""What a crash left in the tokens: half-made objects are undone, unknown ones are told.

An intent row names an object before it is made (see `lifecycle_service`). One whose lease has ended
belongs to nobody: it is taken over first, which its maker notices, should it still be there; then
the object, which nobody can have used, is destroyed; then the intent ends. Several gateways may do
that at once: only one takes over.

Objects that no intent, key or root names are counted for the operator and never touched: somebody
else may own them.
"""

import time
from functools import partial
from typing import Final

from ..catalog import Catalog
from ..clock import now_ms
from ..effects import Effects
from ..hsm.errors import KeyMissing, KeyQuarantined, TokenError
from ..hsm.token import HsmKey, Token
from ..logs import structlog
from ..store.rows import GatewayKeyRow, IntentRow, RootRow
from ..store.transaction import Reader, Transaction
from .hsm_keys import HsmKeys, gateway_hsm_key
from .lifecycle_service import INTENT_LEASE_MS

__all__ = ["Reconciliation"]

log = structlog.get_logger("hsmux.keys")

TOKEN_TIMEOUT_S: Final = 60.0
"""Seconds for one token to tell its objects or to destroy one."""

UNCLAIMED_SHOWN_MAX: Final = 8
"""Unclaimed objects that a log line names."""


class Reconciliation:
    """Compares store and tokens.

    Args:
        catalog: Knows the keys.
        effects: Reads and ends intents.
        hsm_keys: Calls tokens.
        owner: Names this process in intents.

    Attributes:
        unclaimed: How many objects a token had at the last survey that nobody here knows.
        unproven: The gateway's own keys that were not what they should be at the last survey.
    """

    def __init__(self, catalog: Catalog, effects: Effects, hsm_keys: HsmKeys, owner: str) -> None:
        self._catalog = catalog
        self._effects = effects
        self._hsm_keys = hsm_keys
        self._owner = owner
        self.unclaimed: dict[str, int] = {}
        self.unproven: list[str] = []

    async def survey(self) -> None:
        """Prove the gateway's own keys, and count the objects of tokens that nobody here knows.

        Raises:
            HsmuxError: The store is away.
        """
        await self._prove_own()
        for name, token in self._hsm_keys.tokens.items():
            try:
                # Who makes an object names it in the store first: what was there is known by now.
                unknown = await _listed(token) - await self._known(name)
                if unknown:
                    # What is undone meanwhile leaves the store when it has left the token.
                    unknown &= await _listed(token)
            except TokenError as error:
                log.warning("a token's objects cannot be listed", token=name, error=str(error))
                continue
            self.unclaimed[name] = len(unknown)
            if unknown:
                shown = sorted(cka_id.hex() for cka_id in unknown)[:UNCLAIMED_SHOWN_MAX]
                log.warning("unclaimed objects", token=name, number=len(unknown), cka_ids=shown)

    async def _prove_own(self) -> None:
        unproven = []
        for row in list(self._catalog.gateway_keys.values()):
            token = self._hsm_keys.tokens.get(row.token)
            if token is None:
                continue
            try:
                deadline = time.monotonic() + TOKEN_TIMEOUT_S
                await token.prove(gateway_hsm_key(row), deadline=deadline)
            except (KeyMissing, KeyQuarantined) as error:
                unproven.append(f"token {row.token}: the {row.name} key is lost or another one")
                log.critical("an own key fails", token=row.token, key=row.name, error=str(error))
            except TokenError as error:
                log.warning("own keys cannot be proven", token=row.token, error=str(error))
        self.unproven = unproven

    async def _known(self, token: str) -> set[bytes]:
        """CKA_IDs of everything the store names in a token."""

        def work(reader: Reader) -> set[bytes]:
            rows: list[RootRow | GatewayKeyRow | IntentRow] = [
                *reader.select(RootRow, token=token),
                *reader.select(GatewayKeyRow, token=token),
                *reader.select(IntentRow, token=token),
            ]
            return {row.cka_id for row in rows}

        own = await self._effects.read(work)
        await self._effects.refresh()
        versions = [v for versions in self._catalog.versions.values() for v in versions.values()]
        return own | {version.cka_id for version in versions if version.token == token}

    async def reconcile(self) -> None:
        """Undo creations whose intents have expired: what a crash left behind.

        Raises:
            HsmuxError: The store is away.
        """

        def work(reader: Reader) -> list[IntentRow]:
            return reader.expired_intents(now_ms())

        expired: dict[str, list[IntentRow]] = {}
        for intent in await self._effects.read(work):
            expired.setdefault(intent.token, []).append(intent)
        for name, intents in expired.items():
            try:
                await self._undo(name, intents)
            except TokenError as error:
                log.warning("expired intents wait for their token", token=name, error=str(error))

    async def _undo(self, name: str, intents: list[IntentRow]) -> None:
        token = self._hsm_keys.tokens.get(name)
        if token is None:
            log.warning("expired intents name a token that is not configured here", token=name)
            return
        ours = [intent for intent in intents if await self._take_over(intent)]
        there = await _listed(token)
        for intent in ours:
            if intent.cka_id in there:
                spec = intent.arguments.decode()
                deadline = time.monotonic() + TOKEN_TIMEOUT_S
                await token.destroy(HsmKey(intent.cka_id, spec, b"", b""), deadline=deadline)
                log.warning("undid an unfinished creation", token=name, kind=intent.kind)
            await self._effects.write(partial(_finish, intent_id=intent.intent_id))

    async def _take_over(self, intent: IntentRow) -> bool:
        """Whether the intent is still there and now ours: its maker cannot finish it any more."""

        def work(transaction: Transaction) -> bool:
            if transaction.get(IntentRow, intent.intent_id) != intent:
                return False
            until_ms = now_ms() + INTENT_LEASE_MS
            transaction.extend_intent(intent.intent_id, self._owner, until_ms)
            return True

        return await self._effects.write(work)


async def _listed(token: Token) -> set[bytes]:
    """CKA_IDs of everything that is in a token."""
    deadline = time.monotonic() + TOKEN_TIMEOUT_S
    return {found.cka_id for found in await token.list_objects(deadline=deadline)}


def _finish(transaction: Transaction, intent_id: bytes) -> None:
    transaction.finish_intent(intent_id)
