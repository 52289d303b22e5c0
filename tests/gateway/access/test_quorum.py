"""Quorum as administrators and approvers meet it, at gateways that run."""

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hsmux_gateway.access.trust import spki_sha256
from hsmux_protocol import errors
from hsmux_protocol.records import RequestRecord
from tests.gateway.aging import make_old
from tests.gateway.journals import requests_in
from tests.gateway.outside import Signer, make_root, pem_of
from tests.gateway.raw_client import RawClient, client_context, connect
from tests.gateway.running import Running, running_gateway, write_config
from tests.postgresql import postgresql_cluster, postgresql_url

__all__ = ["postgresql_cluster", "postgresql_url"]

APPROVERS = ("second", "third")
THIRD = "spiffe://example.org/third"
RACES = 3
"""Rounds; all of them in the long run."""


def document(*roles: str) -> str:
    statements = [{"effect": "allow", "role": role, "resources": ["*"]} for role in roles]
    return json.dumps({"statements": statements})


def make_point(admin: RawClient, directory: Path, name: str, *policies: str) -> None:
    """An access point, and files of a client key in a directory of its name."""
    admin.call("create_access_point", name, "", list(policies), [], None)
    _, certificate, ca, private_key = admin.call("create_client_key", name, None, 30)
    own = directory / name
    own.mkdir()
    (own / "administrator.pem").write_text(ssl.DER_cert_to_PEM_cert(certificate))
    (own / "administrator.key").write_bytes(private_key)
    (own / "ca.pem").write_text(ssl.DER_cert_to_PEM_cert(ca))


@dataclass
class Parties:
    """A gateway that runs, and who is connected to it.

    Attributes:
        admin: The first administrator, who may do everything.
        second: An approver.
        third: Another one, known by certificates of an outside CA.
        young: An approver that was made just now.
    """

    running: Running
    admin: RawClient
    second: RawClient
    third: RawClient
    young: RawClient
    outside: Signer

    def shown(self, directory: Path, key: ec.EllipticCurvePrivateKey | None = None) -> Any:
        """A connection with a certificate of the outside CA that stands for the third."""
        shown = self.outside.issue(uris=[THIRD], key=key)
        context = shown.context(self.running.administrator / "ca.pem", directory)
        return connect(self.running.address, context)

    def refused(self, *request: Any) -> bytes:
        """The one request that waits after a change lacked approvals."""
        with pytest.raises(errors.ApprovalsMissing) as refused:
            self.admin.call(*request)
        (waiting,) = self.waiting()
        assert waiting.request.hex() in refused.value.text
        return waiting.request

    def waiting(self) -> list[RequestRecord]:
        """The requests that wait."""
        found: list[RequestRecord] = self.admin.call("list_requests", b"", 100)[0]
        return found


@contextmanager
def prepared(config: Path) -> Iterator[Running]:
    """A gateway with two approvers that are old enough."""
    directory = config.parent
    with running_gateway(config) as running:
        with connect(running.address, client_context(running.administrator)) as admin:
            admin.call("put_policy", "approver", document("approver"))
            for name in APPROVERS:
                make_point(admin, directory, name, "approver")
    make_old(config)
    with running_gateway(config, init=False) as running:
        yield running


def connection(running: Running, directory: Path) -> Any:
    return connect(running.address, client_context(directory))


@pytest.fixture(scope="module")
def parties(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parties]:
    """Everybody; two approvals are wanted."""
    directory = tmp_path_factory.mktemp("quorum")
    root = make_root()
    (directory / "root.pem").write_bytes(pem_of(root.certificate))
    cas = f'[tls.outside_cas]\none = "{directory}/root.pem"\n'
    with prepared(write_config(directory, cas)) as running, ExitStack() as stack:
        admin = stack.enter_context(connection(running, running.administrator))
        make_point(admin, directory, "young", "approver")
        nothing: list[list[str]] = [[], [], [], []]
        known_by = [f"uri:{THIRD}"]
        admin.call("update_access_point", "third", None, None, *nothing, known_by, [], None)
        second, young = (
            stack.enter_context(connection(running, directory / name))
            for name in ("second", "young")
        )
        with pytest.raises(errors.Conflict, match="there would be 2 that can approve"):
            admin.call("set_quorum", 3)
        shown = admin.call("set_quorum", 2)[0]
        assert (shown.approvals, shown.approvers) == (2, ["administrator", *APPROVERS])
        made = Parties(running, admin, second, second, young, root)
        made.third = stack.enter_context(made.shown(directory))
        yield made
        assert "Traceback" not in running.log.read_text()


def test_a_change_is_done_when_enough_others_have_approved_it(parties: Parties) -> None:
    change = ("put_policy", "approver", document("approver", "auditor"))
    request = parties.refused(*change)
    (waiting,) = parties.waiting()
    assert (waiting.access_point, waiting.operation) == ("administrator", "put_policy")
    assert (waiting.touches, waiting.missing) == (["second", "third", "young"], 2)
    record, arguments = parties.second.call("show_request", request)
    assert record == waiting
    assert json.loads(arguments) == {"name": "approver", "document": json.loads(change[2])}
    with pytest.raises(errors.Denied, match="its own access point"):
        parties.admin.call("approve_request", request)
    with pytest.raises(errors.Denied, match="younger than 24 hours: it can approve from 20"):
        parties.young.call("approve_request", request)
    assert parties.second.call("approve_request", request)[0].missing == 1
    # Twice is once.
    assert parties.second.call("approve_request", request)[0].approved_by == ["second"]
    assert parties.refused(*change) == request
    token = b"0123456789abcdef"
    assert parties.third.call("approve_request", request)[0].missing == 0
    done = parties.admin.call(*change, idempotency_token=token)
    assert done[0].statements == 2 and parties.waiting() == []
    # It is answered again, and needs no approvals again.
    assert parties.admin.call(*change, idempotency_token=token) == done
    with pytest.raises(errors.NotFound):
        parties.third.call("approve_request", request)
    records = requests_in(parties.running.directory / "audit")
    hexed = request.hex()
    changes = [r for r in records if r["operation"] == "put_policy"]
    for change_record in changes[-4:]:
        # What approvals decided is no part of the statement that allowed it.
        explained = parties.admin.call("explain_reference", change_record["reference"])
        assert explained[6:9:2] == ["administrator", "same"]
    statements = [r["statement"] for r in changes]
    assert statements[-2].endswith(f"; quorum: request {hexed} approved by second, third")
    assert sum(s.endswith(f"request {hexed} lacks 1 of 2 approvals") for s in statements) == 1
    given = [r for r in records if r["operation"] == "approve_request" and r["outcome"] == "done"]
    assert [r["access_point"] for r in given] == ["second", "second", "third"]
    assert {r["resource"] for r in given} == {hexed}


def test_what_a_certificate_is_for_is_told_and_nothing_secret(parties: Parties) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder(
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "second")])
    )
    csr = builder.sign(key, hashes.SHA256())
    der = csr.public_bytes(serialization.Encoding.DER)
    request = parties.refused("create_client_key", "second", der, 30)
    arguments = json.loads(parties.third.call("show_request", request)[1])
    assert arguments == {
        "access_point": "second",
        "csr": {"spki_sha256": spki_sha256(csr).hex()},
        "validity_days": 30,
    }
    gone = parties.third.call("withdraw_request", request)[0]
    assert gone.request == request and parties.waiting() == []


def test_one_key_is_not_two_access_points(parties: Parties, tmp_path: Path) -> None:
    """An outside CA certifies the administrator's own key for an approver."""
    pem = (parties.running.administrator / "administrator.key").read_bytes()
    key = serialization.load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    request = parties.refused("set_quorum", 1)
    with parties.shown(tmp_path, key) as shared:
        record = shared.call("approve_request", request)[0]
        assert (record.missing, record.approved_by) == (2, [])
    assert parties.third.call("approve_request", request)[0].approved_by == ["third"]
    parties.admin.call("withdraw_request", request)


def test_an_application_is_administered_alone(parties: Parties) -> None:
    admin = parties.admin
    admin.call("put_policy", "use", document("crypto-user"))
    admin.call("create_access_point", "app", "", ["use"], [], None)
    assert admin.call("create_client_key", "app", None, 30)[3]
    # Making it an approver is another thing.
    nothing: list[list[str]] = [[], [], [], [], []]
    change = ("update_access_point", "app", None, None, ["approver"], *nothing, None)
    request = parties.refused(*change)
    assert parties.waiting()[0].touches == ["app"]
    parties.admin.call("withdraw_request", request)
    # What cannot be done anyway does not wait for anybody.
    with pytest.raises(errors.NotFound):
        admin.call("update_access_point", "app", None, None, ["nothing"], *nothing, None)
    with pytest.raises(errors.Conflict, match="there would be 1 that can approve"):
        admin.call("update_access_point", "second", None, "Disabled", [], *nothing, None)
    assert parties.waiting() == []


def test_the_setting_itself_wants_approvals(parties: Parties) -> None:
    request = parties.refused("set_quorum", 0)
    for approver in (parties.second, parties.third):
        approver.call("approve_request", request)
        with pytest.raises(errors.Denied):
            approver.call("set_quorum", 0)
    assert parties.admin.call("set_quorum", 0)[0].approvals == 0
    assert parties.admin.call("set_quorum", 2)[0].approvals == 2


@pytest.mark.parametrize("rounds", [RACES, pytest.param(50, marks=pytest.mark.long)])
def test_two_gateways_use_an_approval_once(
    tmp_path: Path, postgresql_url: str, rounds: int
) -> None:
    configs = []
    for name in ("first", "two"):
        directory = tmp_path / name
        directory.mkdir()
        config = write_config(directory, f'[store]\nurl = "{postgresql_url}"\npoll_ms = 100\n')
        text = config.read_text().replace(f"{directory}/root.key", f"{tmp_path}/root.key")
        config.write_text(text)
        configs.append(config)
    with (
        prepared(configs[0]) as one,
        running_gateway(configs[1]) as two,
        connection(one, one.administrator) as here,
        connection(two, two.administrator) as there,
        connection(one, tmp_path / "first" / "second") as second,
    ):
        here.call("set_quorum", 1)
        for _ in range(rounds):
            with pytest.raises(errors.ApprovalsMissing):
                here.call("create_client_key", "third", None, 30)
            ((waiting,), _) = second.call("list_requests", b"", 100)
            second.call("approve_request", waiting.request)
            assert sorted(_both(here, there)) == ["ApprovalsMissing", "made"]
            # The other one waits for an approval of its own.
            ((again,), _) = second.call("list_requests", b"", 100)
            assert (again.request, again.missing) == (waiting.request, 1)
            second.call("withdraw_request", again.request)
        page = here.call("list_client_keys", b"", 100)[0]
        assert sum(key.access_point == "third" for key in page) == 1 + rounds


def _both(*clients: RawClient) -> list[str]:
    """What becomes of one request that two send at the same time."""
    outcomes: list[str] = []
    barrier = threading.Barrier(len(clients))

    def ask(client: RawClient) -> None:
        barrier.wait()
        try:
            client.call("create_client_key", "third", None, 30)
            outcomes.append("made")
        except errors.HsmuxError as error:
            outcomes.append(type(error).__name__)

    threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return outcomes
