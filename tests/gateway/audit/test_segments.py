"""The files of a chain: continued after anything that can happen to their end, and never half."""

import os
import random
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hsmux_gateway.audit.chain import FRAME_OVERHEAD, HEADER_SIZE
from hsmux_gateway.audit.layout import SPARE, chain_directories, segment_paths
from hsmux_gateway.audit.records import Retired, Torn, write_record
from hsmux_gateway.audit.segments import (
    LAST_ROOM,
    SEGMENT_SIZE_MIN,
    ChainDamaged,
    ChainEnd,
    ChainWriter,
    NoRoom,
    Room,
    open_chain,
)
from hsmux_gateway.audit.verify import Report, verify

from .logs import AT_MS, DEPLOYMENT, PUBLIC_KEY, add_checkpoint, appended, request

ROOT = Path(__file__).parents[3]


def _open(root: Path) -> ChainWriter:
    return open_chain(root, DEPLOYMENT, segment_size=SEGMENT_SIZE_MIN)


def _verified(root: Path, writer: ChainWriter) -> Report:
    """A whole verification, with a new checkpoint over everything."""
    (root / "checkpoints").unlink(missing_ok=True)
    add_checkpoint(root, {writer.chain: writer.end})
    report = verify(root, PUBLIC_KEY)
    assert report.ok, report.problems
    return report


def _last_segment(root: Path) -> Path:
    return list(segment_paths(chain_directories(root)[0]).values())[-1]


def test_a_chain_goes_on_over_segments_and_starts(tmp_path: Path) -> None:
    for start in range(4):
        writer = _open(tmp_path)
        assert writer.end.sequence == start * 200 and writer.cut is None
        appended(writer, start * 200, 200)
        assert writer.synced == writer.end
        writer.close()
    assert len(chain_directories(tmp_path)) == 1
    directory = chain_directories(tmp_path)[0]
    paths = segment_paths(directory)
    assert list(paths) == [1, 2, 3, 4]
    assert {path.stat().st_size for path in paths.values()} == {SEGMENT_SIZE_MIN}
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths.values()} == {0o600}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert _verified(tmp_path, writer).records == 800


def test_every_process_has_its_own_chain(tmp_path: Path) -> None:
    writers = [_open(tmp_path) for _ in range(3)]
    chains = {writer.chain for writer in writers}
    assert len(chains) == 3
    for writer in writers:
        writer.close()
    # Those that come next continue what is there.
    writers = [_open(tmp_path) for _ in range(3)]
    assert {writer.chain for writer in writers} == chains
    for writer in writers:
        writer.close()


def _torn_at(root: Path, whole: bytes, at: int, chosen: random.Random) -> None:
    """Cut the last segment at a byte; what a crash leaves there is nothing, or anything."""
    garbage = chosen.randbytes(chosen.choice((0, 1, 40)))
    spoilt = whole[:at] + garbage
    _last_segment(root).write_bytes(spoilt.ljust(len(whole), b"\0"))
    writer = _open(root)
    try:
        writer.append([write_record(request(99))])
        if writer.cut is not None:
            cut = Torn(AT_MS, *writer.cut)
            assert cut.size == len(spoilt.rstrip(b"\0")) - cut.offset
            writer.append([write_record(cut)], Room.LAST)
        writer.sync()
    finally:
        writer.close()
    _verified(root, writer)


def test_torn_tails_at_every_byte(tmp_path: Path) -> None:
    chosen = random.Random(1)
    writer = _open(tmp_path / "whole")
    appended(writer, 0, 10)
    before = HEADER_SIZE + sum(FRAME_OVERHEAD + len(write_record(request(n))) for n in range(9))
    writer.close()
    whole = _last_segment(tmp_path / "whole").read_bytes()
    end = len(whole.rstrip(b"\0"))
    for at in range(before, end + 1):
        root = tmp_path / str(at)
        shutil.copytree(tmp_path / "whole", root)
        _torn_at(root, whole, at, chosen)
        shutil.rmtree(root)


def test_what_was_cut_off_is_kept_beside(tmp_path: Path) -> None:
    writer = _open(tmp_path)
    appended(writer, 0, 3)
    writer.close()
    path = _last_segment(tmp_path)
    data = path.read_bytes()
    end = len(data.rstrip(b"\0"))
    path.write_bytes((data[:end] + b"half a record").ljust(len(data), b"\0"))
    writer = _open(tmp_path)
    writer.close()
    kept = path.with_name(f"00000001.{end}.torn")
    assert kept.read_bytes() == b"half a record"
    assert path.read_bytes() == data
    assert _verified(tmp_path, writer).records == 3


def test_a_segment_that_lost_its_empty_end_gets_it_back(tmp_path: Path) -> None:
    writer = _open(tmp_path)
    appended(writer, 0, 3)
    writer.close()
    path = _last_segment(tmp_path)
    os.truncate(path, len(path.read_bytes().rstrip(b"\0")))
    writer = _open(tmp_path)
    assert writer.cut is not None and writer.cut.size == 0
    writer.close()
    assert _verified(tmp_path, writer).records == 3


def test_what_a_checkpoint_holds_is_never_cut(tmp_path: Path) -> None:
    writer = _open(tmp_path)
    appended(writer, 0, 5)
    writer.close()
    signed = {writer.chain: writer.end}
    path = _last_segment(tmp_path)
    data = path.read_bytes()
    spoilt = bytearray(data)
    spoilt[len(data.rstrip(b"\0")) - 1] ^= 1
    path.write_bytes(spoilt)
    with pytest.raises(ChainDamaged, match="ends at record 4; record 5 was there"):
        open_chain(tmp_path, DEPLOYMENT, segment_size=SEGMENT_SIZE_MIN, checkpointed=signed)
    assert path.read_bytes() == spoilt
    path.unlink()
    with pytest.raises(ChainDamaged, match="all records are gone"):
        open_chain(tmp_path, DEPLOYMENT, segment_size=SEGMENT_SIZE_MIN, checkpointed=signed)
    path.write_bytes(data)
    with pytest.raises(ChainDamaged, match="belongs somewhere else"):
        open_chain(tmp_path, b"another deploymt", segment_size=SEGMENT_SIZE_MIN)
    path.write_bytes(b"")
    with pytest.raises(ChainDamaged, match="header"):
        _open(tmp_path)
    path.write_bytes(data)
    open_chain(tmp_path, DEPLOYMENT, checkpointed=signed).close()


def test_the_last_room_is_for_the_last_records(tmp_path: Path) -> None:
    writer = _open(tmp_path)
    writer.prepare()
    # Nobody can make files any more, and the one that was made ahead is used up.
    directory = chain_directories(tmp_path)[0]
    body = write_record(request(1))
    while writer.has_spare:
        writer.append([body])
    (directory / SPARE).mkdir()
    assert not writer.prepare()
    refused_floods = False
    while True:
        try:
            if not refused_floods:
                writer.append([body], Room.FLOOD)
        except NoRoom:
            refused_floods = True
            assert writer.room < SEGMENT_SIZE_MIN // 2
        try:
            writer.append([body])
        except NoRoom:
            break
    assert refused_floods
    end = writer.end
    assert LAST_ROOM <= writer.room < LAST_ROOM + 1024
    with pytest.raises(NoRoom):
        writer.append([body])
    assert writer.end == end
    writer.append([body], Room.LAST)
    (directory / SPARE).rmdir()
    writer.append([body])
    assert writer.end.sequence == end.sequence + 2
    writer.close()
    _verified(tmp_path, writer)


def test_more_than_a_segment_holds_is_refused_at_once(tmp_path: Path) -> None:
    writer = _open(tmp_path)
    with pytest.raises(ValueError, match="fit"):
        writer.append([write_record(request(1))] * 400)
    for wrong in (b"", bytes(9000)):
        with pytest.raises(ValueError, match="a record of"):
            writer.append([wrong])
    assert writer.end.sequence == 0
    writer.close()


def _retire(root: Path, writer: ChainWriter, before_ms: int, checkpointed: int) -> bool:
    past = writer.past(before_ms, checkpointed)
    if past is None:
        return False
    writer.append([write_record(Retired(before_ms, *past))], Room.LAST)
    writer.sync()
    writer.remove(past)
    return True


def test_old_segments_are_retired(tmp_path: Path) -> None:
    writer = _open(tmp_path)
    for day in range(6):
        appended(writer, 0, 200, AT_MS + day * 86_400_000)
    paths = segment_paths(chain_directories(tmp_path)[0])
    assert len(paths) == 6
    assert not _retire(tmp_path, writer, AT_MS, 1200)
    assert not _retire(tmp_path, writer, AT_MS + 3 * 86_400_000, 100)
    assert _retire(tmp_path, writer, AT_MS + 3 * 86_400_000, 1200)
    left = segment_paths(chain_directories(tmp_path)[0])
    assert min(left) == 3 and max(left) == 6
    report = _verified(tmp_path, writer)
    assert report.chains[0].first > 300
    assert not _retire(tmp_path, writer, AT_MS + 3 * 86_400_000, 1200)
    # A second time; the first record of it is among what goes.
    assert _retire(tmp_path, writer, AT_MS + 9 * 86_400_000, 1200)
    assert min(segment_paths(chain_directories(tmp_path)[0])) == 6
    _verified(tmp_path, writer)
    writer.close()


def test_segments_that_were_not_retired_are_missed(tmp_path: Path) -> None:
    writer = _open(tmp_path)
    for day in range(5):
        appended(writer, 0, 200, AT_MS + day * 86_400_000)
    assert _retire(tmp_path, writer, AT_MS + 2 * 86_400_000, 1000)
    writer.close()
    _verified(tmp_path, writer)
    paths = segment_paths(chain_directories(tmp_path)[0])
    paths[min(paths)].unlink()
    bad = verify(tmp_path, PUBLIC_KEY).first_bad
    assert bad is not None and "were retired" in bad.what


def _run(program: str, *arguments: str, **environment: str) -> list[str]:
    command = [sys.executable, "-m", f"tests.gateway.audit.{program}", *arguments]
    if program == "fill_disk":
        command = ["unshare", "--user", "--map-root-user", "--mount", *command]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_full_disk(tmp_path: Path) -> None:
    assert _run("fill_disk", str(tmp_path)) == [
        "refused when full True",
        "nothing of it written True",
        "last records still True",
        "works again True",
        "starts when full True",
        "short write leaves nothing True",
        "verifies True",
    ]


def test_a_failed_sync_is_for_ever(tmp_path: Path) -> None:
    library = tmp_path / "failing_sync.so"
    source = Path(__file__).parents[1] / "store" / "failing_sync.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    failing = tmp_path / "failing"
    root = tmp_path / "audit"
    lines = _run(
        "fail_sync",
        *(str(root), str(failing)),
        LD_PRELOAD=str(library),
        FAILING_SYNC=str(failing),
    )
    assert lines == ["durable True", "failed True", "never synced again True", "nor written True"]
    # A new start finds what is really there.
    writer = _open(root)
    assert writer.end.sequence >= 3
    appended(writer, 1, 1)
    writer.close()
    _verified(root, writer)


def _killed_rounds(root: Path, rounds: int) -> None:
    chosen = random.Random(rounds)
    acknowledged = ChainEnd(0, b"")
    for _ in range(rounds):
        command = [sys.executable, "-m", "tests.gateway.audit.crash_writer", str(root)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(chosen.randint(1, 60))]
            process.kill()
            lines += [line for line in process.stdout.readlines() if line.endswith(b"\n")]
        sequence, head = lines[-1].split()
        acknowledged = ChainEnd(int(sequence), bytes.fromhex(head.decode()))
        signed = {bytes.fromhex(chain_directories(root)[0].name): acknowledged}
        # Nothing that was written is missing, and what is there holds.
        writer = open_chain(root, DEPLOYMENT, segment_size=SEGMENT_SIZE_MIN, checkpointed=signed)
        assert writer.end.sequence >= acknowledged.sequence
        writer.close()
        (root / "checkpoints").unlink(missing_ok=True)
        add_checkpoint(root, {writer.chain: acknowledged})
        report = verify(root, PUBLIC_KEY)
        assert report.ok, report.problems
    assert len(segment_paths(chain_directories(root)[0])) > 1


def test_a_killed_writer_loses_nothing(tmp_path: Path) -> None:
    _killed_rounds(tmp_path, 4)


@pytest.mark.long
def test_many_killed_writers_lose_nothing(tmp_path: Path) -> None:
    _killed_rounds(tmp_path, 200)
