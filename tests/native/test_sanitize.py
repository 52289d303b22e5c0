"""The C tests under AddressSanitizer and UndefinedBehaviorSanitizer, as a developer runs them."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 240


def test_the_c_tests_pass_under_the_sanitizers() -> None:
    done = subprocess.run(
        [str(ROOT / "tools" / "dev"), "sanitize"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = set(re.findall(r"Test +#\d+: (\S+) \.+ +Passed", done.stdout))
    programs = {path.stem for path in (ROOT / "native" / "tests").glob("test_*.c")}
    assert {name.partition("-")[0] for name in passed} == programs | {"fuzz"}
    assert "100% tests passed" in done.stdout
