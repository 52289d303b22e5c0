"""What is old goes, and the verifier knows it from what was taken away."""

import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hsmux_gateway.audit.checkpoints import CheckpointFile, split_notes
from hsmux_gateway.audit.commands import verified
from hsmux_gateway.audit.journal import Journal
from hsmux_gateway.audit.layout import (
    CHECKPOINTS,
    CHECKPOINTS_NEW,
    chain_directories,
    segment_paths,
)
from hsmux_gateway.audit.records import Retired
from hsmux_gateway.audit.retention import Retention
from hsmux_gateway.audit.segments import SEGMENT_SIZE_MIN, lock_log, open_chain
from hsmux_gateway.audit.signing import CheckpointSigner
from hsmux_gateway.audit.verify import Report, verify
from hsmux_gateway.clock import now_ms
from hsmux_gateway.hsm.errors import TokenError
from tests.gateway.running import running_gateway, write_config

from .logs import DEPLOYMENT, KEY, PUBLIC_KEY, add_checkpoint, records_of, request, signed

DAY_MS = 24 * 3600 * 1000


class Log:
    """A log that is written, signed and kept short by hand."""

    def __init__(self, root: Path, **limits: int) -> None:
        self.root = root
        self.limits = {"keep_days": 0, "keep_bytes": 0, **limits}
        self.number = 0
        self.key_is_away = False
        self.start()

    def start(self) -> None:
        """Go on with the log."""
        lock = lock_log(self.root)
        assert lock is not None
        file = CheckpointFile(self.root / CHECKPOINTS, PUBLIC_KEY)
        self.journal = Journal(open_chain(self.root, DEPLOYMENT, segment_size=SEGMENT_SIZE_MIN))
        self.signer = CheckpointSigner(file, self.journal, DEPLOYMENT, self._key, lock)
        self.retention = Retention(self.journal, self.signer, **self.limits)

    def _key(self) -> ec.EllipticCurvePrivateKey:
        if self.key_is_away:
            raise TokenError("away")
        return KEY

    async def fill(self, segments: int, at_ms: int) -> None:
        """Write until there are so many more segments."""
        there = len(self.segments())
        while len(self.segments()) < there + segments:
            self.number += 1
            self.journal.append(request(self.number, at_ms))
            self.journal.flush()
        await self.journal.durable(self.journal.records)
        await self.signer.sign()

    def segments(self) -> dict[int, Path]:
        """What is there."""
        return segment_paths(chain_directories(self.root)[0])

    def notes(self) -> list[bytes]:
        """The checkpoints that are there."""
        return [note for _, note in split_notes(self.root / CHECKPOINTS)]

    def verified(self, older: bytes | None = None) -> Report:
        """What the verifier says of a copy."""
        shutil.rmtree(copy := self.root.with_name("copy"), ignore_errors=True)
        shutil.copytree(self.root, copy)
        return verify(copy, PUBLIC_KEY, older_checkpoint=older)

    def close(self) -> None:
        """Stop in order."""
        self.journal.close()
        self.signer.close()


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[..., Log]]:
    """Makes a log; it is closed at the end."""
    made: list[Log] = []

    def new(**limits: int) -> Log:
        made.append(Log(tmp_path / "log", **limits))
        return made[-1]

    yield new
    for log in made:
        log.close()


@pytest.fixture
async def log(make: Callable[..., Log]) -> Log:
    """A log of seven segments, of which four are older than a day."""
    log = make(keep_days=1)
    await log.fill(4, now_ms() - 2 * DAY_MS)
    await log.fill(2, now_ms())
    return log


async def test_old_segments_go_when_a_signed_record_says_so(log: Log, tmp_path: Path) -> None:
    oldest = log.notes()[0]
    await log.retention.run_once()
    # Announced, not done: who copies now has both.
    assert list(log.segments()) == [1, 2, 3, 4, 5, 6, 7]
    assert log.verified().ok
    await log.retention.run_once()
    assert list(log.segments()) == [5, 6, 7]
    report = log.verified(older=oldest)
    assert report.ok and report.chains[0].first > 1, report.problems
    key = tmp_path / "audit.pem"
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    key.write_bytes(PUBLIC_KEY.public_bytes(serialization.Encoding.PEM, form))
    told = verified(log.root, key)[1][-1]
    assert f" begins with record {report.chains[0].first}, older ones were retired" in told
    await log.retention.run_once()
    assert sum(isinstance(r, Retired) for r in records_of(log.root)) == 1


async def test_segments_that_somebody_else_removed_are_missing(log: Log) -> None:
    for _ in range(2):
        await log.retention.run_once()
    log.segments()[5].unlink()
    problem = log.verified().first_bad
    assert problem is not None and "no record under a checkpoint says" in problem.what


async def test_a_record_behind_the_last_checkpoint_retires_nothing(log: Log) -> None:
    """Whoever can write the files can write one."""
    third = log.segments()[3]
    log.signer.file.close()
    past = log.journal.chain.past(now_ms(), 10**9)
    assert past is not None and third.exists()
    log.journal.append(Retired(now_ms(), *past))
    log.journal.flush()
    for number in range(1, past.segment + 1):
        log.segments()[number].unlink()
    problem = log.verified().first_bad
    assert problem is not None and "no record under a checkpoint says" in problem.what
    add_checkpoint(log.root, {log.journal.chain.chain: log.journal.chain.end})
    assert log.verified().ok
    log.signer.file = CheckpointFile(log.root / CHECKPOINTS, PUBLIC_KEY)


async def test_while_the_key_is_away_nothing_goes(log: Log) -> None:
    log.key_is_away = True
    for _ in range(3):
        await log.retention.run_once()
    assert len(log.segments()) == 7
    log.key_is_away = False
    for _ in range(2):
        await log.retention.run_once()
    assert len(log.segments()) == 3 and log.verified().ok


async def test_a_removal_that_died_half_way_is_told_and_ended(log: Log) -> None:
    await log.retention.run_once()
    log.segments()[1].unlink()
    log.segments()[2].unlink()
    assert log.verified().ok
    log.close()
    log.start()
    for _ in range(2):
        await log.retention.run_once()
    assert list(log.segments()) == [5, 6, 7] and log.verified().ok


async def test_beyond_its_room_the_oldest_segments_go(make: Callable[..., Log]) -> None:
    log = make(keep_bytes=3 * SEGMENT_SIZE_MIN)
    await log.fill(6, now_ms())
    for _ in range(2):
        await log.retention.run_once()
    assert list(log.segments()) == [5, 6, 7] and log.verified().ok
    assert log.retention._due is None


async def test_the_present_segment_never_goes(make: Callable[..., Log]) -> None:
    log = make(keep_bytes=1, keep_days=1)
    await log.fill(1, now_ms() - 9 * DAY_MS)
    for _ in range(4):
        await log.retention.run_once()
    assert list(log.segments()) == [2] and log.verified().ok


async def test_old_checkpoints_go_and_later_ones_hold_what_they_held(
    make: Callable[..., Log],
) -> None:
    log = make(checkpoints_size_max=4000)
    kept, sizes = [], []
    for number in range(60):
        log.journal.append(request(number))
        await log.journal.durable(log.journal.records)
        await log.signer.sign()
        kept.append(log.notes()[-1])
        await log.retention.run_once()
        sizes.append((log.root / CHECKPOINTS).stat().st_size)
    assert max(sizes) < 6000
    assert len(log.notes()) < 20
    # Those that are gone still compare, by the records they held.
    for note in kept[::7]:
        report = log.verified(older=note)
        assert report.ok, report.problems
    log.close()
    log.start()
    await log.signer.sign()
    assert log.verified().ok


async def test_checkpoints_that_somebody_else_removed_are_missing(log: Log) -> None:
    for number in range(5):
        log.journal.append(request(number))
        await log.journal.durable(log.journal.records)
        await log.signer.sign()
    notes = log.notes()
    (log.root / CHECKPOINTS).write_bytes(b"".join(notes[2:]))
    problem = log.verified().first_bad
    assert problem is not None and "checkpoints up to 2 are missing" in problem.what
    # An older one that was put aside does not make up for it, and finds another log.
    assert not log.verified(older=notes[0]).ok
    (log.root / CHECKPOINTS).write_bytes(b"".join(notes))
    assert log.verified().ok


async def test_segments_may_go_after_checkpoints_went(make: Callable[..., Log]) -> None:
    """The record that tells of the checkpoints is written again before its segment goes."""
    log = make(keep_bytes=2 * SEGMENT_SIZE_MIN, checkpoints_size_max=1500)
    for _ in range(8):
        await log.fill(1, now_ms())
        await log.retention.run_once()
        assert log.verified().ok
    assert len(log.segments()) <= 4 and log.signer.file.first is not None
    assert log.signer.file.first.number > 1


async def test_what_a_crash_left_of_new_checkpoints_is_no_harm(log: Log) -> None:
    (log.root / CHECKPOINTS_NEW).write_bytes(b"half")
    assert log.verified().ok
    log.close()
    log.start()
    assert not (log.root / CHECKPOINTS_NEW).exists()


async def test_an_older_checkpoint_of_another_chain_is_no_comparison(
    make: Callable[..., Log],
) -> None:
    log = make(checkpoints_size_max=1500)
    for number in range(12):
        log.journal.append(request(number))
        await log.journal.durable(log.journal.records)
        await log.signer.sign()
        await log.retention.run_once()
    assert log.signer.file.first is not None and log.signer.file.first.number > 1
    forged = log.signer.file.text(DEPLOYMENT, 1, {}).split(b"\n")
    chain = log.journal.chain.chain.hex().encode()
    forged[1] = b"checkpoint 1"
    forged[4] = b"chain %s 2 %s" % (chain, forged[4].split(b" ")[3])
    report = log.verified(older=signed(b"\n".join(forged)))
    assert report.first_bad is not None and "another record here" in report.first_bad.what


def test_two_gateways_do_not_share_a_log(tmp_path: Path) -> None:
    for name in ("one", "two", "shared"):
        (tmp_path / name).mkdir(mode=0o700)
    shared = f'[audit]\ndirectory = "{tmp_path}/shared"\n'
    one, two = (write_config(tmp_path / name, shared) for name in ("one", "two"))
    with running_gateway(one), pytest.raises(RuntimeError, match="in use by another gateway"):
        with running_gateway(two):
            pass


def test_segments_have_the_size_that_is_configured(tmp_path: Path) -> None:
    config = write_config(tmp_path, f"[audit]\nsegment_bytes = {SEGMENT_SIZE_MIN}\n")
    with running_gateway(config) as running:
        (chain,) = chain_directories(running.directory / "audit")
        files = [path for path in chain.iterdir() if path.is_file()]
        assert {path.stat().st_size for path in files} == {SEGMENT_SIZE_MIN}
