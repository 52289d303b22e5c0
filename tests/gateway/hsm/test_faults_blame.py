"""A good ciphertext is not called invalid, wherever errors fall that look like bad data.

The worker's operations run in one process here, without a pool, so that every place in the sequence
of calls can be tried.
"""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from hsmux_gateway.hsm.column_run import DONE, INVALID, UNAVAILABLE
from hsmux_gateway.hsm.settings import TokenSettings
from tests.gateway.hsm.conftest import MAKERS, PIN
from tests.gateway.hsm.known_keys import make_known_keys
from tests.gateway.hsm.rig import Rig

FUNCTIONS: Final = ("C_DecryptInit", "C_Decrypt when=after")
"""Where an error leaves the session as it was, so that nothing else betrays it."""

OWN_CODES: Final = {"softhsm": "CKR_GENERAL_ERROR", "softokn": "CKR_ENCRYPTED_DATA_INVALID"}
"""What each module answers to bad data."""

DATA_CODES: Final = (*OWN_CODES.values(), "CKR_DATA_INVALID")

CALLS: Final = 11
"""Calls of a function until the first of two items is blamed, and some more."""

PAGE_CALLS: Final = 8
"""The same for a root key."""

START_CALLS: Final = 9
"""Calls of a function until a worker is ready, and one more: then the error comes too late."""

TRIALS = """
import json, os, sys, time
import hsmux_native
import pkcs11
from hsmux_gateway.hsm.application import Application
from hsmux_gateway.hsm.failures import Failure
from hsmux_gateway.hsm.operations import Operations
from hsmux_gateway.hsm.progress import Progress
from hsmux_native.faults import write_rules
from hsmux_native.pkcs11 import SecretPage
from hsmux_protocol.columns import pack_column, unpack_column

label, pin, cka_id, proof, text = sys.argv[1:]
module, rules = hsmux_native.adapter_path(faults=True), os.environ["HSMUX_ADAPTER_RULES"]
key = [bytes.fromhex(cka_id), "AES_256", bytes.fromhex(proof)]
aads, far = pack_column([b"aad"]), time.monotonic_ns() + 10**12
page, progress = SecretPage(), Progress()

def start():
    pkcs11.lib(module).reinitialize()
    application = Application(module, label)
    application.log_in(pin, is_single=False)
    return Operations(application, page, progress, 1)

def crypt(operation, column):
    number, kind, *rest = operations.do(1, operation, far, [*key, column, aads, [far]])
    return rest[0] if kind == "done" else [b"", b""]

def decrypt():
    return list(crypt("decrypt", good)[1])

def open_page():
    number, kind, *rest = operations.do(1, "open_page", far, [*key, b"aad", sealed])
    return [1 - rest[0]] if kind == "done" else []

operations = start()
good, statuses = crypt("encrypt", pack_column([b"text", bytes.fromhex(text)]))
assert not any(statuses), "nothing failed yet"
sealed = operations.do(1, "seal_page", far, [*key, b"aad", 32])[2]

for line in sys.stdin:
    trial = json.loads(line)
    answer = None
    if operations is None or operations.ending is not None or trial["start"]:
        operations = None
        write_rules(rules, *trial["start"])
        try:
            operations = start()
        except (Failure, pkcs11.exceptions.PKCS11Error):
            pass
    if operations is not None:
        write_rules(rules, *trial["rules"])
        answer = open_page() if trial["page"] else decrypt()
    write_rules(rules)
    print(json.dumps(answer), flush=True)
"""


class Trials:
    """Trials in a token with one key.

    Args:
        module: Of `MAKERS`.
        directory: For its files.
    """

    def __init__(self, module: str, directory: Path) -> None:
        self._rig = Rig(MAKERS[module](directory), directory)
        (self._known,) = make_known_keys(self._rig.settings, PIN, 1)

    def run(
        self, trials: Sequence[tuple[list[str], list[str]]], *, is_page: bool = False
    ) -> list[list[int] | None]:
        """What two good ciphertexts are said to be in each trial, or one that a root key sealed.

        Args:
            trials: Rules while a worker starts, if it has to; rules while it decrypts.
            is_page: A root key's.

        Returns:
            Statuses; none: no worker started.
        """
        names = ("start", "rules", "page")
        lines = [json.dumps(dict(zip(names, (*t, is_page), strict=True))) + "\n" for t in trials]
        settings, key = self._rig.settings, self._known.key
        done = subprocess.run(
            [
                *(sys.executable, "-c", TRIALS, settings.token_label, PIN),
                *(key.cka_id.hex(), key.proof.hex(), bytes(300).hex()),
            ],
            input="".join(lines),
            env={**os.environ, **settings.environment, **self._adapter(settings)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(answers) == len(trials)
        return answers

    @staticmethod
    def _adapter(settings: TokenSettings) -> dict[str, str]:
        parameters = settings.parameters
        given = {"HSMUX_ADAPTER_PARAMETERS": parameters} if parameters else {}
        return {"HSMUX_ADAPTER_MODULE": settings.module, **given}


@pytest.fixture
def trials(request: pytest.FixtureRequest, tmp_path: Path) -> Trials:
    return Trials(request.param, tmp_path)


def returning(function: str, code: str, skip: int, count: int) -> str:
    """A rule."""
    return f"function={function} skip={skip} count={count} action=return code={code}"


def bursts(function: str, code: str, calls: int) -> list[list[str]]:
    """Errors one after the other: of every length, from every call on."""
    return [
        [returning(function, code, skip, count)]
        for skip in range(calls)
        for count in range(1, calls)
    ]


def pairs(
    function: str, code: str, calls: int, counts: tuple[int, ...] = (1, 2)
) -> list[list[str]]:
    """Two bursts of so many errors: what one answers the other does not count."""
    return [
        [returning(function, code, first, count), returning(function, code, second, other)]
        for first in range(calls)
        for second in range(first, calls)
        for count, other in itertools.product(counts, repeat=2)
    ]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("trials", "code"),
    [
        pytest.param(module, code, marks=() if OWN_CODES[module] == code else pytest.mark.long)
        for module in MAKERS
        for code in DATA_CODES
    ],
    indirect=["trials"],
)
def test_no_burst_and_no_two_bursts_make_a_good_ciphertext_invalid(
    trials: Trials, function: str, code: str
) -> None:
    rules = [*bursts(function, code, CALLS), *pairs(function, code, CALLS)]
    answers = trials.run([([], lines) for lines in rules])
    wrong = [r for r, answer in zip(rules, answers, strict=True) if answer and INVALID in answer]
    assert [DONE, DONE] in answers
    assert wrong == []


@pytest.mark.parametrize("trials", ["softhsm"], indirect=True)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_burst_and_no_two_bursts_make_what_a_root_sealed_invalid(
    trials: Trials, function: str
) -> None:
    code = OWN_CODES["softhsm"]
    rules = [*bursts(function, code, PAGE_CALLS), *pairs(function, code, PAGE_CALLS)]
    answers = trials.run([([], lines) for lines in rules], is_page=True)
    assert [r for r, answer in zip(rules, answers, strict=True) if answer == [INVALID]] == []
    assert [DONE] in answers and [] in answers


@pytest.mark.parametrize("trials", MAKERS, indirect=True)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_errors_at_the_start_are_not_taken_for_what_the_module_says_of_bad_data(
    trials: Trials, function: str
) -> None:
    code = "CKR_DEVICE_ERROR"
    starts = [*bursts(function, code, START_CALLS), *pairs(function, code, START_CALLS, (1,))]
    # What is large fails for good, and the proof of the key is small.
    large = f"function=C_Decrypt when=after min_size=200 action=return code={code}"
    answers = trials.run([(lines, [large]) for lines in starts])
    told = [(lines, answer) for lines, answer in zip(starts, answers, strict=True) if answer]
    assert [lines for lines, answer in told if INVALID in answer] == []
    assert [DONE, UNAVAILABLE] in [answer for _, answer in told]
