"""The configuration: every refusal names the place and the remedy."""

import pytest

from hsmux_gateway.config import parse_config
from hsmux_gateway.errors import OperatorError

GOOD = 'instance_dir = "/var/lib/hsmux"\n[root]\nfile = "/etc/hsmux/root.key"\n'
TOKEN = '[hsm.main]\nmodule = "/usr/lib/m.so"\ntoken_label = "t"\npin_file = "/etc/pin"\n'

REFUSED = {
    "not TOML": ("instance_dir = ", "not TOML"),
    "unknown section": (GOOD + "[sever]\n", "did you mean 'server'"),
    "unknown key": (GOOD + "[server]\nlitsen = []\n", "server.litsen: unknown; did you mean"),
    "unknown key of a token": (
        GOOD.replace('file = "/etc/hsmux/root.key"', 'token = "main"') + TOKEN + "pin = 1\n",
        r"hsm\.main\.pin: unknown",
    ),
    "wrong type": (GOOD + "[server]\ndrain_s = 'x'\n", r"drain_s"),
    "out of range": (GOOD + "[hsm.x]\nmodule='m'\ntoken_label='t'\nworkers=0\n", "workers"),
    "no instance_dir": ("[root]\nfile = 'x'\n", "instance_dir"),
    "no root": ('instance_dir = "/x"\n', "exactly one of token"),
    "two roots": (GOOD.replace("[root]\n", '[root]\ntoken = "main"\n') + TOKEN, "exactly one"),
    "unknown token": ('instance_dir = "/x"\n[root]\ntoken = "other"\n' + TOKEN, "there are: main"),
    "no PIN": (
        'instance_dir = "/x"\n[root]\ntoken = "main"\n' + TOKEN.replace("pin_file", "#"),
        "exactly one of pin_file",
    ),
    "half a certificate": (GOOD + '[tls]\ncertificate = "/c"\n', "both certificate and"),
    "address without port": (GOOD + '[server]\nlisten = ["localhost"]\n', "host:port"),
    "port out of range": (GOOD + '[health]\nlisten = "localhost:70000"\n', "host:port"),
    "empty listen": (GOOD + "[server]\nlisten = []\n", "listen"),
}


def test_a_good_file_is_taken() -> None:
    config = parse_config(GOOD, {})
    assert config.root.file == "/etc/hsmux/root.key"
    assert config.store.stale_s == 30.0


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_file_names_the_place_and_the_remedy(name: str) -> None:
    text, expected = REFUSED[name]
    with pytest.raises(OperatorError, match=expected) as refused:
        parse_config(text, {})
    assert refused.value.exit_code == 2
    assert "\n" not in refused.value.text.removesuffix("\n")


def test_the_environment_overrides_one_value() -> None:
    environment = {
        "HSMUX_GATEWAY__SERVER__DRAIN_S": "2.5",
        "HSMUX_GATEWAY__STORE__URL": "postgresql+psycopg://db/hsmux",
        "HSMUX_GATEWAY__SERVER__LISTEN": '["[::1]:1"]',
        "OTHER": "x",
    }
    config = parse_config(GOOD, environment)
    assert config.server.drain_s == 2.5
    assert config.store.url == "postgresql+psycopg://db/hsmux"
    assert config.server.listen == ["[::1]:1"]


def test_an_override_of_an_unknown_name_is_refused() -> None:
    with pytest.raises(OperatorError, match="did you mean 'drain_s'"):
        parse_config(GOOD, {"HSMUX_GATEWAY__SERVER__DRAIN": "1"})
    with pytest.raises(OperatorError, match="is a value"):
        parse_config(GOOD, {"HSMUX_GATEWAY__INSTANCE_DIR__X": "1"})
