"""A client key near its end: the application that uses it renews it by itself and goes on."""

import datetime
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from hsmux import Client
from hsmux.profiles import Profile, save_profile
from hsmux_protocol.errors import Unauthenticated
from tests.client.conftest import connected
from tests.gateway.certificates import Identity, open_issuer, register
from tests.gateway.running import Running, running_gateway, write_config

LIFE = datetime.timedelta(hours=1)
LEFT = datetime.timedelta(seconds=12)
"""What is left of the first client key when it is issued: enough to start a gateway."""

KINDS = {"blocking": LEFT, "trio": LEFT, "without a library": LIFE / 4, "by hand": LIFE / 2}


@dataclass
class Place:
    """A gateway and client keys of an hour, of which seconds are left."""

    running: Running
    directory: Path
    identities: dict[str, Identity]

    def arguments(self, kind: str) -> dict[str, Any]:
        """What a client of this kind connects with."""
        directory = self.directory / kind.replace(" ", "-")
        return {
            "addresses": self.running.address,
            "certificate": str(directory / "client.pem"),
            "private_key": str(directory / "client.key"),
            "ca": str(self.running.administrator / "ca.pem"),
            "server_name": "localhost",
        }

    def certificate(self, kind: str) -> x509.Certificate:
        """What its file holds."""
        return x509.load_pem_x509_certificate(
            Path(self.arguments(kind)["certificate"]).read_bytes()
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A deployment that was initialised, given client keys of an hour, and started."""
    directory = tmp_path_factory.mktemp("renewal")
    config = write_config(directory)
    with running_gateway(config) as running:
        running.stop()
    issuer = open_issuer(config)
    identities = {
        kind: issuer.issue(start=left - LIFE, validity=LIFE) for kind, left in KINDS.items()
    }
    for kind, identity in identities.items():
        register(config, identity)
        own = directory / kind.replace(" ", "-")
        own.mkdir()
        identity.write(own / "client.pem", own / "client.key")
    with running_gateway(config, init=False) as running:
        yield Place(running, directory, identities)


@contextmanager
def application(place: Place, kind: str) -> Iterator[Any]:
    with connected(kind, **place.arguments(kind)) as client:
        yield client


def await_renewal(place: Place, kind: str, client: Any) -> x509.Certificate:
    """Work until the file holds another certificate."""
    first = place.identities[kind].chain[0]
    deadline = time.monotonic() + 30
    while (held := place.certificate(kind)) == first:
        assert time.monotonic() < deadline
        client.generate_random(8)
    return held


def await_end(place: Place, kind: str) -> None:
    """Until the first certificate has ended."""
    end = place.identities[kind].chain[0].not_valid_after_utc.timestamp()
    time.sleep(max(0.0, end + 0.1 - time.time()))


def test_an_application_goes_on_after_its_first_client_key_has_ended(place: Place) -> None:
    with application(place, "blocking") as blocking, application(place, "trio") as trio:
        clients = {"blocking": blocking, "trio": trio}
        for kind, client in clients.items():
            renewed = await_renewal(place, kind, client)
            first = place.identities[kind].chain[0]
            life = renewed.not_valid_after_utc - renewed.not_valid_before_utc
            assert abs(life - LIFE) <= datetime.timedelta(seconds=1)
            assert renewed.not_valid_after_utc - first.not_valid_after_utc > LIFE / 2
            # Whoever connects now does so with the new one, which is not due.
            with Client.connect(**place.arguments(kind)) as other:
                assert other.generate_random(8)
        for kind, client in clients.items():
            await_end(place, kind)
            for _ in range(5):
                assert len(client.generate_random(8)) == 8
        records = {one.client_key_id: one for one in blocking.list_client_keys()}
        renewals = [one for one in records.values() if one.renews]
        assert len(renewals) == len(clients)
        assert all(records[one.renews].access_point == "administrator" for one in renewals)
    first_files = place.directory / "first"
    first_files.mkdir()
    place.identities["blocking"].write(first_files / "c.pem", first_files / "c.key")
    old = {"certificate": first_files / "c.pem", "private_key": first_files / "c.key"}
    with pytest.raises(Unauthenticated):
        Client.connect(**{**place.arguments("blocking"), **old})


def test_an_installation_without_a_library_gets_its_key_from_the_gateway(place: Place) -> None:
    kind = "without a library"
    assert place.certificate(kind) == place.identities[kind].chain[0]
    program = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from hsmux import Client\nfrom hsmux._renewal import renew_files\n"
        "from hsmux.profiles import Profile\n"
        "address, certificate, private_key, ca = sys.argv[1:]\n"
        "profile = Profile((address,), certificate, private_key, ca, 'localhost')\n"
        "issued = renew_files(profile, is_due=lambda _: True)\n"
        "assert 'PRIVATE KEY' in issued.private_key_pem and 'PRIVATE' not in repr(issued)\n"
    )
    arguments = place.arguments(kind)
    words = [arguments[name] for name in ("addresses", "certificate", "private_key", "ca")]
    subprocess.run([sys.executable, "-c", program, *words], check=True)
    assert place.certificate(kind) != place.identities[kind].chain[0]
    with Client.connect(**arguments) as client:
        assert client.generate_random(8)


def test_the_command_replaces_the_files_of_its_profile(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    arguments = place.arguments("by hand")
    save_profile("by-hand", Profile((arguments.pop("addresses"),), **arguments))

    def hsmux(*words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "hsmux_tools.main", *words]
        return subprocess.run(line, capture_output=True, text=True)

    first = place.certificate("by hand")
    done = hsmux("client-key", "renew", "-o", "json")
    assert done.returncode == 0, done.stderr
    renewed, shown = place.certificate("by hand"), json.loads(done.stdout)
    assert renewed != first and int(shown["serial"], 16) == renewed.serial_number
    assert shown["renews"].startswith("ck-") and "PRIVATE" not in done.stdout + done.stderr
    again = hsmux("client-key", "renew")
    assert again.returncode == 6 and "renewed just now" in again.stderr
    assert place.certificate("by hand") == renewed
    assert hsmux("client-key", "renew", "--force").returncode == 0
    status = json.loads(hsmux("status", "-o", "json").stdout)
    assert status["client_keys_ended"] <= 2 and status["server_not_after"] < status["ca_not_after"]
