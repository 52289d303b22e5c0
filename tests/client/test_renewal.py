"""Renewal as clients do it: when, with which files, and what becomes of a crash in the middle."""

import datetime
import itertools
import logging
import os
import shutil
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import hsmux
from hsmux._certificate import validity_of
from hsmux._pair import NEW, LockHeld, Pair, load_pair
from hsmux._renewal import Renewal, renew_files
from hsmux.profiles import OFF, OWN_KEY, Profile, load_profile, save_profile
from hsmux.results import ClientKey, IssuedClientKey
from hsmux_protocol.errors import Conflict, InvalidArgument, Unauthenticated, Unavailable

DAY_S = 86_400
BEGIN = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
END = BEGIN + datetime.timedelta(days=90)


def make_pair(
    begin: datetime.datetime = BEGIN, end: datetime.datetime = END, name: str = "a"
) -> tuple[bytes, bytes]:
    """A self-signed certificate and its private key, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)] if name else [])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 1, begin, end)
    return (
        builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


class Files:
    """A client key in files."""

    def __init__(self, directory: Path) -> None:
        self.certificate, self.private_key = directory / "c.pem", directory / "c.key"
        self.old = self.write(*make_pair())
        self.pair = Pair(str(self.certificate), str(self.private_key))
        self.profile = Profile(*self.profile_parts())

    def write(self, certificate: bytes, private_key: bytes) -> tuple[bytes, bytes]:
        """Put a pair there."""
        self.certificate.write_bytes(certificate)
        self.private_key.write_bytes(private_key)
        return certificate, private_key

    def load(self) -> None:
        """As a client that connects."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        load_pair(context, str(self.certificate), str(self.private_key))

    def profile_parts(self) -> tuple[tuple[str, ...], str, str, str, None]:
        """What a profile has before its renewal."""
        return ("localhost:1",), str(self.certificate), str(self.private_key), "ca.pem", None

    def left(self) -> set[str]:
        """Names in the directory."""
        return {path.name for path in self.certificate.parent.iterdir()}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


# What a certificate says


@pytest.mark.parametrize("year", [1951, 1999, 2049, 2050, 9999])
@pytest.mark.parametrize("name", ["", "a", "long" * 16])
def test_validity_is_read_as_others_read_it(year: int, name: str) -> None:
    end = datetime.datetime(year, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
    pem, _ = make_pair(datetime.datetime(1950, 1, 1, tzinfo=datetime.UTC), end, name)
    validity = validity_of(b"words before\n" + pem + make_pair()[0])
    loaded = x509.load_pem_x509_certificate(pem)
    assert validity.begin_s == loaded.not_valid_before_utc.timestamp()
    assert validity.end_s == loaded.not_valid_after_utc.timestamp()


def test_what_is_no_certificate_is_refused() -> None:
    der = ssl.PEM_cert_to_DER_cert(make_pair()[0].decode())
    whole = validity_of(ssl.DER_cert_to_PEM_cert(der).encode())
    for size in range(len(der)):
        pem = ssl.DER_cert_to_PEM_cert(der[:size]).encode()
        try:
            assert validity_of(pem) == whole
        except ValueError:
            continue
    for other in (b"", make_pair()[1], b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE"):
        with pytest.raises(ValueError):
            validity_of(other)


# The files


def test_a_pair_is_replaced_for_its_owner_only(files: Files) -> None:
    certificate, private_key = make_pair()
    with files.pair.locked():
        files.pair.prepare()
        files.load()
        files.pair.stage(certificate, private_key)
        files.load()
        files.pair.install()
    assert files.certificate.read_bytes() == certificate
    assert files.private_key.read_bytes() == private_key
    for path in (files.certificate, files.private_key):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert files.left() == {"c.pem", "c.key", "c.key.lock"}


def test_one_file_for_both_and_links_are_followed(tmp_path: Path) -> None:
    real, link = tmp_path / "real.pem", tmp_path / "link.pem"
    real.write_bytes(b"".join(make_pair()))
    link.symlink_to(real)
    pair, made = Pair(str(link), str(link)), make_pair()
    pair.stage(*made)
    assert pair.new.fits
    pair.install()
    assert link.is_symlink() and real.read_bytes() == b"".join(made)


def test_what_was_to_replace_another_pair_replaces_nothing(files: Files) -> None:
    """A crash left a new pair; then somebody put a pair of another access point there."""
    files.pair.stage(*make_pair())
    staged_ns = files.pair.new.private_key.stat().st_ctime_ns
    other = make_pair()
    while files.certificate.stat().st_ctime_ns <= staged_ns:
        # The clock of a file system has coarse steps.
        files.write(*other)
    # As copying with its times would have it.
    os.utime(files.certificate, (0, 0))
    with files.pair.locked():
        assert not files.pair.resume()
    assert (files.certificate.read_bytes(), files.private_key.read_bytes()) == other
    assert files.left() == {"c.pem", "c.key", "c.key.lock"}


class Crash(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("steps", range(12))
def test_a_crash_at_any_step_leaves_a_pair_that_works(
    files: Files, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever call to the system is the last, the next renewal finds a pair and goes on."""
    counted, new = itertools.count(), make_pair()

    def crashing(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*arguments: Any, **others: Any) -> Any:
            if next(counted) == steps:
                raise Crash
            return real(*arguments, **others)

        return call

    with monkeypatch.context() as patched:
        for name in ("replace", "fsync", "unlink"):
            patched.setattr(os, name, crashing(name))
        try:
            files.pair.prepare()
            files.pair.stage(*new)
            files.pair.install()
        except Crash:
            pass
    files.load()
    with files.pair.locked():
        if files.pair.resume():
            files.pair.install()
    assert files.pair.fits
    assert (files.certificate.read_bytes(), files.private_key.read_bytes()) in (files.old, new)
    assert files.left() <= {"c.pem", "c.key", "c.key.lock"}


def test_readers_always_find_a_pair_while_it_is_replaced(files: Files) -> None:
    made, is_over = [make_pair() for _ in range(4)], threading.Event()
    problems: list[Exception] = []
    has_read = threading.Semaphore(0)

    def read() -> None:
        while not is_over.is_set():
            try:
                files.load()
            except (OSError, ValueError) as error:
                problems.append(error)
            has_read.release()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for one in made * 25:
            with files.pair.locked():
                files.pair.stage(*one)
                files.pair.install()
            # Renewals are far apart: no reader meets two of them.
            while has_read.acquire(blocking=False):
                pass
            assert has_read.acquire(timeout=30) and has_read.acquire(timeout=30)
    finally:
        is_over.set()
        reader.join()
    assert problems == []


def test_one_process_replaces_at_a_time_and_a_dead_one_holds_nothing(files: Files) -> None:
    program = (
        "import sys; from hsmux._pair import Pair\nwith Pair(*sys.argv[1:]).locked():\n"
        "    print('held', flush=True); sys.stdin.read(1)"
    )
    command = [sys.executable, "-c", program, str(files.certificate), str(files.private_key)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(LockHeld), files.pair.locked():
            pass
        other.kill()
    with files.pair.locked(), pytest.raises(LockHeld), files.pair.locked():
        pass


# The order of things


class Gateway:
    """What a renewal sees of a gateway."""

    def __init__(self) -> None:
        self.issued: list[tuple[bytes, bytes]] = []
        self.requests: list[bytes | None] = []
        self.connected: list[str] = []
        self.failure: Exception | None = None
        self.refusal: Exception | None = None

    @contextmanager
    def connect(self, profile: Profile) -> Iterator["Gateway"]:
        self.connected.append(Path(profile.certificate).name)
        assert Pair(profile.certificate, profile.private_key).fits
        if profile.certificate.endswith(NEW) and self.refusal is not None:
            raise self.refusal
        yield self

    def renew_client_key(self, *, csr: bytes | None, force: bool, timeout_s: Any) -> Any:
        self.requests.append(csr)
        if self.failure is not None:
            raise self.failure
        certificate, private_key = make_pair(END, END + (END - BEGIN))
        if csr is not None:
            request = x509.load_der_x509_csr(csr)
            ca = ec.generate_private_key(ec.SECP256R1())
            name = x509.Name([])
            made = x509.CertificateBuilder(
                name, name, request.public_key(), 1, END, END + (END - BEGIN)
            )
            certificate = made.sign(ca, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        self.issued.append((certificate, private_key))
        key = ClientKey("ck-a", "a", bytes(32), "1", "Enabled", BEGIN, END)
        shown = private_key.decode() if csr is None else None
        return IssuedClientKey(key, certificate.decode(), "ca", shown)


def renew(files: Files, gateway: Gateway, **others: Any) -> Any:
    arguments = {"is_due": lambda _: True, "connect": gateway.connect, **others}
    return renew_files(files.profile, **arguments)


def test_the_private_key_is_made_here_and_the_new_pair_is_proven_first(files: Files) -> None:
    gateway = Gateway()
    assert renew(files, gateway).private_key_pem is None
    assert gateway.connected == ["c.pem", f"c.pem{NEW}"]
    assert gateway.requests[0] is not None
    assert files.certificate.read_bytes() == gateway.issued[0][0] and files.pair.fits
    assert b"PRIVATE KEY" not in gateway.requests[0]


def test_without_a_library_the_gateway_makes_it_unless_that_is_refused(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = Gateway()
    monkeypatch.setitem(sys.modules, "cryptography", None)
    files.profile = Profile(*files.profile_parts(), renewal=OWN_KEY)
    with pytest.raises(InvalidArgument, match=r"pip install 'hsmux\[renew\]'"):
        renew(files, gateway)
    assert gateway.requests == [] and files.left() == {"c.pem", "c.key", "c.key.lock"}
    files.profile = Profile(*files.profile_parts())
    renew(files, gateway)
    assert gateway.requests == [None]
    assert files.private_key.read_bytes() == gateway.issued[0][1] and files.pair.fits


def test_what_another_process_renewed_is_not_renewed_again(files: Files) -> None:
    gateway = Gateway()
    assert renew(files, gateway, is_due=lambda pem: pem != files.old[0]) is None
    assert gateway.connected == []
    with files.pair.locked(), pytest.raises(LockHeld):
        renew(files, gateway)


def test_a_refused_request_leaves_everything_as_it_was(files: Files) -> None:
    gateway = Gateway()
    gateway.failure = Conflict("renewed just now")
    with pytest.raises(Conflict):
        renew(files, gateway)
    assert files.certificate.read_bytes() == files.old[0]
    assert files.left() == {"c.pem", "c.key", "c.key.lock"}


def test_an_unproven_pair_waits_for_the_next_try_and_a_refused_one_is_removed(files: Files) -> None:
    gateway = Gateway()
    gateway.refusal = Unavailable("away")
    with pytest.raises(Unavailable):
        renew(files, gateway)
    assert files.certificate.read_bytes() == files.old[0] and files.pair.new.fits
    gateway.refusal = None
    assert renew(files, gateway, is_due=lambda pem: pem == files.old[0]) is None
    assert files.certificate.read_bytes() == gateway.issued[0][0] and len(gateway.issued) == 1
    gateway.refusal = Unauthenticated("unknown")
    with pytest.raises(Unauthenticated):
        renew(files, gateway)
    assert files.certificate.read_bytes() == gateway.issued[0][0] and files.pair.fits
    assert files.left() == {"c.pem", "c.key", "c.key.lock"}


def test_files_that_cannot_be_replaced_cost_the_gateway_nothing(files: Files) -> None:
    (files.private_key.parent / "c.key.lock").mkdir()
    gateway = Gateway()
    with pytest.raises(OSError):
        renew(files, gateway)
    assert gateway.connected == []


# When


class Site:
    """A renewal with a clock that a test turns, and work that is done at once."""

    def __init__(self, files: Files, **changes: Any) -> None:
        self.files = files
        self.now_s = BEGIN.timestamp()
        self.outcome: Exception | None = None
        self.renewed = 0
        profile = Profile(*files.profile_parts(), **changes)
        self.renewal = Renewal(
            profile, clock=lambda: self.now_s, start=lambda work: work(), renew=self._renew
        )
        self.renewal.took()

    def _renew(self, profile: Profile, *, is_due: Callable[[bytes], bool]) -> None:
        self.renewed += 1
        assert is_due(self.files.certificate.read_bytes())
        if self.outcome is not None:
            raise self.outcome
        self.files.write(*make_pair(END, END + (END - BEGIN)))

    def at(self, days: float) -> None:
        """Let the client look this long after the certificate's beginning."""
        self.now_s = BEGIN.timestamp() + days * DAY_S
        self.renewal.look()


def test_it_renews_when_two_thirds_are_over_and_takes_the_new_pair_up(files: Files) -> None:
    site = Site(files)
    site.at(0)
    site.at(60 - 1e-3)
    assert (site.renewed, site.renewal.is_stale) == (0, False)
    site.at(60)
    assert (site.renewed, site.renewal.is_stale, site.renewal.is_running) == (1, True, False)
    site.at(60.01)
    assert (site.renewed, site.renewal.is_stale) == (1, True)
    site.renewal.took()
    site.at(90 + 60 - 1e-3)
    assert (site.renewed, site.renewal.is_stale) == (1, False)
    site.at(90 + 60)
    assert site.renewed == 2


def test_it_takes_up_what_another_process_renewed(files: Files) -> None:
    site = Site(files)
    site.at(59)
    files.write(*make_pair(END, END + (END - BEGIN)))
    site.at(59 + 30 / 1440)
    assert not site.renewal.is_stale
    site.at(59 + 61 / 1440)
    assert (site.renewed, site.renewal.is_stale) == (0, True)


def test_failures_are_logged_with_a_remedy_and_come_further_and_further_apart(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(files)
    site.outcome = Unavailable("the gateway is away")
    days, tries = 60.0, []
    with caplog.at_level(logging.WARNING, "hsmux"):
        while days < 61:
            before = site.renewed
            site.at(days)
            if site.renewed > before:
                tries.append(days * DAY_S)
            days += 10 / DAY_S
    pauses = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert 60 <= pauses[0] <= 85 and all(pause <= 3600 * 1.25 + 10 for pause in pauses)
    assert pauses[5] > 10 * pauses[0] and 24 <= len(tries) <= 35
    text = caplog.records[0].getMessage()
    assert "ends on 2026-04-01" in text and "the gateway is away" in text
    assert "run `hsmux client-key renew`" in text
    site.outcome = LockHeld()
    caplog.clear()
    site.at(62)
    site.outcome = None
    site.at(62 + 6 / DAY_S)
    assert (site.renewed, caplog.records) == (len(tries) + 2, [])


def test_off_is_off_and_a_file_that_is_gone_is_not_its_business(files: Files) -> None:
    off = Site(files, renewal=OFF)
    off.at(70)
    assert (off.renewed, off.renewal.is_stale) == (0, False)
    site = Site(files)
    shutil.move(files.certificate, files.certificate.with_suffix(".away"))
    site.at(70)
    assert (site.renewed, site.renewal.is_stale) == (0, False)


def test_a_profile_says_how(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    save_profile("a", Profile(*files.profile_parts(), renewal=OWN_KEY))
    assert load_profile("a").renewal == OWN_KEY
    save_profile("a", Profile(*files.profile_parts()))
    assert load_profile("a").renewal == "auto"
    with pytest.raises(InvalidArgument, match="renewal: one of auto, own-key, off"):
        save_profile("a", Profile(*files.profile_parts(), renewal="yes"))
    with pytest.raises(InvalidArgument, match="renewal"):
        hsmux.Client.connect("localhost:1", certificate="c", private_key="k", ca="c", renewal="no")


def test_the_thin_client_loads_no_library_for_it() -> None:
    program = "import sys, hsmux; from hsmux import _renewal; print('cryptography' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout == b"False\n"
