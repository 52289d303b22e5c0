"""The daemon's start and stop, as far as they need no other process."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest
import trio

from hsmux_gateway.config import load_config
from hsmux_gateway.daemon import Addresses, run_init, run_serve
from hsmux_gateway.errors import OperatorError
from hsmux_gateway.foundation import Foundation, operator_border
from hsmux_gateway.hsm.errors import TokenUnavailable
from hsmux_gateway.store import SealBroken, StoreMissing, StoreUnavailable
from tests.gateway.running import write_config


def _never(addresses: Addresses) -> None:
    raise AssertionError("it served")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_anything_is_served_ends_the_start(
    tmp_path: Path, number: signal.Signals
) -> None:
    async def before(base: Foundation) -> None:
        os.kill(os.getpid(), number)
        await trio.sleep_forever()

    config = load_config(write_config(tmp_path))
    trio.run(partial(run_serve, config, ready=_never, before=before))
    # Everything was given back: the directory can be locked again.
    trio.run(run_init, config)


def _refusal(config: Path) -> OperatorError:
    """Why a gateway does not start."""
    with pytest.raises(OperatorError) as refused:
        trio.run(partial(run_serve, load_config(config), ready=_never))
    return refused.value


def test_a_root_file_that_does_not_fit_is_one_line_for_the_operator(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    assert "hsmux init" in _refusal(config).text
    trio.run(run_init, load_config(config))
    root = tmp_path / "root.key"
    key = root.read_bytes()
    root.write_bytes(bytes(32))
    assert "is not the root of this store" in _refusal(config).text
    root.write_bytes(key[:-1])
    assert "must have 32 bytes, not 31" in _refusal(config).text
    root.write_bytes(key)
    root.chmod(0o644)
    assert f"chmod 600 {root}" in _refusal(config).text
    root.unlink()
    assert f"{root} cannot be read" in _refusal(config).text


def test_an_address_in_use_is_one_line_for_the_operator(tmp_path: Path) -> None:
    async def main() -> None:
        sockets = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = sockets[0].socket.getsockname()[1]
        path = write_config(tmp_path)
        path.write_text(path.read_text().replace('"127.0.0.1:0"]', f'"127.0.0.1:{port}"]'))
        config = load_config(path)
        await run_init(config)
        try:
            await run_serve(config, ready=_never)
        finally:
            for listener in sockets:
                await listener.aclose()

    with pytest.raises(OperatorError, match=r"cannot listen on 127\.0\.0\.1:\d+: Address already"):
        trio.run(main)


FAILURES = {
    "store away": (StoreUnavailable("away"), "store: away", 5),
    "store never made": (StoreMissing("not there"), "store: not there", 8),
    "store changed": (SealBroken("keys", (b"k",)), "store: the row", 8),
    "token away": (TokenUnavailable("no worker"), "token: no worker", 5),
    "operator": (OperatorError("do this", exit_code=2), "do this", 2),
}


@pytest.mark.parametrize("is_wrapped", [False, True])
@pytest.mark.parametrize("name", FAILURES)
def test_what_ends_the_gateway_is_one_error_for_the_operator(name: str, is_wrapped: bool) -> None:
    error, text, exit_code = FAILURES[name]
    raised = ExceptionGroup("outer", [ExceptionGroup("inner", [error])]) if is_wrapped else error
    with pytest.raises(OperatorError, match=text) as presented, operator_border():
        raise raised
    assert presented.value.exit_code == exit_code


def test_a_defect_is_not_hidden_from_anybody() -> None:
    with pytest.raises(ExceptionGroup) as failed, operator_border():
        raise ExceptionGroup("both", [ZeroDivisionError(), StoreUnavailable("away")])
    assert isinstance(failed.value.exceptions[0], ZeroDivisionError)
