"""The audit log of a gateway on a real token: verified while it runs and after it stopped, from a
copy and the public key alone, and found out when a byte of it was changed.
"""

import shutil
from pathlib import Path

from hsmux_gateway.audit.checkpoints import split_notes
from hsmux_gateway.audit.commands import EXIT_INTEGRITY
from hsmux_gateway.audit.layout import CHECKPOINTS, chain_directories, segment_paths
from hsmux_gateway.audit.reading import export
from hsmux_gateway.audit.records import write_record
from tests.e2e.test_command_story import Place, initialise


def _copy(place: Place, name: str) -> Path:
    """A copy of the log; the key is put beside it."""
    copied = place.directory / name
    shutil.copytree(place.directory / "instance" / "audit", copied)
    (copied / "key.pem").rename(place.directory / "key.pem")
    return copied


def test_the_log_of_a_running_gateway_is_verified_from_a_copy(tmp_path: Path) -> None:
    place = Place(tmp_path)
    initialise(place)
    key = ("--public-key", tmp_path / "key.pem")
    with place.serving():
        for number in range(3):
            place.run("key", "create", "--spec", "EC_P256", "--alias", f"alias/s{number}")
        running = place.json("audit", "verify", _copy(place, "running"), *key)
    assert (running["ok"], running["checkpoints"]) == (True, 1)
    stopped = _copy(place, "stopped")
    report = place.json("audit", "verify", stopped, *key)
    assert (report["ok"], report["behind"], report["checkpoints"]) == (True, 0, 2)
    assert report["records"] == len(list(export(stopped))) >= 5

    # Started again, it goes on with the same chain, and a checkpoint put aside is found in it.
    *_, (_, note) = split_notes(stopped / CHECKPOINTS)
    (tmp_path / "aside").write_bytes(note)
    with place.serving():
        place.run("status")
    again = place.json(
        "audit", "verify", _copy(place, "again"), *key, "--checkpoint", tmp_path / "aside"
    )
    assert [one["chain"] for one in again["chains"]] == [one["chain"] for one in report["chains"]]

    sequence, record = next((n, one) for _, n, one in export(stopped) if one.kind == "request")
    (segment,) = segment_paths(chain_directories(stopped)[0]).values()
    data = bytearray(segment.read_bytes())
    data[data.index(write_record(record)) + 20] ^= 1
    segment.write_bytes(data)
    told = place.run("audit", "verify", stopped, *key, code=EXIT_INTEGRITY)
    assert f"record {sequence}" in (told.stdout + told.stderr).decode()
