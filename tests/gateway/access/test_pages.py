"""Pages of access points: what does not fit one frame goes into the next."""

import itertools
import json
from pathlib import Path

from hsmux_protocol.operations import MTLS_MAX, POLICIES_MAX
from tests.gateway.raw_client import client_context, connect
from tests.gateway.running import running_gateway, write_config

POINTS = 100
"""As many as a page has, if it is not cut."""

DOCUMENT = {"statements": [{"effect": "allow", "operations": ["*"], "resources": ["*"]}]}


def test_access_points_with_many_names_fit_their_frames(tmp_path: Path) -> None:
    numbers = itertools.count()
    with (
        running_gateway(write_config(tmp_path)) as running,
        connect(running.address, client_context(running.administrator)) as admin,
    ):
        policies = [f"p-{number}" for number in range(POLICIES_MAX)]
        for name in policies:
            admin.call("put_policy", name, json.dumps(DOCUMENT))
        made = set()
        for number in range(POINTS):
            mtls = [f"uri:a:{next(numbers)}" for _ in range(MTLS_MAX)]
            admin.call("create_access_point", f"point-{number}", "", policies, mtls, None)
            made.add(f"point-{number}")
        page, found = b"", []
        while True:
            records, page = admin.call("list_access_points", page, 100)
            found += [record.name for record in records]
            if not page:
                break
    assert len(found) == len(set(found)) and made < set(found)
