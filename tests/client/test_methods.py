"""Both clients have the same methods, and every operation has one."""

import inspect
import subprocess
import sys

import pytest

import hsmux
from hsmux import Client
from hsmux.trio_client import TrioClient
from hsmux_protocol.operations import OPERATIONS

METHOD_OF = {
    "encrypt_batch": "encrypt_many",
    "decrypt_batch": "decrypt_many",
    "get_public_key": "public_key",
    "show_status": "status",
}
"""Methods that are not called as their operation is."""

OTHERS = {"connect", "close"}


def methods_of(client: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(client, callable) if not name.startswith("_")}


def test_every_operation_has_a_method() -> None:
    expected = {METHOD_OF.get(name, name) for name in OPERATIONS}
    assert methods_of(Client) == methods_of(TrioClient) == expected | OTHERS


@pytest.mark.parametrize("name", sorted(METHOD_OF.get(name, name) for name in OPERATIONS))
def test_signatures_are_equal(name: str) -> None:
    blocking, awaited = getattr(Client, name), getattr(TrioClient, name)
    assert inspect.signature(blocking) == inspect.signature(awaited)
    assert inspect.iscoroutinefunction(awaited) and not inspect.iscoroutinefunction(blocking)
    operation = next(o for o in OPERATIONS if METHOD_OF.get(o, o) == name)
    parameters = inspect.signature(blocking).parameters
    assert parameters["timeout_s"].default is None
    assert ("idempotency_token" in parameters) == OPERATIONS[operation].changes


def test_the_client_loads_nothing_of_the_gateway() -> None:
    program = (
        "import sys, hsmux; hsmux.Client; "
        "print([m for m in ('trio', 'cffi', 'cryptography', 'hsmux_native', 'hsmux_gateway')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout == b"[]\n"


def test_without_trio_the_trio_client_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['trio'] = None\nimport hsmux\n"
        "try:\n    hsmux.TrioClient\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert b"pip install 'hsmux[trio]'" in done.stdout
    assert set(hsmux.__all__) >= {"Client", "TrioClient", "HsmuxError"}
