"""Run the yardstick that the command line names."""

import importlib
import sys
from typing import Final

__all__ = ["main"]

_PROGRAMS: Final = {
    "echo": ("servers", "run_echo"),
    "sealer": ("servers", "run_sealer"),
    "software": ("loops", "run_software"),
    "hardware": ("loops", "run_hardware"),
    "audit": ("audited", "run_audited"),
    "decision": ("decided", "run_decided"),
    "verify": ("verified", "run_verified"),
}
"""Module and function of each; no process loads what another one needs."""


def main() -> None:
    """Run it."""
    module, function = _PROGRAMS[sys.argv[1]]
    getattr(importlib.import_module(f".{module}", __package__), function)(*sys.argv[2:])


if __name__ == "__main__":
    main()
