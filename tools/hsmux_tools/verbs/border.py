"""The border to the gateway's package, which a machine with only the client does not have."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..failure import EXIT_OPERATOR, Failure

__all__ = ["gateway_command"]


@contextmanager
def gateway_command() -> Iterator[Any]:
    """The module `hsmux_gateway.command`; its errors become this command's.

    Raises:
        Failure: The gateway is not installed, or an operator must act.
    """
    try:
        from hsmux_gateway import command
        from hsmux_gateway.errors import OperatorError
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("hsmux_gateway"):
            raise
        raise Failure(
            "this verb runs on the gateway's machine: pip install hsmux-gateway", EXIT_OPERATOR
        ) from None
    except ImportError as error:
        # The C module, which tests itself when it is loaded.
        raise Failure(f"the gateway cannot be loaded: {error}", EXIT_OPERATOR) from None
    try:
        yield command
    except OperatorError as error:
        raise Failure(error.text, error.exit_code) from None
