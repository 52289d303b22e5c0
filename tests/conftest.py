"""What holds for all tests."""

import signal

# A shell starts what runs in its background with SIGINT ignored, and children inherit that; the
# tests of interruptions need it as it is in a terminal.
signal.signal(signal.SIGINT, signal.default_int_handler)
