"""structlog, as the gateway uses it: without rich, which it loads where that is installed.

rich draws tracebacks on a console. A daemon has none, and should not hold 3 MiB for it.
"""

import sys

_before = sys.modules.get("rich")
if _before is None:
    # What stands as None cannot be imported, and structlog does without.
    sys.modules["rich"] = None  # type: ignore[assignment]
import structlog  # noqa: E402

if _before is None:
    del sys.modules["rich"]

__all__ = ["structlog"]
