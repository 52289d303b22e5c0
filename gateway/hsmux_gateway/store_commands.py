"""`hsmux store status|migrate`: the tables of a store and the version this program needs.

No row is opened, so neither token nor root is needed. A gateway never changes the tables by
itself: who migrates has made a copy first and stopped every gateway that shares the store.
"""

from pathlib import Path

from .config import Config, load_config
from .config_files import check_named
from .foundation import operator_border, store_url
from .instance import Instance
from .store import migrate_database, store_version
from .store.schema import OLDER_VERSIONS, SCHEMA_VERSION

__all__ = ["migrate", "status"]


def status(config: Path) -> dict[str, str]:
    """Whether the store has the tables that this program needs; nothing is changed.

    Raises:
        OperatorError: It cannot be reached, or the configuration is wrong.
    """
    checked = _checked(config)
    with operator_border():
        shown, version = store_version(store_url(checked))
        known = {SCHEMA_VERSION: "current", **dict.fromkeys(OLDER_VERSIONS, "older")}
        state = "empty" if version is None else known.get(version, "newer")
        return {"store": shown, "state": state, "version": version or "", "needed": SCHEMA_VERSION}
    raise AssertionError("the border raises what it catches")


def migrate(config: Path) -> dict[str, str]:
    """Bring the tables of the store to what this program needs.

    Raises:
        OperatorError: This gateway runs, the store is empty or newer, or cannot be reached.
    """
    checked = _checked(config)
    with Instance(Path(checked.instance_dir)), operator_border():
        before, after = migrate_database(store_url(checked))
        return {"before": before, "version": after}
    raise AssertionError("the border raises what it catches")


def _checked(config: Path) -> Config:
    checked = load_config(config)
    check_named(checked)
    return checked
