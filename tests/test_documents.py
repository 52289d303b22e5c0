"""Documents: generated parts are current, links lead somewhere, commands and examples work."""

import contextlib
import importlib.util
import math
import re
import subprocess
from pathlib import Path

import click
import pytest

from hsmux_gateway.config import Config, parse_config
from hsmux_gateway.connection import ANSWERS_SIZE_MAX
from hsmux_protocol.envelope import SUITES
from hsmux_tools.main import EPILOG, command
from hsmux_tools.settings import Settings
from tests.documents import DOCUMENTS
from tests.documents.markdown import Block, anchors, blocks, commands, documents, links, loose_lines
from tests.documents.sections import ROOT, check, project_files, render

LINE_LENGTH_MAX = 120
CONFIGURATION = ROOT / "docs" / "configuration.md"


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


each_document = pytest.mark.parametrize("path", documents(), ids=name_of)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_generated_sections_are_current(name: str) -> None:
    stale = check(ROOT / name, DOCUMENTS[name])
    assert not stale, "run `python -m tests.documents --write` and look at the change"


def test_a_changed_table_is_found(tmp_path: Path) -> None:
    sections = {"one": lambda: "| a |\n", "two": lambda: "text\n"}
    path = tmp_path / "page.md"
    empty = (
        "<!-- begin one -->\n<!-- end one -->\nhand\n<!-- begin two -->\nold\n<!-- end two -->\n"
    )
    path.write_text(render(empty, sections))
    assert check(path, sections) == []
    assert "\nhand\n" in path.read_text() and "old" not in path.read_text()
    path.write_text(path.read_text().replace("| a |", "| b |"))
    assert check(path, sections) == ["one"]
    with pytest.raises(ValueError, match="three"):
        render(path.read_text(), {**sections, "three": str})


@each_document
def test_lines_are_not_too_long(path: Path) -> None:
    long = [line for line in loose_lines(path.read_text()) if len(line) > LINE_LENGTH_MAX]
    assert not long


@each_document
def test_links_lead_somewhere(path: Path) -> None:
    broken = []
    for link in links(path.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(link)
    assert not broken


def parse(words: list[str]) -> None:
    """Parse a command line as click does; a verb alone, or a group, stands for itself.

    Raises:
        click.ClickException: There is no such command, or it does not take these words.
    """
    step: click.Command | None = command()
    with contextlib.suppress(click.exceptions.Exit):
        while words and isinstance(step, click.Group):
            context = step.make_context("hsmux", words, obj=Settings())
            words = [*context._protected_args, *context.args]
            _, step, words = step.resolve_command(context, words)
        if words and step is not None:
            step.make_context("hsmux", words, obj=Settings())


@each_document
def test_commands_that_are_shown_are_there(path: Path) -> None:
    wrong = []
    for words in commands(path.read_text()):
        try:
            parse(words)
        except click.ClickException as error:
            wrong.append(f"hsmux {' '.join(words)}: {error.format_message()}")
    assert not wrong


def test_a_command_that_is_not_there_is_found() -> None:
    text = "Run `hsmux key crate` or:\n\n```console\n$ hsmux key list --colour\n```\n"
    assert commands(text) == [["key", "crate"], ["key", "list", "--colour"]]
    for words in commands(text):
        with pytest.raises(click.ClickException):
            parse(words)


@each_document
def test_other_programs_that_are_shown_are_there(path: Path) -> None:
    text = path.read_text()
    verbs = subprocess.run(
        [ROOT / "tools" / "dev", "help"], capture_output=True, text=True, check=True
    ).stdout
    for verb in re.findall(r"\btools/dev ([a-z]+)", text):
        assert verb == "help" or f"\n  {verb} " in verbs, verb
    for module in re.findall(r"\bpython3? -m ([a-z][\w.]*[\w])", text):
        assert importlib.util.find_spec(module) is not None, module


EXAMPLES = [
    block
    for block in blocks(CONFIGURATION.read_text(), "toml")
    if block.before.startswith("<!-- example")
]


@pytest.mark.parametrize("block", EXAMPLES, ids=lambda block: block.before.split()[2])
def test_a_configuration_that_is_shown_is_one(block: Block) -> None:
    config = parse_config(block.text, {})
    assert isinstance(config, Config) and config.root.token


def test_both_kinds_of_store_have_an_example() -> None:
    stores = {parse_config(block.text, {}).store.url.partition(":")[0] for block in EXAMPLES}
    assert stores == {"", "postgresql+psycopg"}


def shown_configurations() -> dict[str, Config]:
    """The SoftHSM gateway that README.md, install.md and configuration.md show."""
    install = (ROOT / "docs" / "install.md").read_text()
    readme = (ROOT / "README.md").read_text()
    found = {
        "README.md": blocks(readme, "toml"),
        "install.md": [b for b in blocks(install, "toml") if b.before == "<!-- configuration -->"],
        "configuration.md": [block for block in EXAMPLES if block.before.split()[2] == "softhsm"],
    }
    return {name: parse_config(block.text, {}) for name, (block,) in found.items()}


def test_documents_show_one_gateway() -> None:
    shown = shown_configurations()
    for config in shown.values():
        (hsm,) = config.hsm.values()
        reference = shown["install.md"]
        assert hsm == reference.hsm["main"]
        assert config.instance_dir == reference.instance_dir
        assert config.audit == reference.audit
        assert config.server.listen[0] == reference.server.listen[0]
        assert config.server.names[0] == reference.server.names[0]


PLACES = frozenset(
    {
        *("/etc/hsmux", "/etc/hsmux/hsmux.toml", "/etc/hsmux/softhsm2.conf", "/var/log/hsmux"),
        *("/var/lib/hsmux", "/var/lib/hsmux/pin", "/var/lib/hsmux/pin.officer"),
        *("/var/lib/hsmux/softhsm", "/var/lib/hsmux/nss", "/var/lib/hsmux/pgpass"),
        *("/var/lib/hsmux/tls/server.pem", "/var/lib/hsmux/tls/server.key"),
        *("/var/lib/hsmux/instance", "/var/lib/hsmux/instance/store.db"),
        *("/var/lib/hsmux/instance/administrator", "/var/lib/hsmux/instance/audit/key.pem"),
        *(
            "/var/lib/hsmux/billing",
            "/etc/hsmux/corporate-roots.pem",
            "/etc/hsmux/spire-bundle.pem",
        ),
    }
)
"""Where a gateway on a machine of its own has what; install.md makes the directories."""


def test_documents_and_examples_of_verbs_name_one_set_of_places() -> None:
    texts = [*documents(), *(ROOT / "tools" / "hsmux_tools").rglob("*.py")]
    named = {
        (name_of(path), place.rstrip("."))
        for path in texts
        for place in re.findall(r"/(?:etc|var/lib|var/log)/hsmux[\w./-]*", path.read_text())
    }
    assert {pair for pair in named if pair[1] not in PLACES} == set()
    assert {place for _, place in named} == PLACES


PROTOCOL_FACTS = {
    "answers that wait": f"more than {ANSWERS_SIZE_MAX // 1024} KiB of answers wait",
    "growth of a batch": f"counts {max(s.overhead_size for s in SUITES.values()) + 6} bytes beside",
    "shrinkage of a batch": "less "
    + str(min(s.overhead_size for s in SUITES.values() if s.tag_size)),
    "handshake": "| TLS handshake and HELLO together | {limits.handshake_timeout_s:.0f} |",
    "frame": "| a frame, from its first byte to its last | {limits.frame_timeout_s:.0f}, and",
    "idle": "| nothing received while no request is open | {limits.idle_timeout_s:.0f} |",
    "unread": "| answers that the client does not read | {limits.send_timeout_s:.0f} |",
}


@pytest.mark.parametrize("name", PROTOCOL_FACTS)
def test_numbers_in_the_prose_of_the_protocol_are_those_of_the_code(name: str) -> None:
    defaults = parse_config('instance_dir = "/x"\n[root]\nfile = "/x/key"\n', {})
    text = " ".join((ROOT / "protocol" / "PROTOCOL.md").read_text().split())
    assert PROTOCOL_FACTS[name].format(limits=defaults.limits) in text


def test_the_readme_has_the_exit_codes_of_the_help() -> None:
    assert EPILOG in " ".join((ROOT / "README.md").read_text().split())


BASES = (ROOT, ROOT / "gateway" / "hsmux_gateway", ROOT / "protocol", ROOT / "tools")
WRITTEN = {"token.object"}
"""Names of files that a running gateway has."""


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_files_that_are_named_are_there(name: str) -> None:
    spans = re.findall(
        r"`([\w./-]+(?:\.(?:py|c|h|md|toml|json|txt)|/))`", (ROOT / name).read_text()
    )
    assert spans
    known = {path.name for path in project_files()} | WRITTEN
    assert not {
        span
        for span in spans
        if not any((base / span).exists() for base in BASES) and span not in known
    }


@pytest.mark.parametrize(
    "processes, years, rate, row",
    [
        (1, 1, 1, "| one process, a year, a message a second |"),
        (1, 1, 1e6, "| one process, a year, 1,000,000 a second |"),
        (1000, 100, 1e6, "| 1,000 processes, 100 years, 1,000,000 a second each |"),
    ],
)
def test_the_proof_of_nonces_calculates_what_the_code_does(
    processes: int, years: int, rate: float, row: str
) -> None:
    """The table of ARCHITECTURE.md from the limits of native/include/hsmux_native.h."""
    header = (ROOT / "native" / "include" / "hsmux_native.h").read_text()
    assert "#define HS_EPOCH_MESSAGES_MAX (1u << 24)" in header
    assert "#define HS_EPOCH_AGE_MAX_S 3600u" in header
    seconds = years * 365.25 * 86400
    epochs = math.log2(processes * seconds * max(rate / 2**24, 1 / 3600))
    messages = math.log2(processes * seconds * rate)
    (found,) = [line for line in (ROOT / "ARCHITECTURE.md").read_text().splitlines() if row in line]
    said = [float(number) for number in re.findall(r"2\^(-?[\d.]+)", found)]
    assert said[0] == pytest.approx(epochs, abs=0.1)
    assert said[1] == pytest.approx(messages, abs=0.1)
    # A pair of epochs repeats a prefix with 2^-96, and then r with 2^-64 at one of 2^24 places.
    assert 2 * epochs - 1 - 96 + 24 - 64 < said[2]
    assert 2 * epochs - 1 - 96 < said[3]
