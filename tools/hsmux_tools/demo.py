"""`tools/dev demo`: the main job on real input, in a gateway of its own that is gone afterwards.

It does what an application does, through the public client only: encrypts text files line by line
with a hardware and a software key, decrypts and compares them, tries what must be refused, and
signs a file that `openssl` verifies. In the middle of it an HSM worker is killed, which no request
may notice. The profile is written into the demo's own directory, so the caller's profiles stay as
they are.
"""

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from hsmux import Client, Encrypted, HsmuxError, InvalidArgument, InvalidCiphertext, Key

from .failure import Failure
from .own_gateway import own_gateway, workers_of

__all__ = ["main"]

RESTART_TIMEOUT_S: Final = 30.0
LICENSES: Final = Path("/usr/share/common-licenses")
CONTEXT: Final = {"table": "lines"}


class DemoFailed(Exception):
    """Something is not as it must be; the text says what."""


class Row(NamedTuple):
    """One line of the table at the end."""

    what: str
    records: int
    elapsed_s: float | None


def kill_worker(gateway_pid: int) -> None:
    """Kill one HSM worker, as the kernel would when memory runs out."""
    workers = workers_of(gateway_pid)
    if not workers:
        raise DemoFailed("there is no HSM worker to kill")
    os.kill(workers[0], signal.SIGKILL)


def input_files(root: Path) -> list[Path]:
    """README.md of a checkout and the licence texts of a Debian system."""
    licenses = sorted(path for path in LICENSES.glob("*") if path.is_file())
    return [path for path in (root / "README.md",) if path.is_file()] + licenses


def encrypt_files(
    client: Client, key: Key, files: list[Path], after_first: Callable[[], None]
) -> dict[Path, list[Encrypted]]:
    """Every file, line by line; `after_first` is called while most of them are still to be done."""
    sealed: dict[Path, list[Encrypted]] = {}
    for path in files:
        lines = path.read_bytes().splitlines(keepends=True)
        results = client.encrypt_many(key, lines, context=CONTEXT)
        sealed[path] = [_done(result, path) for result in results]
        if len(sealed) == 1:
            after_first()
    return sealed


def _done(result: Encrypted | HsmuxError, path: Path) -> Encrypted:
    if isinstance(result, HsmuxError):
        raise DemoFailed(f"a line of {path} was not encrypted: {result}")
    return result


def check_files(client: Client, sealed: dict[Path, list[Encrypted]]) -> None:
    """Decrypt every file and compare its SHA-256 with that of the original."""
    for path, envelopes in sealed.items():
        digest = hashlib.sha256()
        for result in client.decrypt_many([e.ciphertext for e in envelopes], context=CONTEXT):
            if isinstance(result, HsmuxError):
                raise DemoFailed(f"a line of {path} does not open: {result}")
            digest.update(result.plaintext)
        if digest.digest() != hashlib.sha256(path.read_bytes()).digest():
            raise DemoFailed(f"{path} came back changed")


def check_refusals(client: Client, envelope: bytes) -> int:
    """What must not open: a flipped byte, another context, a truncated envelope."""
    flipped = envelope[:-1] + bytes([envelope[-1] ^ 1])
    attempts: list[tuple[str, bytes, dict[str, str]]] = [
        ("a flipped byte", flipped, CONTEXT),
        ("a wrong context", envelope, {"table": "others"}),
        ("a truncated envelope", envelope[:-1], CONTEXT),
        ("half a header", envelope[:12], CONTEXT),
    ]
    for name, ciphertext, context in attempts:
        try:
            client.decrypt(ciphertext, context=context)
        except (InvalidCiphertext, InvalidArgument):
            continue
        raise DemoFailed(f"{name} was not refused")
    return len(attempts)


def check_signature(client: Client, key: Key, path: Path, directory: Path) -> None:
    """Sign a file; `openssl` verifies it with the public key alone."""
    # The client sends messages up to 64 KiB; of a longer one it would send the digest.
    digest = hashlib.sha256(path.read_bytes()).digest()
    signed = client.sign(key, digest, algorithm="ECDSA_SHA_256", digest=True)
    public, signature = directory / "public.pem", directory / "signature"
    public.write_text(client.public_key(key).pem)
    signature.write_bytes(signed.signature)
    command = ["openssl", "dgst", "-sha256", "-verify", str(public), "-signature", str(signature)]
    run = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise DemoFailed(f"openssl does not agree: {run.stdout}{run.stderr}".strip())


def wait_for_restart(client: Client) -> None:
    """Wait until the gateway has replaced the worker that was killed."""
    end = time.monotonic() + RESTART_TIMEOUT_S
    while time.monotonic() < end:
        (token,) = client.status().tokens
        if token.restarts and token.workers == 2:
            return
        time.sleep(0.05)
    raise DemoFailed("the killed worker was not replaced")


def run_demo(client: Client, gateway_pid: int, files: list[Path], directory: Path) -> list[Row]:
    """Everything, in order; the rows of the table."""
    keys = {
        "hardware": client.create_key(spec="AES_256", storage="hsm", alias="alias/demo-hardware"),
        "software": client.create_key(spec="AES_256", alias="alias/demo-software"),
    }
    signer = client.create_key(spec="EC_P256", storage="hsm", alias="alias/demo-signer")
    kills: dict[str, Callable[[], None]] = {"hardware": lambda: kill_worker(gateway_pid)}
    rows = []
    for protection, key in keys.items():
        began = time.perf_counter()
        sealed = encrypt_files(client, key, files, kills.get(protection, lambda: None))
        encrypted = time.perf_counter()
        check_files(client, sealed)
        decrypted = time.perf_counter()
        count = sum(len(envelopes) for envelopes in sealed.values())
        rows.append(Row(f"encrypt lines, {protection} key", count, encrypted - began))
        rows.append(Row(f"decrypt and compare, {protection} key", count, decrypted - encrypted))
        envelope = next(envelopes[0] for envelopes in sealed.values() if envelopes)
        refused = check_refusals(client, envelope.ciphertext)
        rows.append(Row(f"changed envelopes refused, {protection} key", refused, None))
    wait_for_restart(client)
    rows.append(Row("HSM workers killed and replaced, no request failed", 1, None))
    check_signature(client, signer, files[-1], directory)
    rows.append(Row("files signed in the HSM, verified by openssl", 1, None))
    return rows


def table(rows: list[Row]) -> str:
    """The rows as aligned text."""
    lines = [("what", "records", "records/s")]
    for row in rows:
        rate = "" if row.elapsed_s is None else f"{row.records / row.elapsed_s:,.0f}"
        lines.append((row.what, f"{row.records:,}", rate))
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    return "\n".join(
        f"{what:<{widths[0]}}  {records:>{widths[1]}}  {rate:>{widths[2]}}".rstrip()
        for what, records, rate in lines
    )


def main() -> NoReturn:
    """Run the demo and exit: 0 when everything was as it must be."""
    root = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory(prefix="hsmux-demo-") as name:
        directory = Path(name)
        os.environ["XDG_CONFIG_HOME"] = str(directory / "config")
        try:
            with own_gateway(directory) as pid, Client.connect(profile="dev") as client:
                rows = run_demo(client, pid, input_files(root), directory)
        except (DemoFailed, Failure, HsmuxError) as error:
            print(f"demo failed: {error}", file=sys.stderr)
            sys.exit(1)
    print(f"{table(rows)}\ndemo ok")
    sys.exit(0)


if __name__ == "__main__":
    main()
