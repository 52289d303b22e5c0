"""The audit log of a gateway on a real token: it explains a refusal, is verified while it runs and
after it stopped, from a copy and the public key alone, and found out when a byte of it was changed.
"""

import shutil
from pathlib import Path

from hsmux_gateway.audit.checkpoints import split_notes
from hsmux_gateway.audit.commands import EXIT_INTEGRITY
from hsmux_gateway.audit.layout import CHECKPOINTS, chain_directories, segment_paths
from hsmux_gateway.audit.reading import export
from hsmux_gateway.audit.records import write_record
from tests.e2e.test_command_story import Place, initialise


def copy_log(place: Place, name: str) -> Path:
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
        refused = place.run("encrypt", "alias/s0", "-", input=b"x", code=4).stderr.decode()
        reference = refused.rpartition("(reference ")[2].strip(")\n")
        told = place.json("policy", "explain", reference)
        assert (told["access_point"], told["operation"]) == ("administrator", "encrypt")
        assert (told["resource"], told["outcome"]) == ("alias/s0", "Denied")
        assert told["statement"] == told["statement_now"] == "no statement allows it"
        running = place.json("audit", "verify", copy_log(place, "running"), *key)
    assert running["ok"] and running["checkpoints"] >= 1
    stopped = copy_log(place, "stopped")
    report = place.json("audit", "verify", stopped, *key)
    # One at the start, one when it had stopped, and more where that took long.
    assert (report["ok"], report["behind"]) == (True, 0) and report["checkpoints"] >= 2
    alone = place.json("policy", "explain", reference, "--directory", stopped)
    assert {
        name: told[name] for name in ("operation", "resource", "statement")
    }.items() <= alone.items()
    assert report["records"] == len(list(export(stopped))) >= 5

    # Started again, it goes on with the same chain, and a checkpoint put aside is found in it.
    *_, (_, note) = split_notes(stopped / CHECKPOINTS)
    (tmp_path / "aside").write_bytes(note)
    with place.serving():
        place.run("status")
    again = place.json(
        "audit", "verify", copy_log(place, "again"), *key, "--checkpoint", tmp_path / "aside"
    )
    assert [one["chain"] for one in again["chains"]] == [one["chain"] for one in report["chains"]]

    sequence, record = next((n, one) for _, n, one in export(stopped) if one.kind == "request")
    (segment,) = segment_paths(chain_directories(stopped)[0]).values()
    data = bytearray(segment.read_bytes())
    data[data.index(write_record(record)) + 20] ^= 1
    segment.write_bytes(data)
    told = place.run("audit", "verify", stopped, *key, code=EXIT_INTEGRITY)
    assert f"record {sequence}" in (told.stdout + told.stderr).decode()
