"""What each verb does with files, standard input and the client."""

import base64
import json
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_public_key
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hsmux.profiles import default_profile, list_profiles, load_profile
from hsmux_gateway.errors import OperatorError
from hsmux_protocol.envelope import HEADER_SIZE, SUITES, Suite, make_header
from hsmux_protocol.limits import ITEM_SIZE_MAX
from hsmux_protocol.references import format_key_id

from .conftest import Run
from .twin import Deployment

EVERY_BYTE = bytes(range(256)) + b"\r\n\n"
ECDSA = ("--algorithm", "ECDSA_SHA_256")


@pytest.fixture
def key(deployment: Deployment) -> str:
    deployment.connect().create_key(spec="AES_256", usage="ENCRYPT_DECRYPT", alias="alias/first")
    return "alias/first"


@pytest.fixture
def signer(deployment: Deployment) -> str:
    deployment.connect().create_key(
        spec="EC_P256", usage="SIGN_VERIFY", protection="hardware", alias="alias/signer"
    )
    return "alias/signer"


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def check_refused(result: Result, exit_code: int, *pieces: str) -> None:
    """One line, the exit code, and what the line says."""
    assert result.exit_code == exit_code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("hsmux: ") and result.stderr.count("\n") == 1
    assert all(piece in result.stderr for piece in pieces)


class TestCipher:
    def test_standard_input_to_standard_output(self, key: str, run: Run) -> None:
        envelope = run("encrypt", key, input=EVERY_BYTE).stdout_bytes
        decrypted = run("decrypt", input=envelope)
        assert decrypted.stdout_bytes == EVERY_BYTE
        assert decrypted.stderr == ""

    def test_files(self, key: str, run: Run, tmp_path: Path) -> None:
        (tmp_path / "in").write_bytes(EVERY_BYTE)
        assert run("encrypt", key, "in", "--out", "envelope").output == ""
        assert run("decrypt", "envelope", "--out", "plain").output == ""
        assert (tmp_path / "plain").read_bytes() == EVERY_BYTE
        assert mode_of(tmp_path / "plain") == 0o600

    def test_base64(self, key: str, run: Run) -> None:
        text = run("encrypt", key, "--base64", input=EVERY_BYTE).stdout
        assert text.isascii() and text.endswith("\n")
        wrapped = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
        assert run("decrypt", input=wrapped.encode()).stdout_bytes == EVERY_BYTE
        damaged = run("decrypt", input=text.encode()[:40] + b"*")
        check_refused(damaged, 2, "standard input: damaged base64")
        plain = run("decrypt", "--base64", input=text.encode()).stdout
        assert base64.b64decode(plain) == EVERY_BYTE

    def test_a_record_has_the_ciphertext(self, key: str, run: Run) -> None:
        shown = json.loads(run("encrypt", key, "-o", "json", input=b"hello").stdout)
        assert shown["key_version"] == 1
        result = run("decrypt", "--field", "plaintext", input=shown["ciphertext"].encode())
        assert base64.b64decode(result.stdout) == b"hello"

    def test_the_context_must_be_the_same(self, key: str, run: Run) -> None:
        words = ("-c", "table=users", "--context", "row=a=b")
        envelope = run("encrypt", key, *words, input=b"hello").stdout_bytes
        assert run("decrypt", "-c", "row=a=b", "-c", "table=users", input=envelope).exit_code == 0
        check_refused(run("decrypt", input=envelope), 7, "reference")
        check_refused(run("decrypt", "-c", "table=users", input=envelope), 7, "standard input: ")
        Path("record.hsmux").write_bytes(envelope)
        check_refused(run("decrypt", "record.hsmux"), 7, "hsmux: record.hsmux: ", "reference")

    @pytest.mark.parametrize("size", [0, 1, 30])
    def test_what_is_no_envelope_is_named_and_not_sent(
        self, size: int, key: str, deployment: Deployment, run: Run
    ) -> None:
        Path("record").write_bytes(run("encrypt", key, input=b"hello").stdout_bytes[:size])
        before = len(deployment.connections)
        check_refused(run("decrypt", "record"), 2, "hsmux: record: ")
        assert len(deployment.connections) == before

    def test_the_key_can_be_pinned(self, key: str, signer: str, run: Run) -> None:
        envelope = run("encrypt", key, input=b"hello").stdout_bytes
        assert run("decrypt", "--key", key, input=envelope).stdout == "hello"
        check_refused(run("decrypt", "--key", signer, input=envelope), 7)
        check_refused(run("decrypt", "--key", "alias/nobody", input=envelope), 3)

    @pytest.mark.parametrize("size", [0, ITEM_SIZE_MAX])
    def test_sizes_at_the_edge(self, size: int, key: str, run: Run) -> None:
        envelope = run("encrypt", key, input=bytes(size)).stdout_bytes
        assert run("decrypt", input=envelope).stdout_bytes == bytes(size)
        text = base64.encodebytes(envelope)
        assert run("decrypt", input=text).stdout_bytes == bytes(size)

    def test_too_much_is_refused_with_the_remedy(
        self, key: str, deployment: Deployment, run: Run
    ) -> None:
        before = len(deployment.calls)
        result = run("encrypt", key, input=bytes(ITEM_SIZE_MAX + 1))
        check_refused(result, 2, "standard input", "65536", "encrypt_many")
        check_refused(run("decrypt", input=b"hX\x01" + bytes(10**6)), 2, "not one envelope")
        assert len(deployment.calls) == before

    def test_random(self, deployment: Deployment, run: Run, tmp_path: Path) -> None:
        assert len(run("random", "32").stdout_bytes) == 32
        assert len(bytes.fromhex(run("random", "16", "--hex").stdout)) == 16
        run("random", "4096", "--out", "seed")
        assert (tmp_path / "seed").stat().st_size == 4096
        assert mode_of(tmp_path / "seed") == 0o600


class TestSigning:
    @pytest.mark.parametrize("size", [0, ITEM_SIZE_MAX, ITEM_SIZE_MAX + 1, 5 * ITEM_SIZE_MAX])
    def test_any_size(self, size: int, signer: str, run: Run, tmp_path: Path) -> None:
        message = tmp_path / "message"
        message.write_bytes(bytes(size))
        assert run("sign", signer, *ECDSA, "message", "--out", "signature").output == ""
        verify = ("verify", signer, *ECDSA, "--signature", "signature")
        assert run(*verify, "message").stdout == "valid\n"
        assert run(*verify, input=bytes(size)).stdout == "valid\n"
        check_refused(run(*verify, input=bytes(size) + b"."), 7)

    def test_a_signature_is_what_openssl_verifies(
        self, signer: str, run: Run, tmp_path: Path
    ) -> None:
        (tmp_path / "message").write_bytes(EVERY_BYTE * 300)
        run("sign", signer, *ECDSA, "message", "--out", "signature")
        run("key", "public", signer, "--out", "key.pem")
        line = ["openssl", "dgst", "-sha256", "-verify", "key.pem", "-signature", "signature"]
        done = subprocess.run([*line, "message"], cwd=tmp_path, capture_output=True, check=False)
        assert done.stdout == b"Verified OK\n"

    def test_base64_and_records(self, signer: str, run: Run, tmp_path: Path) -> None:
        text = run("sign", signer, *ECDSA, "--base64", input=b"m").stdout
        (tmp_path / "text").write_text(text)
        verify = ("verify", signer, *ECDSA, "--signature", "text")
        shown = run(*verify, "--base64", "-o", "json", input=b"m").stdout
        assert json.loads(shown) == {"valid": True, "algorithm": "ECDSA_SHA_256"}
        check_refused(run(*verify, input=b"m"), 7)
        (tmp_path / "text").write_text("*")
        check_refused(run(*verify, "--base64", input=b"m"), 2, "text: damaged base64")

    def test_a_digest_the_caller_made(self, signer: str, run: Run, tmp_path: Path) -> None:
        digest = subprocess.run(
            ["openssl", "dgst", "-sha256", "-binary"], input=b"m", capture_output=True, check=True
        ).stdout
        run("sign", signer, *ECDSA, "--digest", "--out", "signature", input=digest)
        verify = ("verify", signer, *ECDSA, "--signature", "signature")
        assert run(*verify, input=b"m").stdout == "valid\n"
        assert run(*verify, "--digest", input=digest).stdout == "valid\n"
        check_refused(run(*verify, "--digest", input=digest + b"."), 2, "has 32")


class TestKeys:
    def test_create_list_show(self, deployment: Deployment, run: Run) -> None:
        made = run(
            *("key", "create", "--spec", "EC_P256", "--storage", "hsm", "--alias", "alias/a"),
            *("--description", "for releases", "--tag", "team=build", "--field", "key_id"),
        ).stdout.strip()
        (key,) = deployment.keys
        assert (key.key_id, key.usage, key.protection) == (made, "SIGN_VERIFY", "hardware")
        assert (key.description, key.tags) == ("for releases", {"team": "build"})
        run("key", "create", "--spec", "AES_256")
        assert (deployment.keys[1].protection, deployment.keys[1].usage) == (
            "software",
            "ENCRYPT_DECRYPT",
        )
        assert len(run("key", "list").stdout.splitlines()) == 3
        assert run("key", "show", "alias/a", "--field", "key_id").stdout == f"{made}\n"
        check_refused(run("key", "show", "alias/nobody"), 3, "alias/nobody")

    def test_public(self, signer: str, run: Run) -> None:
        pem = run("key", "public", signer).stdout_bytes
        der = run("key", "public", signer, "--der").stdout_bytes
        assert load_pem_public_key(pem) == load_der_public_key(der)
        shown = json.loads(run("key", "public", signer, "-o", "json").stdout)
        assert shown["pem"].encode() == pem and base64.b64decode(shown["der"]) == der
        assert base64.b64decode(run("key", "public", signer, "--der", "--base64").stdout) == der
        check_refused(run("key", "public", signer, "--base64"), 2, "--der")


class TestAccess:
    CREATE = ("client-key", "create", "--access-point", "billing", "--out", "key")

    def test_access_points(self, deployment: Deployment, run: Run) -> None:
        known = ("--mtls-uri", "spiffe://example.org/a", "--mtls-spki", ":".join(["5A"] * 32))
        made = run("access-point", "create", "billing", "--description", "invoices", *known)
        assert "spiffe://example.org/a" in made.stdout and "5a" * 32 in made.stdout
        assert deployment.access_points[0].description == "invoices"
        assert run("access-point", "list", "--field", "name").stdout == "billing\n"

    def test_limits_of_an_access_point(self, deployment: Deployment, run: Run) -> None:
        limits = ("--requests-per-s", "500", "--in-flight", "64")
        made = json.loads(run("access-point", "create", "billing", *limits, "-o", "json").stdout)
        assert [made[name] for name in ("requests_per_s", "bytes_per_s", "in_flight")] == [
            500,
            0,
            64,
        ]
        for wrong in ("-1", "10000001", "many"):
            result = run("access-point", "create", "other", "--requests-per-s", wrong)
            check_refused(result, 2, "--requests-per-s")
        assert len(deployment.access_points) == 1

    def test_an_update_of_nothing_is_refused(self, deployment: Deployment, run: Run) -> None:
        check_refused(run("access-point", "update", "billing"), 2, "at least one option")
        assert deployment.calls == []

    def test_a_client_key_with_its_files(
        self, deployment: Deployment, run: Run, tmp_path: Path
    ) -> None:
        result = run(*self.CREATE, "--validity-days", "7", "--field", "client_key_id")
        (issued,) = deployment.client_keys
        assert result.stdout == f"{issued.client_key_id}\n"
        assert (issued.not_after - issued.not_before).days == 7
        assert "PRIVATE KEY" in (tmp_path / "key.key").read_text()
        assert mode_of(tmp_path / "key.key") == 0o600
        assert (tmp_path / "key.pem").read_text() == "certificate\n"
        assert (tmp_path / "key-ca.pem").read_text() == "ca\n"
        assert "PRIVATE" not in result.output

    def test_a_request_keeps_the_private_key_here(
        self, deployment: Deployment, run: Run, tmp_path: Path
    ) -> None:
        (tmp_path / "key.key").write_text("mine")
        (tmp_path / "request").write_bytes(b"csr")
        assert run(*self.CREATE, "--csr", "request").exit_code == 0
        assert (tmp_path / "key.key").read_text() == "mine"
        (tmp_path / "request").write_bytes(bytes(20000))
        (tmp_path / "key.pem").unlink()
        check_refused(run(*self.CREATE, "--csr", "request"), 2, "request", "PKCS#10")

    def test_a_profile_for_it(
        self, deployment: Deployment, run: Run, tmp_path: Path, identity: None
    ) -> None:
        paths = [str(tmp_path / name) for name in ("a.pem", "a.key", "ca.pem")]
        run(
            *("profile", "add", "admin", "--address", "gw.example:7411", "--server-name", "gw"),
            *("--certificate", paths[0], "--private-key", paths[1], "--ca", paths[2]),
        )
        assert run(*self.CREATE, "--profile-name", "billing").exit_code == 0
        saved = load_profile("billing")
        assert (saved.addresses, saved.server_name) == (("gw.example:7411",), "gw")
        assert saved.private_key == str(tmp_path / "key.key")
        assert default_profile() == "admin"

    @pytest.mark.parametrize("name", ["admin", "a b"])
    def test_a_profile_that_is_there_stays_and_nothing_is_issued(
        self, name: str, deployment: Deployment, run: Run, identity: None
    ) -> None:
        files = ("--certificate", "a.pem", "--private-key", "a.key", "--ca", "ca.pem")
        run("profile", "add", "admin", "--address", "gw.example:7411", *files)
        before = load_profile("admin")
        words = (*self.CREATE, "--profile-name", name)
        check_refused(run(*words), 6 if name == "admin" else 2, name)
        assert load_profile("admin") == before
        assert deployment.client_keys == [] and not Path("key.pem").exists()
        if name == "admin":
            assert run(*words, "--replace").exit_code == 0
            assert load_profile("admin") != before

    @pytest.mark.parametrize("name", ["key.pem", "key.key", "key-ca.pem"])
    def test_nothing_is_overwritten_nor_issued(
        self, name: str, deployment: Deployment, run: Run, tmp_path: Path
    ) -> None:
        (tmp_path / name).write_text("old")
        check_refused(run(*self.CREATE), 6, f"{name} is there already")
        assert (tmp_path / name).read_text() == "old"
        assert deployment.client_keys == []

    def test_a_directory_that_is_not_there(self, deployment: Deployment, run: Run) -> None:
        words = ("client-key", "create", "--access-point", "billing", "--out", "nowhere/key")
        check_refused(run(*words), 2, "nowhere")
        assert deployment.client_keys == []

    def test_an_issued_key_that_cannot_be_saved_can_be_revoked(
        self, deployment: Deployment, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(path: object, data: bytes, *, secret: bool = False) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("hsmux_tools.verbs.access.write_file", fail)
        result = run(*self.CREATE)
        (issued,) = deployment.client_keys
        check_refused(result, 1, f"hsmux client-key revoke {issued.client_key_id}")

    def test_renew(self, deployment: Deployment, run: Run, tmp_path: Path) -> None:
        run(*self.CREATE)
        (first,) = deployment.client_keys
        renew = ("client-key", "renew", first.client_key_id)
        assert run(*renew, "--out", "second", "--field", "renews").stdout == (
            f"{first.client_key_id}\n"
        )
        assert "PRIVATE KEY" in (tmp_path / "second.key").read_text()
        assert mode_of(tmp_path / "second.key") == 0o600
        (tmp_path / "request").write_bytes(b"csr")
        words = (*renew, "--csr", "request", "--out", "third", "--force")
        assert run(*words).exit_code == 0 and not (tmp_path / "third.key").exists()
        assert ("force", None) in deployment.calls
        check_refused(run(*words), 6, "third.pem is there already")
        check_refused(run(*renew), 2, "--out PREFIX")
        check_refused(run("client-key", "renew", "--csr", "request"), 2, "--out PREFIX")
        assert len(deployment.client_keys) == 3

    def test_revoke(self, deployment: Deployment, run: Run) -> None:
        run(*self.CREATE)
        (issued,) = deployment.client_keys
        assert run("client-key", "revoke", issued.client_key_id).exit_code == 0
        assert deployment.calls[-1][0] == "revoke_client_key"
        assert run("client-key", "list", "--field", "access_point").stdout == "billing\n"


@pytest.mark.usefixtures("identity")
class TestProfiles:
    def add(self, run: Run, name: str, *words: str) -> Result:
        files = ("--certificate", "a.pem", "--private-key", "a.key", "--ca", "ca.pem")
        return run("profile", "add", name, "--address", "gw:7411", *files, *words)

    def test_add_list_use_show(self, run: Run, tmp_path: Path) -> None:
        assert self.add(run, "one").exit_code == 0
        assert self.add(run, "two").exit_code == 0
        assert list_profiles()["two"].certificate == str(tmp_path / "a.pem")
        assert default_profile() == "one"
        assert run("profile", "use", "two").exit_code == 0
        listed = json.loads(run("profile", "list", "-o", "json").stdout)
        assert [(p["name"], p["default"]) for p in listed] == [("one", False), ("two", True)]
        assert self.add(run, "three", "--default").exit_code == 0
        assert default_profile() == "three"
        check_refused(self.add(run, "three"), 6, "three", "--replace", "gw:7411")
        assert self.add(run, "three", "--replace").exit_code == 0

    def test_show_says_which_one_would_be_used(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("one", "two", "three"):
            self.add(run, name)
        shown = ("profile", "show", "--field", "name")
        assert run(*shown).stdout == "one\n"
        monkeypatch.setenv("HSMUX_PROFILE", "two")
        assert run(*shown).stdout == "two\n"
        assert run("--profile", "three", *shown).stdout == "three\n"
        assert run(*shown, "one").stdout == "one\n"

    def test_what_is_wrong_is_named(self, run: Run) -> None:
        check_refused(run("profile", "show"), 3, "hsmux dev", "hsmux profile add")
        check_refused(run("profile", "use", "nobody"), 3, "nobody", "known: none")
        self.add(run, "billing")
        for words in (("profile", "use", "biling"), ("profile", "show", "biling")):
            check_refused(run(*words), 3, "did you mean 'billing'?")
        check_refused(self.add(run, "a b"), 2, "a b")

    def test_files_that_are_gone_name_their_profile(self, run: Run, tmp_path: Path) -> None:
        for name in ("one", "two"):
            assert self.add(run, name).exit_code == 0
        (tmp_path / "ca.pem").unlink()
        check_refused(run("status"), 2, "profile one: ca: ", "cannot be read")
        check_refused(run("--profile", "two", "status"), 2, "profile two: ca: ")

    @pytest.mark.parametrize("name", ["a.pem", "a.key", "ca.pem"])
    @pytest.mark.parametrize("content", [None, b"nonsense"])
    def test_the_files_are_looked_at(self, name: str, content: bytes | None, run: Run) -> None:
        Path(name).unlink()
        if content is not None:
            Path(name).write_bytes(content)
            Path(name).chmod(0o600)
        check_refused(self.add(run, "one"), 2, name)
        assert list_profiles() == {}

    def test_a_private_key_of_another_certificate_is_refused(self, run: Run) -> None:
        line = "openssl ecparam -name prime256v1 -genkey -noout -out a.key"
        subprocess.run(line.split(), check=True, capture_output=True)
        check_refused(self.add(run, "one"), 2, "a.key", "KEY_VALUES_MISMATCH")

    @pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
    def test_a_private_key_that_others_can_use_is_refused(self, mode: int, run: Run) -> None:
        Path("a.key").chmod(mode)
        check_refused(self.add(run, "one"), 2, f"(mode {mode:04o}): chmod 600 a.key")
        Path("a.key").chmod(0o400)
        assert self.add(run, "one").exit_code == 0


class TestInspect:
    @pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
    def test_an_envelope_is_explained(self, run: Run, suite: Suite) -> None:
        body = bytes(suite.overhead_size - HEADER_SIZE + 100)
        envelope = make_header(suite, bytes(16), 3) + body
        for data in (envelope, base64.encodebytes(envelope)):
            shown = json.loads(run("inspect", "-o", "json", input=data).stdout)
            assert (shown["suite"], shown["key_version"]) == (suite.name, 3)
            assert shown["key_id"] == format_key_id(bytes(16))
            assert shown["envelope_bytes"] == len(envelope)
            assert shown["plaintext_bytes"] == (100 if suite.tag_size else None)

    @settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.binary(max_size=100) | st.binary(max_size=60).map(lambda b: b"hX\x01" + b))
    def test_garbage_is_one_line(self, data: bytes, run: Run) -> None:
        result = run("inspect", input=data)
        if result.exit_code != 0:
            check_refused(result, 2)
        assert result.exception is None or isinstance(result.exception, SystemExit)

    def test_no_connection_is_made(self, deployment: Deployment, run: Run, key: str) -> None:
        envelope = run("encrypt", key, input=b"hello").stdout_bytes
        before = len(deployment.connections)
        assert run("inspect", "--field", "plaintext_bytes", input=envelope).stdout == "5\n"
        assert len(deployment.connections) == before


class TestGateway:
    CONFIG = """
        instance_dir = "{0}/instance"
        server.listen = ["0.0.0.0:7411"]
        root.file = "{0}/root.key"
    """

    def test_a_configuration_in_order(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "gw.toml").write_text(self.CONFIG.format(tmp_path))
        result = run("check-config", "--config", "gw.toml")
        assert result.exit_code == 0
        said = (
            "hsmux: gw.toml is in order, as far as that shows without asking a token or the store\n"
        )
        assert result.stderr == said
        (tmp_path / "pin").touch(mode=0o600)
        with (tmp_path / "gw.toml").open("a") as file:
            file.write(
                f'hsm.main = {{ module = "{tmp_path}/pin", token_label = "t", '
                f'pin_file = "{tmp_path}/pin" }}\n'
            )
        shown = run("check-config", "--config", "gw.toml").stderr
        assert shown == said + "hsmux:   hsmux hsm probe --config gw.toml --token main\n"

    def test_a_configuration_with_a_fault(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "gw.toml").write_text(self.CONFIG.format(tmp_path) + "server.lisen = []\n")
        check_refused(run("check-config", "--config", "gw.toml"), 2, "lisen")
        check_refused(run("serve", "--config", "nowhere.toml"), 2, "nowhere.toml")

    def test_init_saves_the_administrators_profile(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "gw.toml").write_text(self.CONFIG.format(tmp_path))
        for _ in range(2):
            result = run("--profile", "ops", "init", "--config", "gw.toml", "-o", "json")
            assert result.exit_code == 0, result.output
            assert json.loads(result.stdout)["profile"] == "ops"
            last = result.stderr
        assert "hsmux --profile ops status" in last
        assert "nothing was made" in last
        saved = load_profile("ops")
        assert saved.addresses == ("127.0.0.1:7411",)
        assert all(Path(path).exists() for path in (saved.certificate, saved.ca))
        assert mode_of(Path(saved.private_key)) == 0o600

    def test_init_replaces_no_profile_of_another_deployment(
        self, run: Run, tmp_path: Path, identity: None
    ) -> None:
        (tmp_path / "gw.toml").write_text(self.CONFIG.format(tmp_path))
        TestProfiles().add(run, "ops")
        init = ("--profile", "ops", "init", "--config", "gw.toml")
        check_refused(run(*init), 6, "ops", "--replace")
        assert not (tmp_path / "instance").exists()
        result = run(*init, "--replace")
        assert result.exit_code == 0 and "made the root key, the CA" in result.stderr
        assert load_profile("ops").server_name == "localhost"

    def test_hsm_verbs_show_what_the_gateway_answers(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import hsmux_gateway.command as gateway

        asked = []

        def answer(config: Path, token: str | None) -> object:
            asked.append((str(config), token))
            return {"token": "main", "mechanisms": 3} if token else "done"

        for function in ("hsm_probe", "hsm_init_token", "hsm_clear_pin"):
            monkeypatch.setattr(gateway, function, answer)
        shown = run("hsm", "probe", "--config", "gw.toml", "--token", "main", "-o", "json")
        assert json.loads(shown.stdout) == {"token": "main", "mechanisms": 3}
        assert run("hsm", "init-token", "--config", "gw.toml").stderr == "hsmux: done\n"
        assert run("hsm", "clear-pin", "--config", "gw.toml").stderr == "hsmux: done\n"
        assert asked == [("gw.toml", "main"), ("gw.toml", None), ("gw.toml", None)]

    def test_dev_passes_its_options_on(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []

        def dev(state: Path | None, port: int) -> None:
            asked.append((state, port))
            if port:
                raise OperatorError("port 7411 is taken")

        monkeypatch.setattr("hsmux_gateway.command.dev", dev)
        assert run("dev").exit_code == 0
        check_refused(run("dev", "--state", "kept", "--port", "7411"), 8, "taken")
        assert asked == [(None, 0), (Path("kept"), 7411)]


class TestStore:
    def test_what_the_tables_are(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "gw.toml").write_text(TestGateway.CONFIG.format(tmp_path))
        config = ("--config", "gw.toml")
        check_refused(run("store", "status", *config), 8, "hsmux init")
        assert not (tmp_path / "instance").exists()
        assert run("init", *config).exit_code == 0
        shown = json.loads(run("store", "status", *config, "-o", "json").stdout)
        assert (shown["state"], shown["version"]) == ("current", shown["needed"])
        assert shown["store"] == f"sqlite:///{tmp_path}/instance/store.db"
        migrated = run("store", "migrate", *config, "--field", "before")
        assert migrated.stdout == f"{shown['needed']}\n" and "already" in migrated.stderr
        with sqlite3.connect(tmp_path / "instance" / "store.db") as database:
            database.execute("UPDATE alembic_version SET version_num = '9999'")
        database.close()
        assert run("store", "status", *config, "--field", "state").stdout == "newer\n"
        check_refused(run("store", "migrate", *config), 8, "newer hsmux")


class TestCompletion:
    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_a_script_for_each_shell(self, shell: str, run: Run) -> None:
        script = run("completion", shell).stdout
        assert f"_HSMUX_COMPLETE={shell}_complete" in script and "hsmux" in script

    def test_bash_reads_it(self, run: Run) -> None:
        script = run("completion", "bash").stdout
        path = Path(sys.executable).parent
        ask = (
            f"{script}\nPATH={path}:$PATH\nCOMP_WORDS=(hsmux key cr)\nCOMP_CWORD=2\n"
            '_hsmux_completion hsmux cr key\necho "${COMPREPLY[@]}"\n'
        )
        done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
        assert done.stdout == "create\n"
