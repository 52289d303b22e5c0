"""The heap's fixed sizes: what hashing a PIN in threads took goes back to the operating system."""

import subprocess
import sys

PROGRAM = """
import hashlib, sys, threading
from pathlib import Path
from hsmux_gateway.heap import fix_heap_sizes

def resident_kib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))

def hash_pins():
    for _ in range(3):
        hashlib.scrypt(b"1234", salt=bytes(16), n=2**13, r=8, p=1)

if sys.argv[1] == "fixed":
    assert fix_heap_sizes()
before = resident_kib()
thread = threading.Thread(target=hash_pins)
thread.start()
thread.join()
print(resident_kib() - before)
"""

SCRYPT_KIB = 8 * 1024


def grown_kib(kind: str) -> int:
    command = [sys.executable, "-c", PROGRAM, kind]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_hashed_pins_leave_nothing_behind() -> None:
    assert grown_kib("as it is") >= SCRYPT_KIB
    assert grown_kib("fixed") < SCRYPT_KIB / 4


def test_a_daemon_loads_nothing_that_draws() -> None:
    program = "import sys, hsmux_gateway.command; print({'rich', 'pygments'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (loaded.returncode, loaded.stdout) == (0, "set()\n"), loaded.stderr
