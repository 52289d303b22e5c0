"""What `init` and `serve` both stand on: instance directory, key memory, store and tokens.

They are opened in this order and closed in the other, in a process that leaves no core file and
lets no debugger in: what `cryptography` and Python hold of keys lies in ordinary memory. Here is
also the border to the operator: whatever the store or a token raises while the gateway starts
becomes an `OperatorError`.
"""

import ctypes
import os
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

import hsmux_native
from hsmux_native import Arena

from .clock import now_ms
from .config import Config, Hsm
from .config_files import check_named
from .errors import EXIT_AGAIN, EXIT_CONFLICT, EXIT_OPERATOR, OperatorError, first_of
from .hsm.errors import (
    PinRefused,
    TokenBusy,
    TokenDeadlineExceeded,
    TokenError,
    TokenExists,
    TokenMisconfigured,
    TokenOutcomeUnknown,
    TokenUnavailable,
)
from .hsm.settings import TokenSettings
from .hsm.token import Token
from .instance import Instance
from .store import (
    SealBroken,
    Store,
    StoreBusy,
    StoreDamaged,
    StoreError,
    StoreMissing,
    StoreUnavailable,
)

__all__ = [
    "Foundation",
    "open_foundation",
    "operator_border",
    "store_url",
    "token_failure",
    "token_settings",
]

PR_SET_DUMPABLE: Final = 4

_CHANGED: Final = "; restore the newest backup of the whole store (docs/recovery.md)"
"""What to do about a store in which somebody changed rows."""

_TOKEN_AWAY: Final = (TokenUnavailable, TokenBusy, TokenDeadlineExceeded, TokenOutcomeUnknown)
"""Errors of a token that may be over when somebody tries again."""


@dataclass(frozen=True, slots=True)
class Foundation:
    """What `init` and `serve` both stand on."""

    config: Config
    instance: Instance
    arena: Arena
    tokens: dict[str, Token]
    store: Store


def store_url(config: Config) -> str:
    """The store's URL; a SQLite file in the instance directory unless configured."""
    return config.store.url or f"sqlite:///{Path(config.instance_dir).absolute()}/store.db"


def token_settings(name: str, hsm: Hsm) -> TokenSettings:
    """What the HSM layer needs to know of a configured token."""
    return TokenSettings(
        name=name,
        module=hsm.module,
        token_label=hsm.token_label,
        pin_file=hsm.pin_file,
        pin_credential=hsm.pin_credential,
        parameters=hsm.parameters,
        environment=dict(hsm.environment),
        workers=hsm.workers,
        queue_items_max=hsm.queue_items_max,
        sessions_max=hsm.sessions_max,
        verify_every=hsm.verify_every,
    )


def _close_memory() -> None:
    """No core file and no debugger, where the system knows how."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def _create_store(url: str) -> Store:
    """The store at a URL, made if there is none yet."""
    return Store.create(url, deployment_id=os.urandom(16), created_at_ms=now_ms())


def _make_arena(config: Config) -> Arena:
    try:
        hsmux_native.self_test()
        return Arena(config.native.arena_size_bytes)
    except hsmux_native.NativeError as error:
        raise OperatorError(f"the C module cannot be used: {error}") from None


def token_failure(what: str, error: TokenError) -> OperatorError:
    """What an operator sees of a token's error: whether to try again or to act is in its type.

    Args:
        what: Which token, and what failed.
        error: Why.
    """
    codes = ((_TOKEN_AWAY, EXIT_AGAIN), (TokenExists, EXIT_CONFLICT), (TokenError, EXIT_OPERATOR))
    exit_code = next(code for kinds, code in codes if isinstance(error, kinds))
    return OperatorError(f"{what}: {error}", exit_code=exit_code)


@contextmanager
def operator_border() -> Iterator[None]:
    """Turn the errors of store, tokens and start-up work into one OperatorError.

    Nurseries wrap what they raise in groups; the first error in one is the reason.
    """
    failure: OperatorError | None = None
    try:
        yield
    except* OperatorError as group:
        failure = first_of(group)
    except* StoreError as group:
        error = first_of(group)
        is_away = isinstance(error, StoreUnavailable | StoreBusy | StoreDamaged)
        is_away = is_away and not isinstance(error, StoreMissing)
        exit_code = EXIT_AGAIN if is_away else EXIT_OPERATOR
        remedy = _CHANGED if isinstance(error, SealBroken) else ""
        failure = failure or OperatorError(f"store: {error}{remedy}", exit_code=exit_code)
    except* TokenError as group:
        failure = failure or token_failure("token", first_of(group))
    if failure is not None:
        raise failure


@asynccontextmanager
async def _open_tokens(
    config: Config, arena: Arena, instance: Instance
) -> AsyncIterator[dict[str, Token]]:
    if not config.hsm:
        yield {}
        return
    # PKCS#11 and everything around it is loaded only where there is a token.
    from .hsm.pool import open_token

    async with AsyncExitStack() as stack:
        tokens: dict[str, Token] = {}
        for name, hsm in config.hsm.items():
            settings = token_settings(name, hsm)
            try:
                opened = open_token(settings, arena, instance.hsm)
                tokens[name] = await stack.enter_async_context(opened)
            except (PinRefused, TokenMisconfigured) as error:
                raise token_failure(f"token {name}", error) from None
            except TokenError as error:
                what = f"token {name} cannot be opened (`hsmux hsm probe` tells more)"
                raise token_failure(what, error) from None
        yield tokens


@asynccontextmanager
async def open_foundation(config: Config, *, create: bool) -> AsyncIterator[Foundation]:
    """Open everything; `create` makes the store if there is none.

    Raises:
        OperatorError, StoreError, TokenError: It cannot be opened; see `operator_border`.
    """
    _close_memory()
    check_named(config)
    with Instance(Path(config.instance_dir)) as instance:
        arena = _make_arena(config)
        make = _create_store if create else Store.open
        store = await trio.to_thread.run_sync(make, store_url(config))
        try:
            async with _open_tokens(config, arena, instance) as tokens:
                yield Foundation(config, instance, arena, tokens, store)
        finally:
            store.close()
