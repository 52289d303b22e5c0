"""Checkpoints: one text each, signed by one key, and a file of them that survives being torn."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from hsmux_gateway.audit.checkpoints import (
    BEFORE_FIRST,
    BadCheckpoint,
    CheckpointFile,
    checkpoint_text,
    load_public_key,
    read_note,
    split_notes,
)
from hsmux_gateway.audit.segments import ChainEnd

from .logs import AT_MS, DEPLOYMENT, PUBLIC_KEY, add_checkpoint, signed

ENDS = {b"b" * 16: ChainEnd(7, b"h" * 32), b"a" * 16: ChainEnd(0, b"g" * 32)}
NOTE = signed(checkpoint_text(DEPLOYMENT, 3, AT_MS, b"p" * 32, ENDS))


@given(
    st.binary(min_size=16, max_size=16),
    st.integers(1, 2**63),
    st.integers(0, 2**53),
    st.binary(min_size=32, max_size=32),
    st.dictionaries(
        st.binary(min_size=16, max_size=16),
        st.builds(ChainEnd, st.integers(0, 2**63), st.binary(min_size=32, max_size=32)),
        max_size=4,
    ),
)
def test_what_is_written_is_read(
    deployment: bytes, number: int, at_ms: int, previous: bytes, chains: dict[bytes, ChainEnd]
) -> None:
    text = checkpoint_text(DEPLOYMENT, number, at_ms, previous, chains)
    checkpoint = read_note(signed(text), PUBLIC_KEY)
    assert checkpoint.chains == chains
    assert (checkpoint.number, checkpoint.at_ms) == (number, at_ms)
    assert checkpoint.previous == previous
    again = checkpoint_text(DEPLOYMENT, number, at_ms, previous, checkpoint.chains)
    assert again == text


@given(st.text(max_size=200))
def test_garbage_is_refused(garbage: str) -> None:
    for note in (
        garbage.encode(errors="replace"),
        signed(garbage.encode(errors="replace") + b"\n"),
    ):
        with pytest.raises(BadCheckpoint):
            read_note(note, PUBLIC_KEY)


def _wrong_texts() -> dict[str, str]:
    text = checkpoint_text(DEPLOYMENT, 3, AT_MS, b"p" * 32, ENDS).decode()
    lines = text.splitlines(keepends=True)
    return {
        "leading zero": text.replace("checkpoint 3", "checkpoint 03"),
        "sign": text.replace("checkpoint 3", "checkpoint +3"),
        "other digits": text.replace("checkpoint 3", "checkpoint ٣"),
        "carriage return": text.replace("\n", "\r\n"),
        "upper case": text.replace("hsmux.audit", "Hsmux.audit"),
        "line more": text + "more\n",
        "line less": "".join(lines[:3]),
        "chains not in order": "".join([*lines[:4], lines[5], lines[4]]),
        "chain twice": text + lines[-1],
        "space behind": text.replace("\nchain", " \nchain", 1),
        "base64 of other bits": text.replace("Z2dnZ2c=", "Z2dnZ2d="),
    }


@pytest.mark.parametrize("what", _wrong_texts())
def test_a_text_has_one_form(what: str) -> None:
    text = _wrong_texts()[what]
    with pytest.raises(BadCheckpoint):
        read_note(signed(text.encode()), PUBLIC_KEY)


def test_signatures_of_others_do_not_count() -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    line = signed(b"x\n", other).split(b"\n")[2] + b"\n"
    witness = "— witness.example/w AAAAAAAA\n".encode()
    assert read_note(NOTE + line + witness, PUBLIC_KEY).number == 3
    with pytest.raises(BadCheckpoint, match="and its signatures"):
        read_note(NOTE + line, PUBLIC_KEY, signatures_max=1)
    with pytest.raises(BadCheckpoint, match="and its signatures"):
        read_note(NOTE + witness * 16, PUBLIC_KEY)
    text = NOTE.partition(b"\n\n")[0]
    with pytest.raises(BadCheckpoint, match="not signed by this key"):
        read_note(text + b"\n\n" + line + witness, PUBLIC_KEY)
    # A second signature in the key's own name that is wrong spoils the note.
    own = NOTE.partition(b"\n\n")[2]
    forged = signed(b"x\n").partition(b"\n\n")[2]
    with pytest.raises(BadCheckpoint, match="signature is wrong"):
        read_note(text + b"\n\n" + own + forged, PUBLIC_KEY)


def test_only_p256_keys_are_taken() -> None:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    for key in (ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())):
        pem = key.public_key().public_bytes(serialization.Encoding.PEM, form)
        with pytest.raises(ValueError, match="P-256"):
            load_public_key(pem)


def test_a_torn_file_of_checkpoints_goes_on(tmp_path: Path) -> None:
    for _ in range(3):
        add_checkpoint(tmp_path, ENDS)
    path = tmp_path / "checkpoints"
    whole = path.read_bytes()
    *_, (start, last) = split_notes(path)
    for at in range(len(last) + 1):
        path.write_bytes(whole[: start + at])
        file = CheckpointFile(path, PUBLIC_KEY)
        assert file.last is not None
        assert file.last.number == (3 if at == len(last) else 2)
        assert path.read_bytes() == (whole if at == len(last) else whole[:start])
        file.close()


def test_checkpoints_follow_each_other(tmp_path: Path) -> None:
    file = CheckpointFile(tmp_path / "checkpoints", PUBLIC_KEY)
    assert file.last is None
    first = signed(file.text(DEPLOYMENT, AT_MS, {b"a" * 16: ChainEnd(1, b"h" * 32)}))
    assert file.append(first).previous == BEFORE_FIRST
    with pytest.raises(BadCheckpoint, match="does not follow"):
        file.append(first)
    # A chain that nobody writes any more stays where it was.
    second = file.append(signed(file.text(DEPLOYMENT, AT_MS, {b"b" * 16: ChainEnd(2, b"i" * 32)})))
    assert second.number == 2 and list(second.chains) == [b"a" * 16, b"b" * 16]
    with pytest.raises(BadCheckpoint, match="not signed"):
        file.append(signed(file.text(DEPLOYMENT, 1, {}), ec.generate_private_key(ec.SECP256R1())))
    file.close()
    file = CheckpointFile(tmp_path / "checkpoints", PUBLIC_KEY)
    assert file.last == second
    file.close()


def test_a_last_checkpoint_of_another_key_is_no_beginning(tmp_path: Path) -> None:
    add_checkpoint(tmp_path, ENDS)
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    with pytest.raises(BadCheckpoint):
        CheckpointFile(tmp_path / "checkpoints", other)
