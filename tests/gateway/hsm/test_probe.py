"""The probe against what is known of the modules at hand, and that it leaves nothing behind."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hsmux_gateway.hsm.probe import probe
from hsmux_gateway.hsm.quirks import QUIRKS, SESSIONS_TRIED
from hsmux_tools.output import show_record
from hsmux_tools.settings import Settings
from tests.gateway.hsm.conftest import MAKERS
from tests.gateway.hsm.known_keys import run_program
from tests.gateway.hsm.rig import Rig
from tests.gateway.hsm.test_faults_identity import object_files
from tests.gateway.hsm.test_pin import CONFIG, HSMUX

ALIKE = {
    "generate:AES_256": "ok",
    "generate:EC_P384": "ok",
    "generate:RSA_4096": "ok",
    "AES_256:64_kib": "ok",
    "AES_256:empty": "ok",
    "AES_256:changed": "refused",
    "AES_256:cut": "refused",
    "sign:EC_P256:ECDSA_SHA_256": "ok",
    "sign:RSA_2048:RSA_PSS_SHA_512": "ok",
    "destroy:RSA_3072": "ok",
    "gcm_iv": "the caller's",
    "gcm_after_error": "goes on",
    "gcm_tag_32_bits": "accepted (!)",
    "curve:P-521": "ok",
    "oaep:SHA_1": "ok",
    "wrap:AES_KEY_WRAP": "RFC 3394",
    "wrap_then_unwrap:AES_KEY_WRAP_PAD": "ok",
    "wrap:RSA_AES_KEY_WRAP": "no: MECHANISM_INVALID",
    "sessions": f"{SESSIONS_TRIED} or more",
    "random": "ok",
    "pin": "no warning",
    "sessions_max_stated": "none",
}

FACTS: dict[str, dict[str, str]] = {
    "softhsm": {
        "manufacturer": "SoftHSM project",
        "gcm_length_query": "right",
        "gcm_small_buffer": "BUFFER_TOO_SMALL, the operation goes on",
        "gcm_bad_tag": "GENERAL_ERROR",
        "gcm_short_input": "GENERAL_ERROR",
        "gcm_empty_iv": "accepted (!)",
        "gcm_tag_0_bits": "accepted (!)",
        "gcm_parts": "ok",
        "check_value": "right",
        "curve:secp256k1": "ok",
        "curve:Ed25519": "ok",
        "oaep:SHA256": "no: ARGUMENTS_BAD",
        "wrap:AES_KEY_WRAP_PAD": "RFC 5649",
        "wrap:AES_KEY_WRAP_KWP": "no: MECHANISM_INVALID",
        "wrap_non_extractable": "refused: KEY_UNEXTRACTABLE",
        "data_objects": "ok",
    },
    "softokn": {
        "manufacturer": "Mozilla Foundation",
        "gcm_length_query": "16 too few",
        "gcm_small_buffer": "BUFFER_TOO_SMALL, the operation ends",
        "gcm_bad_tag": "ENCRYPTED_DATA_INVALID",
        "gcm_short_input": "DATA_LEN_RANGE",
        "gcm_empty_iv": "HOST_MEMORY",
        "gcm_parts": "no: OPERATION_NOT_INITIALIZED",
        "check_value": "none",
        "curve:secp256k1": "no: DOMAIN_PARAMS_INVALID",
        "curve:Ed25519": "no: MECHANISM_INVALID",
        "oaep:SHA512": "ok",
        "wrap:AES_KEY_WRAP_PAD": "RFC 3394 over PKCS#7 padding",
        "wrap:AES_KEY_WRAP_KWP": "RFC 5649",
        "wrap_then_unwrap:AES_KEY_WRAP_KWP": "ok",
        "wrap_non_extractable": "wraps it (!)",
    },
}

NO_RSA = (
    "function=C_GenerateKeyPair mechanism=CKM_RSA_PKCS_KEY_PAIR_GEN "
    "action=return code=CKR_KEY_SIZE_RANGE"
)
"""Making RSA keys takes most of a probe's time."""


@pytest.mark.parametrize("module", MAKERS)
async def test_the_profile_is_what_is_known_of_the_module(tmp_path: Path, module: str) -> None:
    rig = Rig(MAKERS[module](tmp_path), tmp_path)
    before = run_program(rig.settings, "list", "1234567890", "")
    directory = tmp_path / "not" / "there" / "yet"
    found = await probe(rig.settings, directory)
    expected = ALIKE | FACTS[module]
    assert {name: found[name] for name in expected} == expected
    assert found.keys() >= QUIRKS.keys()
    assert "AES_GCM" in found["mechanisms"] and "AES_GCM" in found["mechanisms_tried"]
    assert found["mechanisms_listed_that_do_not_work"] == []
    json.dumps(found)
    # Nothing is left behind in the token, and the mark of the PIN where the gateway looks for it.
    assert run_program(rig.settings, "list", "1234567890", "") == before
    assert directory.stat().st_mode & 0o777 == 0o700
    assert len(list(directory.glob("pin-*.json"))) == 1


async def test_what_the_module_does_not_survive_is_a_fact(tmp_path: Path) -> None:
    rig = Rig(MAKERS["softhsm"](tmp_path), tmp_path)
    rig.rules(
        "function=C_WrapKey count=2 action=segv",
        NO_RSA,
        "sessions_max=9",
    )
    found = await probe(rig.settings, rig.directory)
    assert found["wrap:AES_KEY_WRAP"] == "the module crashes or hangs (!)"
    assert found["wrap:AES_KEY_WRAP_PAD"] == "the module crashes or hangs (!)"
    assert found["wrap_then_unwrap:AES_KEY_WRAP"] == "ok"
    assert found["generate:RSA_3072"].startswith("no: ")
    assert "sign:RSA_3072:RSA_PSS_SHA_256" not in found
    assert found["generate:EC_P384"] == "ok"
    assert found["sessions"] == "6 more than a worker has, then SESSION_COUNT"
    assert object_files(rig) == []


def test_the_command_shows_the_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rig = Rig(MAKERS["softhsm"](tmp_path), tmp_path)
    rig.rules(NO_RSA)
    config = tmp_path / "hsmux.toml"
    environment = ", ".join(f'{n} = "{v}"' for n, v in rig.settings.environment.items())
    config.write_text(
        CONFIG.format(
            directory=tmp_path,
            module=rig.settings.module,
            pin=rig.settings.pin_path(),
            workers=1,
            environment=f"{{ {environment} }}",
        )
    )
    command = [str(HSMUX), "hsm", "probe", "--config", str(config), "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["token"] == "test" and found["gcm_bad_tag"] == "GENERAL_ERROR"
    # A table has a row for each fact, and every fact is a short text or a list of names.
    show_record(found, Settings())
    shown = capsys.readouterr().out
    assert all(name in shown for name in found)
    assert all(isinstance(value, str | list) for value in found.values())
