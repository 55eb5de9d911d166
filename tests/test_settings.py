"""Options come from where they should, mistakes are one line, and a password is seen nowhere.

Run: `python -m pytest tests/test_settings.py`. Parsers here are small ones of their own. Read next: `settings.py`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from subnets import ROOT

import miner
from chain.notify import NOTIFY_SETTINGS
from chain.sweeping import read_allow_list
from evm.follower import CONFIRMATIONS
from executor.door import read_api_key
from executor.wallet import load_account
from runtime import options as options_module
from runtime import passwords
from runtime.options import (
    CHAIN_SETTINGS,
    LOG_SETTINGS,
    MARKET_SETTINGS,
    Setting,
    add_chain_options,
    add_logging_options,
    add_market_options,
    add_settings,
    axon_settings,
    is_local,
    masked_url,
    parse_options,
    read_dotenv,
    real_market,
    settings_lines,
)
from runtime.passwords import Secret, read_executor_key, read_password, unseen
from runtime.process import Parser, Passing, UserError

PASSWORD = "correct horse # 'battery' \"staple\" ${HOME} é"


def build_parser() -> Parser:
    """A program with a command, as `validator.py` is: the command has the chain's options too."""
    parser = Parser(prog="program.py")
    add_chain_options(parser)
    add_logging_options(parser)
    webhook = Setting(
        "webhook", ("--webhook",), "a secret", ("WEBHOOK",), type=options_module.url("https"), secret=True
    )
    add_settings(parser, "alerts", (webhook,))
    parser.add_argument("--events")
    add_market_options(parser)
    doctor = parser.add_subparsers(dest="command").add_parser("doctor")
    add_chain_options(doctor)
    add_market_options(doctor)
    add_logging_options(doctor)
    return parser


@pytest.fixture
def parsed(tmp_path):
    """Parses a command line with an environment and the text of a `.env` file, of which nobody else may read."""

    def parsed(line: str = "", environ: dict | None = None, dotenv: str = "") -> argparse.Namespace:
        path = tmp_path / ".env"
        path.write_text(dotenv)
        path.chmod(0o600)
        environ = {} if environ is None else environ
        return parse_options(build_parser(), shlex.split(line), environ, path)

    return parsed


@pytest.fixture
def mistake(parsed, capsys):
    """The one line that is printed for a mistake; fails unless the exit code is 2."""

    def mistake(*arguments) -> str:
        with pytest.raises(SystemExit) as caught:
            parsed(*arguments)
        out, error = capsys.readouterr()
        assert caught.value.code == 2 and not out and error.count("\n") == 1 and error.startswith("program.py: "), error
        return error.strip()

    return mistake


# ---------------------------------------------------------------------------------------------------------------------
# Where a value comes from


@pytest.mark.parametrize(
    ("name", "value", "spellings", "variables"),
    [
        ("netuid", 35, ["--netuid"], ["NETUID"]),
        ("network", "test", ["--network", "--subtensor.network", "--subtensor_network"],
         ["BT_NETWORK", "BT_SUBTENSOR_NETWORK", "SUBTENSOR_NETWORK"]),
        ("chain_endpoint", "ws://127.0.0.1:9946",
         ["--chain-endpoint", "--subtensor.chain_endpoint", "--chain_endpoint"],
         ["BT_CHAIN_ENDPOINT", "BT_SUBTENSOR_CHAIN_ENDPOINT"]),
        ("wallet", "treasury", ["--wallet", "--wallet.name", "--wallet_name"],
         ["BT_WALLET", "BT_WALLET_NAME", "WALLET_NAME"]),
        ("wallet_hotkey", "hot", ["--wallet-hotkey", "--wallet.hotkey", "--wallet_hotkey"],
         ["BT_WALLET_HOTKEY", "HOTKEY_NAME"]),
        ("wallet_path", "keys", ["--wallet-path", "--wallet.path", "--wallet_path"], ["BT_WALLET_PATH"]),
        ("password_file", "secret.txt", ["--password-file", "--password_file"], ["BT_WALLET_PASSWORD_FILE"]),
        ("password_command", "pass wallet", ["--password-command", "--password_command"],
         ["BT_WALLET_PASSWORD_COMMAND"]),
    ],
)  # fmt: skip
def test_every_spelling_of_the_ecosystem_and_the_seeds_sets_the_same_value(parsed, name, value, spellings, variables):
    subnet = {} if name == "netuid" else {"NETUID": "1"}
    for spelling, command in itertools.product(spellings, ("", "doctor ")):
        options = parsed(f"{command}{spelling} '{value}'", dict(subnet))
        assert getattr(options, name) == value and options.sources[name].name == "option"
    for variable in variables:
        options = parsed("", subnet | {variable: str(value)})
        assert getattr(options, name) == value and options.sources[name].name == f"environment {variable}"
        options = parsed("doctor", dict(subnet), f"{variable}={value}")
        assert getattr(options, name) == value and options.sources[name].name.endswith(f".env {variable}")
    assert {setting.name for setting in CHAIN_SETTINGS if setting.flags} >= {name}


def test_an_option_beats_the_environment_which_beats_the_file_which_beats_the_default(parsed):
    """All ways in which it may be given or not, against a plain statement of the rule."""
    for option, variable, line in itertools.product((True, False), repeat=3):
        options = parsed(
            "--wallet of-option" if option else "",
            {"NETUID": "1"} | ({"WALLET_NAME": "of-environment"} if variable else {}),
            "BT_WALLET=of-file" if line else "",
        )
        given = [(option, "of-option"), (variable, "of-environment"), (line, "of-file"), (True, "default")]
        assert options.wallet == next(value for there, value in given if there)


def test_two_names_in_one_place_must_agree_and_one_set_to_nothing_hides_the_file(parsed, mistake):
    both = {"NETUID": "1", "BT_NETWORK": "test", "SUBTENSOR_NETWORK": "local"}
    assert "BT_NETWORK and SUBTENSOR_NETWORK (environment) say different things; unset one" in mistake("", both)
    assert parsed("", both | {"SUBTENSOR_NETWORK": "test"}).network == "test"
    assert parsed("", both | {"BT_NETWORK": ""}).network == "local"
    assert parsed("", {"BT_NETWORK": "", "NETUID": "1"}, "SUBTENSOR_NETWORK=local").network == "finney"
    assert is_local(parsed("", {"NETUID": ""}, "NETUID=98"))


def test_an_option_before_the_command_holds_for_it_and_one_after_it_wins(parsed):
    options = parsed("--netuid 1 --wallet a doctor --wallet b", {"BT_WALLET_HOTKEY": "h"})
    assert (options.netuid, options.wallet, options.wallet_hotkey) == (1, "b", "h")


def test_without_a_subnet_everything_stays_here_whatever_btcli_users_have_in_their_environment(parsed):
    assert is_local(parsed())
    options = parsed("", {"BT_NETWORK": "finney", "BT_WALLET": "mine", "BT_WALLET_PASSWORD": "x"})
    assert is_local(options) and "finney" not in "".join(settings_lines(options))
    assert not is_local(parsed("", {}, "NETUID=98")) and not is_local(parsed("--netuid 0"))


@pytest.mark.parametrize("line", ["--network test", "--wallet x", "doctor --subtensor.chain_endpoint ws://node"])
def test_an_option_of_the_chain_without_a_subnet_is_a_mistake_not_local_mode(mistake, line):
    assert "not which subnet; add --netuid N or set NETUID" in mistake(line)


def test_network_and_endpoint_agree_however_they_are_given(parsed):
    node, other = "ws://127.0.0.1:9946", "wss://other"
    for line, environ, dotenv, network, endpoint in (
        ("", {}, "", "finney", None),
        ("--network test", {"BT_CHAIN_ENDPOINT": node}, "", "test", None),  # never test's name with another's node
        (f"--chain-endpoint {node}", {"BT_NETWORK": "finney"}, "", None, node),
        (f"--network local --chain-endpoint {node}", {}, "", "local", node),  # as the seed writes it
        ("", {"BT_NETWORK": "test"}, f"BT_CHAIN_ENDPOINT={node}", "test", None),
        (f"--network {other}", {}, "", None, other),  # a node, as btcli takes it there too
        ("", {"BT_CHAIN_ENDPOINT": node}, "", None, node),
        ("--network local", {"BT_CHAIN_ENDPOINT": other}, "", "local", "ws://127.0.0.1:9944"),
    ):
        options = parsed(line, environ | {"NETUID": "1"}, dotenv)
        assert (options.network, options.chain_endpoint) == (network, endpoint), (line, environ, dotenv)


def axon(line: str, environ: dict) -> argparse.Namespace:
    """The options of a miner's parser."""
    return parse_options(miner.build_parser(), shlex.split(line), environ, Path("no.env"))


def test_a_setup_of_sdk_10_leads_where_it_led(parsed):
    sdk = {"BT_SUBTENSOR_NETWORK": "test", "BT_WALLET_NAME": "w", "BT_WALLET_HOTKEY": "h", "BT_WALLET_PATH": "/w"}
    options = parsed("", sdk | {"NETUID": "98"})
    found = options.netuid, options.network, options.wallet, options.wallet_hotkey, options.wallet_path
    assert found == (98, "test", "w", "h", "/w")
    here = {"BT_AXON_IP": "[::]", "BT_AXON_PORT": "5", "BT_AXON_EXTERNAL_IP": "5.6.7.8", "BT_AXON_EXTERNAL_PORT": "41"}
    options = axon("--netuid 98", dict(here))
    assert (options.host, options.port, options.external_ip, options.external_port) == ("::", 5, "5.6.7.8", 41)
    options = axon("", dict(here))  # a local subnet has none of it, as it has no wallet
    assert (options.host, options.port, options.external_ip, options.external_port) == ("127.0.0.1", 8091, None, None)
    assert axon("--axon.port 7", dict(here)).port == 7


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("BT_AXON_MAX_WORKERS", "5"), ("BT_LOGGING_RECORD_LOG", "1"), ("BT_LOGGING_LOGGING_DIR", "/x"),
        ("BT_PRIORITY_MAXSIZE", "5"), ("BT_SUBTENSOR_MOCK", "true"), ("BT_WALLET_HOTKY", "misspelt"),
    ],
)  # fmt: skip
def test_a_variable_of_the_sdk_that_nobody_reads_is_refused_where_it_would_be_believed(
    parsed, mistake, variable, value
):
    assert f"{variable} (environment): nothing here reads it" in mistake("--netuid 1", {variable: value})
    assert ".env): nothing here reads it" in mistake("--netuid 1", {}, f"{variable}={value}")
    for environ in ({variable: ""}, {variable: "0"}, {variable: "false"}):
        assert parsed("--netuid 1", environ, f"{variable}={value}").netuid == 1
    assert is_local(parsed("", {variable: value}))


def test_the_sdks_switches_of_the_log_are_on_or_off(parsed, mistake):
    for environ, level in (
        ({"BT_LOGGING_DEBUG": "1"}, "DEBUG"),
        ({"BT_LOGGING_TRACE": "true"}, "TRACE"),
        ({"BT_LOGGING_TRACE": "false", "BT_LOGGING_INFO": "True"}, "INFO"),
        ({"BT_LOGGING_DEBUG": "0"}, "INFO"),
    ):
        assert (
            parsed("", dict(environ)).log_level == level and parsed("--log-level ERROR", environ).log_level == "ERROR"
        )
    assert "say different things" in mistake("", {"BT_LOGGING_DEBUG": "1", "BT_LOGGING_TRACE": "1"})


def test_the_log_options_give_what_run_takes(parsed):
    for line, level in (
        ("", "INFO"), ("--logging.debug", "DEBUG"), ("--logging.trace", "TRACE"), ("--log-level ERROR", "ERROR"),
        ("--logging.trace --log-level WARNING", "WARNING"),
    ):  # fmt: skip
        options = parsed(line)
        assert (options.log_level, options.log_json, options.log_file) == (level, False, None)
    options = parsed("--log-json --log_file x.log doctor")
    assert (options.log_json, options.log_file) == (True, "x.log")


# ---------------------------------------------------------------------------------------------------------------------
# A pool of a real chain

POOL, VAULT, NODE = "0x" + "AB" * 20, "0x" + "cd" * 20, "https://node.example/v3/SECRET"


def test_nodes_may_be_given_again_and_again_and_a_variable_has_commas_between_them(parsed):
    for command in ("", "doctor "):
        options = parsed(f"{command}--rpc {NODE} --rpc http://127.0.0.1:8545 --pool {POOL}", {"ALM_RPC_URLS": "x"})
        assert options.rpc == [NODE, "http://127.0.0.1:8545"] and options.pool == POOL.lower()
    environ = {"ALM_RPC_URLS": f"{NODE}, http://127.0.0.1:8545", "ALM_POOL": POOL}
    assert parsed("", environ).rpc == [NODE, "http://127.0.0.1:8545"] and "ALM_RPC_URLS" not in environ
    assert parsed("", {}, f"ALM_RPC_URLS='{NODE}'").rpc == [NODE]
    assert parsed("").rpc is None and parsed("", {"ALM_RPC_URLS": ""}, f"ALM_RPC_URLS='{NODE}'").rpc is None


def test_a_real_pool_is_all_that_a_market_needs_to_be_opened(parsed):
    line = f"--rpc {NODE} --pool {POOL} --vault {VAULT.upper().replace('X', 'x')}"
    assert real_market(parsed(line)) == ((NODE,), POOL.lower(), VAULT, None, CONFIRMATIONS, None, None, ())
    minters = "0x" + "A" * 40, "0x" + "2" * 40
    named = "".join(f" --vault-operator {one}" for one in minters)
    assert real_market(parsed(line + named)).operators == tuple(map(str.lower, minters))
    assert f"SETTING vault_operator = {', '.join(minters).lower()} (option)" in settings_lines(parsed(line + named))
    bot = " --executor-url http://127.0.0.1:8095/ --manager 0x" + "1" * 40 + " --confirmations 0"
    found = real_market(parsed(line + bot, {"EXECUTOR_API_KEY": "k3y"}))
    assert found[3:6] == ("0x" + "1" * 40, 0, "http://127.0.0.1:8095") and found.executor_key.reveal() == "k3y"
    assert "k3y" not in repr(found)
    found = real_market(parsed(line, {"EXECUTOR_BOT_URL": "http://127.0.0.1:8095", "EXECUTOR_API_KEY": "k3y"}))
    assert found.executor_url == "http://127.0.0.1:8095"
    assert real_market(parsed("", {"ALM_POOL": POOL, "EXECUTOR_API_KEY": "k3y"})) is None
    assert real_market(parsed(line, {"EXECUTOR_API_KEY": "k3y"})).executor_key is None


@pytest.mark.parametrize(
    ("line", "environ", "says"),
    [
        (f"--rpc {NODE} --vault {VAULT}", {}, "no pool; add --pool 0x..., or set ALM_POOL"),
        (f"--rpc {NODE} --pool {POOL}", {}, "no vault; add --vault 0x..."),
        (f"--rpc {NODE} --pool {POOL} --vault {VAULT} --executor-url http://127.0.0.1:1/SECRET", {}, "asks for a key"),
    ],
)
def test_a_market_that_lacks_a_part_says_which(parsed, line, environ, says):
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        real_market(parsed(line, environ))
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "environ", "says"),
    [
        (f"--pool {POOL}", {}, "--pool is given, but no node of the chain; add --rpc URL or set ALM_RPC_URLS"),
        ("--executor-url http://127.0.0.1:1", {}, "--executor-url is given, but no node"),
        ("--confirmations 5", {}, "--confirmations is given, but no node"),
        (f"--rpc {NODE} --events recording", {}, "--rpc is for a real chain, --events is a recording; name one"),
        (f"--vault {VAULT}", {}, "--vault is given, but no node of the chain"),
        (f"--rpc {NODE} --executor-key-file k", {}, "--executor-key-file is the key of an executor bot; add --exec"),
        (f"--rpc {NODE} --vault 0:-60:60", {}, "--vault '0:-60:60': 0x and 40 hexadecimal digits"),
        (f"--rpc {NODE} --vault 0x{'5e' * 32}", {}, "--vault 66 characters: 0x and 40"),  # a private key
        ("--rpc ws://node/SECRET", {}, "--rpc"),
        ("--rpc node/SECRET", {}, "--rpc"),
        ("", {"ALM_RPC_URLS": f"{NODE},"}, "ALM_RPC_URLS (environment)"),
        ("", {"ALM_POOL": "0x12"}, "ALM_POOL (environment) '0x12'"),
        (f"--rpc {NODE} --confirmations -1", {}, "--confirmations"),
        (f"--rpc {NODE} --executor-url http://127.0.0.1:1/?SECRET", {}, "--executor-url"),
    ],
)
def test_a_mistake_about_a_real_pool_is_one_line_without_a_secret(mistake, line, environ, says):
    error = mistake(line, environ)
    assert says in error and "SECRET" not in error and "5e5e5e" not in error


def test_a_recording_that_is_named_counts_for_more_than_a_chain_in_the_environment(parsed):
    environ = {"ALM_RPC_URLS": NODE, "ALM_POOL": POOL, "EXECUTOR_BOT_URL": "http://127.0.0.1:1"}
    options = parsed("--events recording --vault 0:-60:60", environ)
    assert real_market(options) is None and options.vault == "0:-60:60"
    assert not [line for line in settings_lines(options) if "example" in line or "pool" in line]


def test_the_executors_key_comes_from_one_place_and_fits_into_a_header(parsed, tmp_path):
    path = tmp_path / "key"
    path.write_text("from-file\nrest")
    path.chmod(0o600)
    line = f"--rpc {NODE} --executor-url http://127.0.0.1:1 --executor-key-file {path}"
    assert read_executor_key(parsed(f"--rpc {NODE}")) is None
    assert read_executor_key(parsed(line)).reveal() == "from-file"
    environ = {"EXECUTOR_API_KEY": "from-environment"}
    options = parsed(f"--rpc {NODE}", environ)
    assert read_executor_key(options).reveal() == "from-environment" and not environ
    assert "from-environment" not in f"{options} {settings_lines(options)}"
    assert read_executor_key(parsed(line, {"EXECUTOR_API_KEY": "x"})).reveal() == "from-file"
    with pytest.raises(UserError, match="both executor_key"):
        read_executor_key(parsed("", {"EXECUTOR_API_KEY": "x", "EXECUTOR_API_KEY_FILE": str(path)}))
    with pytest.raises(UserError, match="another character") as caught:
        read_executor_key(parsed("", {"EXECUTOR_API_KEY": "x\nInjected: header"}))
    assert "Injected" not in str(caught.value)
    path.chmod(0o640)
    with pytest.raises(UserError, match=f"key file {path} can be read by others; run: chmod 600"):
        read_executor_key(parsed(line))
    path.chmod(0o600)
    path.write_text("\n")
    with pytest.raises(UserError, match="the first line, which should be the key, is empty"):
        read_executor_key(parsed(line))


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NETUID", "9x"), ("NETUID", "-1"), ("NETUID", "65536"), ("NETUID", "1.0"), ("BT_NETWORK", "fineny"),
        ("SUBTENSOR_NETWORK", "http://node"), ("BT_CHAIN_ENDPOINT", "127.0.0.1:9944"), ("BT_CHAIN_ENDPOINT", "ws://"),
        ("BT_CHAIN_ENDPOINT", "ws://node:99999"), ("BT_WALLET", "../other"), ("HOTKEY_NAME", ".."),
        ("WALLET_NAME", " x"), ("WALLET_NAME", "x\xa0"), ("BT_WALLET_PATH", "  "), ("WEBHOOK", "http://plain"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_line_that_names_where_it_stands(mistake, name, value):
    subnet = {"NETUID": "1"} if name != "NETUID" else {}
    assert mistake("", subnet | {name: value}).startswith(f"program.py: {name} (environment) ")
    error = mistake("", {}, "".join(f"{key}='{text}'\n" for key, text in (subnet | {name: value}).items()))
    assert re.match(rf"program\.py: {name} \(\S+\.env\) ", error)


@pytest.mark.parametrize(
    "option",
    ["--netuid ''", "--netuid 98x", "--network ''", "--network tset", "--wallet ''", "--wallet a/b", "--webhook ''",
     "--password-file ''", "--password-command ' '", "--log-file ''", "--log-level LOUD", "--wallet-path ''"],
)  # fmt: skip
def test_an_option_that_is_empty_or_misspelt_is_one_line_that_names_it(mistake, option):
    assert option.split()[0] in mistake(f"{option} --netuid 1" if "netuid" not in option else option)


def test_a_mistaken_address_is_never_repeated_as_it_may_hold_a_key(mistake):
    for line in ("--webhook htps://hooks/T0/SECRET", "--network http://node/SECRET", "--chain-endpoint node/SECRET"):
        assert "SECRET" not in mistake(f"--netuid 1 {line}")


# ---------------------------------------------------------------------------------------------------------------------
# .env


def test_a_file_is_read_as_a_shell_would_read_it(tmp_path):
    """The shell itself is the oracle, for what both allow."""
    text = (
        "# a comment\n\nPLAIN=value\nexport EXPORTED=yes\n  INDENTED=1  # with a comment\nEMPTY=\n"
        'LITERAL=\'a $b "c" #d\'\nQUOTED="a \\"b\\" \\\\ \\$HOME #c"  # d\nURL=https://host/path?x=1\nTAIL=last'
    )
    (tmp_path / "file").write_text(text)
    show = f"{sys.executable} -c 'import json, os; print(json.dumps(dict(os.environ)))'"
    done = subprocess.run(
        ["sh", "-c", f"set -a; . {tmp_path / 'file'}; {show}"], env={}, capture_output=True, check=True
    )
    shell = json.loads(done.stdout)
    found = read_dotenv(tmp_path / "file")
    assert len(found) == 8 and found == {name: shell[name] for name in found}
    for before, after in (("\n", "\r\n"), ("# a comment", "\ufeff# a comment")):
        (tmp_path / "file").write_bytes(text.replace(before, after).encode())
        assert read_dotenv(tmp_path / "file") == found


@pytest.mark.parametrize(
    "line",
    ["NETUID", "NETUID 98", "9X=1", "A B=1", "X='open", 'X="open', "X='a'b", "X=a'b", "X=a#b", 'X="a\\q"', "=1",
     "NÉ=1", "X=${HOME}", 'X="${HOME}"', "A=1"],
)  # fmt: skip
def test_what_is_not_clear_in_a_file_is_refused_by_its_line_number_without_its_text(tmp_path, line):
    (tmp_path / "file").write_text(f"A=1\n\n{line}\n")
    with pytest.raises(UserError, match=r"file line 3: ") as caught:
        read_dotenv(tmp_path / "file")
    said = str(caught.value).partition("file line 3: ")[2]  # the folder's own name may have anything
    assert "98" not in said and "open" not in said


def test_a_folder_that_may_not_be_looked_into_is_one_line(monkeypatch):
    def refuses(_) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refuses)
    with pytest.raises(UserError, match="here cannot be read: Permission denied"):
        read_dotenv(Path("here"))


def test_no_file_and_a_folder_are_no_variables_but_an_unreadable_file_is_a_mistake(tmp_path):
    assert read_dotenv(tmp_path / "none") == {} and read_dotenv(tmp_path) == {}
    (tmp_path / "file").write_bytes(b"X=\xff\xfe")
    with pytest.raises(UserError, match="UTF-8"):
        read_dotenv(tmp_path / "file")
    (tmp_path / "file").write_text("X=1\n" * 20_000)
    with pytest.raises(UserError, match="longer than"):
        read_dotenv(tmp_path / "file")


def test_a_file_with_a_secret_that_others_can_read_is_refused_with_the_fix(tmp_path):
    path = tmp_path / ".env"
    path.write_text(f"NETUID=1\nBT_WALLET_PASSWORD='{PASSWORD.replace(chr(39), '')}'\n")
    path.chmod(0o640)
    with pytest.raises(UserError, match=f"run: chmod 600 {path}") as caught:
        options_module.resolve(build_parser().parse_args([]), {}, path)
    assert "horse" not in str(caught.value)
    path.write_text("NETUID=1\n")
    options_module.resolve(build_parser().parse_args([]), {}, path)


# ---------------------------------------------------------------------------------------------------------------------
# Secrets


def test_what_is_printed_names_every_setting_and_its_source_but_no_secret(parsed):
    environ = {
        "MINER_WALLET_PASSWORD": PASSWORD,
        "NETUID": "98",
        "WEBHOOK": "https://hooks.slack.com/services/T/SECRET",
    }
    options = parsed("--wallet alice --chain-endpoint wss://u:SECRET@node:443/SECRET?SECRET", environ)
    lines = settings_lines(options)
    assert lines == [
        "SETTING netuid = 98 (environment NETUID)",
        "SETTING chain_endpoint = wss://node:443/***** (option)",
        "SETTING wallet = alice (option)",
        "SETTING wallet_hotkey = default (default)",
        f"SETTING wallet_path = {Path.home()}/.bittensor/wallets (default)",
        "SETTING password = ***** (environment MINER_WALLET_PASSWORD)",
        "SETTING log_level = INFO (default)",
        "SETTING log_json = False (default)",
        "SETTING webhook = https://*.slack.com/***** (environment WEBHOOK)",
    ]
    assert options.webhook.reveal().endswith("/SECRET") and read_password(options) == PASSWORD
    shown = f"{options} {vars(options)!r} {options.password} {options.password!r} {options.password:}"
    assert "horse" not in shown and "T/SECRET" not in shown
    (line,) = [x for x in settings_lines(parsed("--password-command 'echo hunter2' --netuid 1")) if "command" in x]
    assert line == "SETTING password_command = echo ... (option)"


def test_masked_addresses_keep_only_scheme_domain_and_port():
    for url, shown in (
        ("https://hooks.slack.com/services/x", "https://*.slack.com/*****"),
        ("https://0123456789abcdef0123.eth.rpc.example.cloud", "https://*.example.cloud"),
        ("https://bot.example:8090", "https://bot.example:8090"),
        ("http://10.0.0.7:8545", "http://10.0.0.7:8545"),
        ("ws://127.0.0.1:9944", "ws://127.0.0.1:9944"),
        ("ws://127.0.0.1:9944/", "ws://127.0.0.1:9944"),
        ("wss://user:pw@[::1]:1/?key=x", "wss://[::1]:1/*****"),
    ):
        assert masked_url(url) == shown and repr(Secret(url, masked_url(url))) == shown


def test_no_child_process_inherits_a_secret_however_local_the_run(tmp_path):
    """In a real process, with a real child; `.env` never enters the environment."""
    (tmp_path / ".env").write_text("WEBHOOK='https://h/of-the-file'\n")
    (tmp_path / ".env").chmod(0o600)
    script = (
        "import subprocess, sys; from test_settings import build_parser, parse_options\n"
        "parse_options(build_parser(), [])\n"
        "print(subprocess.run(['env'], capture_output=True, text=True).stdout)"
    )
    secrets = ("BT_WALLET_PASSWORD", "MINER_WALLET_PASSWORD", "SLACK_WEBHOOK_URL", "WEBHOOK", "BT_PW__KEYS_COLDKEY")
    environ = os.environ | dict.fromkeys(secrets, "https://h/hunter2") | {"BT_WALLET": "kept", "BT_PWD": "kept"}
    environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "BT_WALLET=kept" in done.stdout and "BT_PWD=kept" in done.stdout
    assert "hunter2" not in done.stdout and "of-the-file" not in done.stdout


# ---------------------------------------------------------------------------------------------------------------------
# The password


def password_file(folder: Path, content: bytes, mode: int = 0o600) -> str:
    path = folder / "password"
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


def test_nobody_gave_a_password(parsed):
    assert read_password(parsed()) is None


def test_every_way_gives_the_same_password_to_the_last_letter(parsed, tmp_path):
    path = password_file(tmp_path, f"{PASSWORD}\r\nsecond line\n".encode())
    for environ, line in (
        ({"BT_WALLET_PASSWORD": PASSWORD}, ""),
        ({"MINER_WALLET_PASSWORD": PASSWORD}, ""),
        ({"BT_WALLET_PASSWORD_FILE": path}, ""),
        ({}, f"--password-file {path}"),
        ({}, f"--password-command 'cat {path}'"),
        ({"BT_WALLET_PASSWORD_COMMAND": f"cat {path}"}, ""),
    ):
        options = parsed(f"--netuid 1 {line}", environ)
        assert read_password(options) == PASSWORD
        assert not any(PASSWORD in value for value in environ.values())
    assert read_password(parsed("", {}, "BT_WALLET_PASSWORD='pass word'")) == "pass word"


@pytest.mark.parametrize("kind", ["password", "executor key"])
def test_what_cannot_be_seen_in_a_secret_is_treated_alike_wherever_it_comes_from(parsed, tmp_path, kind):
    """The end of its line and the mark before it go, the rest stays; a refusal names what cannot be seen."""
    password = kind == "password"
    variable, file = ("BT_WALLET_PASSWORD", "PASSWORD") if password else ("EXECUTOR_API_KEY", "API_KEY")
    prefix, bot = "BT_WALLET" if password else "EXECUTOR", f"ALM_RPC_URLS={NODE}\nEXECUTOR_BOT_URL=http://127.0.0.1:1\n"

    def read(environ: dict, dotenv: str = "") -> str:
        options = parsed("", environ, bot + dotenv)
        try:
            return read_password(options) if password else read_executor_key(options).reveal()
        except UserError as error:
            assert "hunter2" not in str(error)
            return str(error).partition("; ")[2]

    for before, after, said in (
        ("", "\n", ""), ("", "\r\n", ""), ("", "\r", ""), ("\ufeff", "", ""), ("\ufeff", "\r\n", ""),
        ("", "\xa0", "it has what cannot be seen: U+00A0"), ("\u200b", "\n", "it has what cannot be seen: U+200B"),
        ("", "\ufeff", "it has what cannot be seen: U+FEFF"),
        ("", " ", "it has what cannot be seen: a space at an end"),
    ):  # fmt: skip
        raw = f"{before}hunter2{after}"
        kept = raw.removeprefix("\ufeff").rstrip("\r\n")
        path = password_file(tmp_path, raw.encode())
        ways = [read({variable: raw}), read({f"{prefix}_{file}_FILE": path})]
        ways += [read({}, f"{variable}='{raw}'\n")] if "\n" not in raw else []
        ways += [read({}, f"{variable}={raw}\n")] if after != " " else []  # without quotes a space there is none
        ways += [read({"BT_WALLET_PASSWORD_COMMAND": f"cat {path}"})] if password else []
        assert set(ways) == {kept if password or not said else said}, (before, after)
        assert unseen(kept) == (f"; {said}" if said else "")


def test_a_value_that_is_no_utf_8_is_one_line(mistake):
    assert "BT_WALLET_PASSWORD (environment) is no UTF-8" in mistake("", {"BT_WALLET_PASSWORD": "hunter2\udcff"})


def test_the_way_nearest_to_the_command_line_counts_and_two_in_one_place_are_a_mistake(parsed, tmp_path):
    path = password_file(tmp_path, b"of the file")
    options = parsed(f"--netuid 1 --password-file {path}", {"BT_WALLET_PASSWORD": "of the environment"})
    assert read_password(options) == "of the file"
    options = parsed("", {"BT_WALLET_PASSWORD": "of the environment"}, f"BT_WALLET_PASSWORD_FILE={path}")
    assert read_password(options) == "of the environment"
    options = parsed(f"--netuid 1 --password-file {path} --password-command true")
    with pytest.raises(UserError, match="both password_command and password_file"):
        read_password(options)


def refused(parsed, line: str) -> str:
    with pytest.raises(UserError) as caught:
        read_password(parsed(f"--netuid 1 {line}"))
    assert "\n" not in str(caught.value) and "hunter2" not in str(caught.value)
    return str(caught.value)


def test_a_password_file_that_others_can_read_is_refused_with_the_fix(parsed, tmp_path, monkeypatch):
    for mode in (0o640, 0o604, 0o620, 0o666):
        path = password_file(tmp_path, b"hunter2", mode)
        assert f"run: chmod 600 {path}" in refused(parsed, f"--password-file {path}")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))  # of systemd, which guards it otherwise
    assert read_password(parsed(f"--netuid 1 --password-file {path}")) == "hunter2"
    password_file(tmp_path, b"hunter2", 0o400)
    assert read_password(parsed(f"--netuid 1 --password-file {path}")) == "hunter2"


def test_a_secret_on_a_read_only_mount_as_containers_have_it_is_read_whatever_its_permissions(
    parsed, tmp_path, monkeypatch
):
    path = password_file(tmp_path, b"hunter2", 0o444)
    assert "can be read by others" in refused(parsed, f"--password-file {path}")
    there = os.statvfs(path)
    monkeypatch.setattr(os, "fstatvfs", lambda file: SimpleNamespace(f_flag=there.f_flag | os.ST_RDONLY))
    assert read_password(parsed(f"--netuid 1 --password-file {path}")) == "hunter2"
    (tmp_path / ".env").write_text("BT_WALLET_PASSWORD=hunter2")
    (tmp_path / ".env").chmod(0o444)
    options = parse_options(build_parser(), [], {}, tmp_path / ".env")
    assert options.password.reveal() == "hunter2"


def test_a_file_of_a_secret_or_of_who_may_be_paid_that_is_anothers_is_refused(parsed, tmp_path, monkeypatch):
    path, user = Path(password_file(tmp_path, b"0123456789abcdef")), os.geteuid() or 12345
    if os.geteuid():
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    else:
        os.chown(path, user, -1)
    says = f"{path} belongs to another user, number {user}; run: chown {os.geteuid()} {path}"
    for read in (
        lambda: read_password(parsed(f"--netuid 1 --password-file {path}")),
        lambda: read_executor_key(parsed("", {"EXECUTOR_API_KEY_FILE": str(path)})),
        lambda: load_account(path, None),
        lambda: read_api_key(path),
        lambda: read_allow_list(path),
    ):
        with pytest.raises(UserError, match=re.escape(says)):
            read()
    path.write_text("BT_WALLET_PASSWORD=hunter2")
    with pytest.raises(UserError, match=f"{path} holds BT_WALLET_PASSWORD and belongs to another user"):
        options_module.resolve(build_parser().parse_args([]), {}, path)


def test_a_password_file_that_holds_none_is_one_line(parsed, tmp_path):
    for content, said in ((b"", "empty"), (b"\nhunter2", "empty"), (b"\xff\xfe", "UTF-8"), (b"x" * 10_000, "bytes")):
        assert said in refused(parsed, f"--password-file {password_file(tmp_path, content)}")
    assert "No such file" in refused(parsed, f"--password-file {tmp_path / 'none'}")
    assert "directory" in refused(parsed, f"--password-file {tmp_path}")
    os.mkfifo(tmp_path / "pipe", 0o600)  # nobody writes to it
    assert "no regular file" in refused(parsed, f"--password-file {tmp_path / 'pipe'}")


def test_a_password_command_that_fails_is_one_line_without_its_output(parsed, tmp_path, capfd):
    for command, said in (
        ("no-such-program-anywhere hunter2", "No such file"),
        ("sh -c 'open", "cannot be split"),
        ("true", "empty"),
        ("yes hunter2", "bytes"),
    ):
        assert said in refused(parsed, f"--password-command {shlex.quote(command)}")
    fails = "sh -c 'echo hunter2; echo hunter2 >&2; exit 3'"
    with pytest.raises(Passing, match=r"\(sh\) ended with code 3; run it to see why$"):
        refused(parsed, f"--password-command {shlex.quote(fails)}")
    assert "hunter2" not in "".join(capfd.readouterr())


def test_a_password_command_that_hangs_ends_with_its_children_at_the_deadline(parsed, tmp_path, monkeypatch):
    monkeypatch.setattr(passwords, "PASSWORD_COMMAND_SECONDS", 0.5)
    mark = tmp_path / "child"
    hangs = f"sh -c 'sleep 600 & echo $! > {mark}; echo hunter2; wait'"
    drips = "sh -c 'while :; do printf x; sleep 0.02; done'"
    for slow in (hangs, drips):
        with pytest.raises(Passing, match=r"did not end within 0\.5 s"):
            refused(parsed, f"--password-command {shlex.quote(slow)}")
    child = Path(f"/proc/{mark.read_text().strip()}/stat")
    deadline = time.monotonic() + 20
    while child.exists() and child.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the command's own child is still there"
        time.sleep(0.01)


def test_a_password_command_runs_without_a_shell_and_without_secrets(parsed, monkeypatch):
    monkeypatch.setenv("BT_WALLET_PASSWORD", "hunter2")
    command = (
        f"{sys.executable} -c \"import os, sys; print(sys.argv[1], os.environ.get('BT_WALLET_PASSWORD'))\" '$(id) ;'"
    )
    options = parse_options(build_parser(), ["--netuid", "1", "--password-command", command])
    assert read_password(options) == "$(id) ; None"


# ---------------------------------------------------------------------------------------------------------------------
# The page of options


def test_the_table_of_options_is_the_settings_as_they_are():
    section = (ROOT / "docs/options.md").read_text()
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")][2:]
    listed = {
        (*re.findall(r"`(--\S+)`", flags), *re.findall(r"`([A-Z_]+)`", names)): row
        for row in rows
        for flags, names, _ in [row]
    }
    for setting in (*CHAIN_SETTINGS, *NOTIFY_SETTINGS, *MARKET_SETTINGS, *axon_settings(8091, "", "")):
        dotted = [flag for flag in setting.flags if "_" not in flag.partition(".")[0]]
        *_, default = listed.pop((*dotted, *setting.env))
        shown = re.findall(r"`(.+)`", default)
        usual = {"network": "finney"}.get(setting.name, setting.default)
        assert shown == ([] if usual is None else [str(usual)]), setting.name
    level = ("--log-level", "--logging.debug", "--logging.trace", *LOG_SETTINGS[0].env)
    assert [*listed] == [level, ("--log-json",), ("--log-file",)]
