"""Access points and client keys, as far as they need no gateway."""

import subprocess
from pathlib import Path

import pytest
from cryptography import x509

from hsmux_gateway.access.administration import serial_text


@pytest.mark.parametrize(("serial", "text"), [(0xABC, "0abc"), (0x7F, "7f"), (1, "01")])
def test_serial_numbers_are_whole_bytes(serial: int, text: str) -> None:
    assert serial_text(serial) == text


def test_a_serial_number_is_what_openssl_shows(tmp_path: Path) -> None:
    path = tmp_path / "c.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=x"
    words = [*command.split(), "-set_serial", "0xabc", "-keyout", "/dev/null", "-out", str(path)]
    subprocess.run(words, check=True, capture_output=True)
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-serial", "-in", path], check=True, capture_output=True
    ).stdout
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    assert shown == f"serial={serial_text(certificate.serial_number).upper()}\n".encode()
