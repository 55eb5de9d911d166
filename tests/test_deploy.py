"""The example units and settings start the programs as they are: every option parses, every key is one that exists.

`min_compute.yml` has the form that the ecosystem reads, and figures that hold.

Run: `python -m pytest tests/test_deploy.py`. Neither systemd nor PM2 is needed. Read next: `deploy/`.
"""

from __future__ import annotations

import argparse
import configparser
import json
import re
import shlex

import pytest
from subnets import ROOT, called

import miner
from bench.memory import TARGET_MB
from chain.notify import add_notify_options
from doctor import machine
from runtime.options import (
    add_chain_options,
    add_logging_options,
    add_market_options,
    parse_options,
    read_dotenv,
    resolve,
)
from runtime.process import EXIT_OK, EXIT_USAGE, Parser
from spine import ground

DEPLOY = ROOT / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
PROGRAMS = ("validator", "miner", "executor")
STOP_SECONDS = 60
KEYS = {  # systemd.unit(5), systemd.exec(5), systemd.service(5): those in use; anything else is probably misspelt
    "Unit": {"Description", "Wants", "After", "StartLimitIntervalSec"},
    "Service": {
        *("User", "WorkingDirectory", "EnvironmentFile", "Environment", "LoadCredential", "ExecStart", "Restart"),
        *("RestartSec", "RestartPreventExitStatus", "TimeoutStopSec", "StateDirectory", "UMask", "NoNewPrivileges"),
        *("PrivateTmp", "ProtectSystem", "LimitCORE"),
    },
    "Install": {"WantedBy"},
}


def parsed(words: list[str]) -> argparse.Namespace:
    """The options as the program itself takes them; fails as it would."""
    program, arguments = called(words)
    return parse_options(program.build_parser(), arguments, read_dotenv(DEPLOY / "example.env"), ROOT / "no.env")


def test_there_is_an_example_for_each_program():
    assert {path.stem for path in UNITS} >= set(PROGRAMS)
    assert {app["name"] for app in json.loads((DEPLOY / "pm2.json").read_text())["apps"]} >= set(PROGRAMS)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_unit_starts_its_program_with_options_that_it_takes(path):
    unit = configparser.ConfigParser(interpolation=None, comment_prefixes=("#",), delimiters=("=",))
    unit.optionxform = str
    unit.read_string(path.read_text())
    assert {name: set(unit[name]) - KEYS[name] for name in unit.sections()} == {name: set() for name in KEYS}
    service = unit["Service"]
    python, *words = shlex.split(service["ExecStart"])
    folder = service["WorkingDirectory"]
    assert re.fullmatch(rf"{folder}/\.venv-3\.1[123]/bin/python", python)
    options = parsed(words)
    assert options.dir == f"/var/lib/{service['StateDirectory']}" and "--log-file" not in words
    assert service["LimitCORE"] == "0"  # a core file would have the keys in it
    assert unit["Unit"]["StartLimitIntervalSec"] == "0" and service["Restart"] == "always"  # whatever the other code
    assert service["RestartPreventExitStatus"] == str(EXIT_USAGE) and service["TimeoutStopSec"] == str(STOP_SECONDS)
    assert f"deploy/{path.name}" in path.read_text() and service["EnvironmentFile"] in path.read_text()[:900]


def test_pm2_starts_the_programs_with_options_that_they_take_and_lets_them_stop():
    known = {
        "name",
        "script",
        "args",
        "cwd",
        "interpreter",
        "kill_timeout",
        "stop_exit_codes",
        "exp_backoff_restart_delay",
    }
    for app in json.loads((DEPLOY / "pm2.json").read_text())["apps"]:
        assert set(app) == known and app["cwd"] == "."
        room = app["args"].startswith("-m ")  # PM2 starts files: a room is an argument of the Python itself
        python, interpreter = (app["script"], "none") if room else (app["interpreter"], app["interpreter"])
        assert re.fullmatch(r"\.venv-3\.1[123]/bin/python", python) and app["interpreter"] == interpreter
        parsed(started(app))
        assert app["kill_timeout"] == STOP_SECONDS * 1000  # the default of 1.6 s is too short to close everything
        assert app["stop_exit_codes"] == [EXIT_OK, EXIT_USAGE]


def test_what_the_examples_start_is_what_a_network_takes():
    """A validator that sends nothing, as long as its market is no real one; a miner with an address to publish."""
    for words in commands():
        options = parsed(words)
        if words[0] == "validator.py":
            ground._check_real(options)
        elif words[0] == "miner.py":
            assert options.external_ip in ("${EXTERNAL_IP}", "IP")
            options.netuid, options.external_ip = 98, "5.6.7.8"
            assert miner.published_address(options) == "5.6.7.8"


def started(app: dict) -> list[str]:
    """What PM2 gives to Python."""
    return [*([app["script"]] if app["script"].endswith(".py") else []), *shlex.split(app["args"])]


def commands() -> list[list[str]]:
    """What Python is given, by all units and by PM2's file."""
    units = [shlex.split(re.search(r"^ExecStart=\S+ (.*)$", path.read_text(), re.M)[1]) for path in UNITS]
    return units + [started(app) for app in json.loads((DEPLOY / "pm2.json").read_text())["apps"]]


# ---------------------------------------------------------------------------------------------------------------------
# min_compute.yml


def plain_yaml(text: str) -> dict:
    """The part of YAML that the file keeps to: mappings by two spaces, one key a line, and scalars."""
    tree: dict = {}
    levels = [tree]
    for number, line in enumerate(text.splitlines(), 1):
        line = re.sub(r"(^|\s+)#.*", "", line)
        if not line:
            continue
        match = re.fullmatch(r"((?:  )*)([a-z_]+):(?: (\"[^\"]*\"|'[^']*'|[\w.]+))?", line)
        assert match, f"line {number}: {line}"
        depth = len(match[1]) // 2
        assert depth < len(levels) and match[2] not in levels[depth], f"line {number}: {line}"
        del levels[depth + 1 :]
        value: dict | str = {} if match[3] is None else match[3].strip("\"'")
        levels[depth][match[2]] = value
        if isinstance(value, dict):
            levels.append(value)
    return tree


def test_min_compute_has_the_ecosystems_form_and_room_for_what_was_measured():
    """The form is that of the subnet template; the figures are those of `bench/memory.py`."""
    text = (ROOT / "min_compute.yml").read_text()
    tree = plain_yaml(text)
    assert set(tree) == {"version", "compute_spec", "network_spec"}
    assert set(tree["network_spec"]["bandwidth"]) == {"download", "upload"}
    for program, target_mb in (("validator", TARGET_MB), ("miner", 100), ("executor", 100)):
        spec = tree["compute_spec"][program]
        assert set(spec) == {"cpu", "gpu", "memory", "storage", "os"}
        assert spec["gpu"] == {"required": "false"} and spec["cpu"]["architecture"] == "x86_64"
        assert int(spec["memory"]["min_ram"].removesuffix("MB")) >= 2 * target_mb
        assert int(spec["storage"]["min_space"].removesuffix("GB")) * 10**9 >= machine.GOOD_DISK_BYTES


def test_the_example_settings_are_known_ones_and_valid_for_systemd_and_for_us(tmp_path):
    parser = Parser()
    for add in (add_chain_options, add_logging_options, add_notify_options, add_market_options):
        add(parser)
    path = tmp_path / ".env"
    text = re.sub(r"^#(?=[A-Z_]+=)", "", (DEPLOY / "example.env").read_text(), flags=re.M)  # those of a real pool too
    path.write_text(text)
    path.chmod(0o600)
    options = parser.parse_args([])
    resolve(options, {}, path)
    used = {source.name.split()[-1] for source in options.sources.values()} - {"default"}
    assert used == set(read_dotenv(path)) and options.network == "test"
    assert {"ALM_RPC_URLS", "ALM_POOL", "EXECUTOR_BOT_URL", "EXECUTOR_API_KEY_FILE"} <= used and len(options.rpc) == 2
    for line in path.read_text().splitlines():
        assert re.fullmatch(r"#.*|[A-Z_]+=[^\s'\"\\$#]+", line)  # both read this alike
