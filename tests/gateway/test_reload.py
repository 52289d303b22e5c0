"""SIGHUP: what a gateway takes over while it serves, and that nothing else comes of it."""

import contextlib
import datetime
import os
import random
import shutil
import signal
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import trio
from cryptography import x509

from hsmux import Client
from hsmux_gateway.access.first_policies import EVERYTHING
from hsmux_gateway.authority_key import DeploymentAuthority
from hsmux_gateway.config import load_config
from hsmux_gateway.credentials import make_pair
from hsmux_gateway.daemon import Addresses, run_init, run_serve
from hsmux_gateway.foundation import Foundation, open_foundation
from hsmux_gateway.initialise import FirstAdministrator, unlock
from hsmux_gateway.store import GatewayKeyRow
from tests.gateway.certificates import DAY, Identity, Issuer, open_issuer
from tests.gateway.hardware import write_hardware_config
from tests.gateway.outside import make_root, pem_of
from tests.gateway.raw_client import client_context, connect
from tests.gateway.running import Running, running_gateway, write_config

RELOADS = [pytest.param(20, id="few"), pytest.param(400, id="many", marks=pytest.mark.long)]
MUTATIONS = [pytest.param(12, id="few"), pytest.param(200, id="many", marks=pytest.mark.long)]
TRIES = 3000
"""Connections until a gateway has surely looked at its certificate."""

URI = "spiffe://example.org/app"


@dataclass
class Served:
    """A gateway with an outside CA, and who uses it.

    Attributes:
        running: The gateway.
        config: Its configuration file.
        issuer: Its own CA.
        by_key: TLS with a client key.
        by_outside: TLS with a certificate of the outside CA.
    """

    running: Running
    config: Path
    issuer: Issuer
    by_key: ssl.SSLContext
    by_outside: ssl.SSLContext

    @property
    def tls(self) -> Path:
        """Where the gateway's own pair is."""
        return self.running.directory / "tls"

    def ask(self, context: ssl.SSLContext) -> x509.Certificate:
        """Connect and ask for something; the gateway's certificate."""
        with connect(self.running.address, context) as client:
            assert len(client.call("generate_random", 8)[0]) == 8
            der = client.tls.getpeercert(binary_form=True)
        assert der is not None
        return x509.load_der_x509_certificate(der)

    def replace_pair(self, identity: Identity) -> None:
        """Put another pair where the gateway's own is."""
        identity.write(self.tls / "server.pem", self.tls / "server.key")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A gateway of a test's own."""
    root = make_root()
    (tmp_path / "outside.pem").write_bytes(pem_of(root.certificate))
    config = write_config(tmp_path, f'[tls.outside_cas]\nother = "{tmp_path}/outside.pem"\n')
    trio.run(run_init, load_config(config), FirstAdministrator(EVERYTHING))
    issuer = open_issuer(config)
    with running_gateway(config, init=False) as running:
        by_key = client_context(running.administrator)
        with connect(running.address, by_key) as admin:
            admin.call("create_access_point", "app", "", ["administrator"], [f"uri:{URI}"], None)
        shown = root.issue(uris=[URI])
        by_outside = shown.context(running.administrator / "ca.pem", tmp_path)
        yield Served(running, config, issuer, by_key, by_outside)
        assert "Traceback" not in running.log.read_text()


@contextlib.contextmanager
def load_of(*works: Callable[[], object]) -> Iterator[list[int]]:
    """Do each of these again and again in a thread of its own; how often each was done.

    Whatever one of them raises is raised at the end.
    """
    counts, failures = [0] * len(works), list[BaseException]()
    is_over = threading.Event()

    def repeat(number: int) -> None:
        try:
            while not is_over.is_set():
                works[number]()
                counts[number] += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=repeat, args=(n,)) for n in range(len(works))]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert not failures, failures


@contextlib.contextmanager
def application(served: Served) -> Iterator[Client]:
    """The shipped client, which stays connected."""
    files = served.running.administrator
    with Client.connect(
        served.running.address,
        certificate=files / "administrator.pem",
        private_key=files / "administrator.key",
        ca=files / "ca.pem",
        server_name="localhost",
    ) as client:
        yield client


@pytest.mark.parametrize("reloads", RELOADS)
def test_no_request_fails_while_certificates_are_replaced(served: Served, reloads: int) -> None:
    made = [served.issuer.issue(start=-DAY, validity=9 * DAY, server=True) for _ in range(2)]
    with application(served) as client:
        stays: Callable[[], object] = partial(client.generate_random, 8)
        comes = [partial(served.ask, context) for context in (served.by_key, served.by_outside)]
        with load_of(stays, *comes) as counts:
            for number in range(reloads):
                served.replace_pair(made[number % 2])
                assert served.running.reload()["event"] == "reloaded"
                # Whoever comes from now on is shown the new one.
                assert served.ask(served.by_key) == made[number % 2].chain[0]
    assert all(counts)
    # Nothing was torn on the way: the client never had to connect again.
    assert served.running.stop() == 0


def _flip(data: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << chance.randrange(7))]) + data[place + 1 :]


def _cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def _drop_line(data: bytes, chance: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    del lines[chance.randrange(len(lines))]
    return b"".join(lines)


def _double(data: bytes, chance: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    place = chance.randrange(len(lines))
    return b"".join([*lines[: place + 1], *lines[place:]])


def _fill(data: bytes, chance: random.Random) -> bytes:
    return chance.randbytes(len(data))


MUTATIONS_OF_BYTES = (_flip, _flip, _cut, _drop_line, _double, _fill)


def _mutate(path: Path, others: list[Path], chance: random.Random) -> None:
    """Do something to a file that is not what its owner wants."""
    kind = chance.randrange(10)
    if kind < 6:
        path.write_bytes(MUTATIONS_OF_BYTES[kind](path.read_bytes(), chance))
    elif kind == 6:
        path.unlink()
    elif kind == 7:
        path.unlink()
        chance.choice([os.mkfifo, os.mkdir])(path)
    elif kind == 8:
        path.chmod(0o666)
    else:
        path.write_bytes(chance.choice(others).read_bytes())


@pytest.mark.parametrize("rounds", MUTATIONS)
def test_what_cannot_be_used_changes_nothing(served: Served, tmp_path: Path, rounds: int) -> None:
    chance = random.Random(rounds)
    files = [
        *(served.tls / "server.pem", served.tls / "server.key"),
        *(tmp_path / "outside.pem", served.config),
    ]
    kept = tmp_path / "kept"
    kept.mkdir()
    for path in files:
        shutil.copy2(path, kept / path.name)
    refused = 0
    with application(served) as client, load_of(partial(client.generate_random, 8)):
        for number in range(rounds):
            path = files[number % len(files)]
            _mutate(path, [other for other in files if other != path], chance)
            outcome = served.running.reload()
            refused += outcome["event"] != "reloaded"
            # Whatever it was: those who were served are served, and see what they trust.
            served.ask(served.by_key)
            if outcome["event"] != "reloaded":
                assert "\n" not in outcome["error"]
                served.ask(served.by_outside)
            if path.is_dir():
                path.rmdir()
            path.unlink(missing_ok=True)
            shutil.copy2(kept / path.name, path)
            assert served.running.reload()["event"] == "reloaded"
            served.ask(served.by_outside)
    assert refused > rounds // 2


def test_what_a_restart_is_needed_for_is_named(served: Served, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    pair = served.issuer.issue(start=-DAY, validity=5 * DAY, server=True)
    pair.write(other / "cert.pem", other / "cert.key")
    (other / "cert.key").chmod(0o600)
    text = served.config.read_text().replace(
        "[tls.outside_cas]",
        f"""[limits]
connections_max = 77
[tls]
certificate = "{other}/cert.pem"
private_key = "{other}/cert.key"
[tls.outside_cas]""",
    )
    served.config.write_text(text.replace("[server]", "[server]\ndrain_s = 3.0"))
    assert served.running.reload()["event"] == "reloaded"
    assert served.ask(served.by_key) == pair.chain[0]
    (line,) = [line for line in served.running.log.read_text().splitlines() if "restart" in line]
    assert '["server.drain_s", "limits.connections_max"]' in line
    served.config.write_text("nonsense = 1\n" + text)
    outcome = served.running.reload()
    assert outcome["event"] == "not reloaded, everything stays as it was"
    assert "nonsense" in outcome["error"]
    assert served.ask(served.by_key) == pair.chain[0]


def test_a_hangup_before_anything_is_served_does_not_end_the_start(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    config = load_config(path)
    trio.run(run_init, config)
    served: list[Addresses] = []

    async def before(base: Foundation) -> None:
        os.kill(os.getpid(), signal.SIGHUP)

    def ready(addresses: Addresses) -> None:
        served.append(addresses)
        os.kill(os.getpid(), signal.SIGTERM)

    trio.run(
        partial(run_serve, config, ready=ready, before=before, reload=lambda: load_config(path))
    )
    assert len(served) == 1


@pytest.mark.parametrize("write", [write_config, write_hardware_config], ids=["file", "token"])
def test_a_gateway_renews_the_certificate_that_its_ca_made(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    path = write(tmp_path)
    trio.run(run_init, load_config(path))
    old = trio.run(_make_old_pair, path)
    with running_gateway(path, init=False) as running:
        context = client_context(running.administrator)
        own = running.directory / "tls" / "server.pem"
        # It is in the file first, and then it is shown.
        shown = next(
            made for made in (_shown(running, context) for _ in range(TRIES)) if made != old
        )
        assert shown == x509.load_pem_x509_certificate(own.read_bytes())
        assert shown.not_valid_before_utc > old.not_valid_before_utc
        assert shown.public_key() != old.public_key()
        assert own.with_name("server.key").stat().st_mode & 0o777 == 0o600


def _shown(running: Running, context: ssl.SSLContext) -> x509.Certificate:
    with connect(running.address, context) as client:
        der = client.tls.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der)


async def _make_old_pair(path: Path) -> x509.Certificate:
    """A certificate of which more than two thirds of its life are over."""
    config = load_config(path)
    async with open_foundation(config, create=False) as base:
        sealer = await unlock(config, base.arena, base.tokens, base.store)
        row = base.store.read(lambda reader: reader.get(GatewayKeyRow, "ca"))
        assert row is not None
        authority = DeploymentAuthority(
            row, base.tokens, base.arena, sealer.slot, base.store.deployment_id
        )
        begins = datetime.datetime.now(datetime.UTC) - 500 * DAY
        await trio.to_thread.run_sync(
            make_pair, base.instance, authority, config.server.names, begins
        )
        return x509.load_pem_x509_certificate(base.instance.server_certificate.read_bytes())
