"""Secrets are planted wherever a program takes one, everything fails, and all that leaves is searched for them.

Run with `python -m pytest tests/test_secrets.py`. The programs run in this process, against a server that answers in
every wrong way and quotes what was planted in every spelling. A setting that is neither planted here nor in `OPEN`
fails a test. Read next: `runtime/hidden.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import json
import logging
import re
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import bittensor as bt
import pytest
from aiohttp import web
from bittensor.keyfiles import Keyfile
from bittensor.sp_core import KeyfileError
from subnets import a_job, hotkey_of, keep, model, play_subnet, rows
from test_executor_client import ORDER

import audit.__main__ as auditing
import chain.__main__ as telling
import doctor.__main__ as examining
import evm.__main__ as recording
import executor.__main__ as bot
import markets.__main__ as replaying
import miner
import stake
import validator
from audit import stored
from audit.receipts import seal_digest, statement
from chain import notify, opening
from chain.base import ChainError
from chain.subtensor import BittensorChain
from doctor import network, nodes
from evm.rpc import Rpc
from executor.client import Bot, place
from executor.door import Door
from markets.base import MarketError, MarketGap
from protocol import Code
from runtime import process
from runtime.hidden import HIDDEN, conceal, hide
from runtime.options import Setting
from runtime.passwords import Secret
from status.reader import Reader
from store import Store
from wire.client import client_session
from wire.codec import canonical
from wire.server import serve

ADDRESS = "0x" + "ab" * 20
PLANTED = {  # every setting that holds a secret, or names a file or command that does
    *("rpc", "audit_rpc", "slack_webhook_url", "network", "chain_endpoint", "executor_url"),  # addresses
    *("password", "executor_key"),
    *("password_file", "executor_key_file", "api_key_file", "key_file", "password_command"),
}
OPEN = {  # settings that hold none
    *(
        "netuid",
        "wallet",
        "wallet_hotkey",
        "wallet_path",
        "pool",
        "vault",
        "manager",
        "vault_operator",
        "confirmations",
    ),
    *("log_level", "log_json", "log_file", "host", "port", "external_ip", "external_port"),
}
PROGRAMS = validator, miner, stake, bot, recording, replaying, auditing, telling
PARTS = "user", "word", "path", "key"


def secret(name: str) -> str:
    """A distinct one for each name."""
    return base64.b32encode(hashlib.sha256(name.encode()).digest()).decode()[:28]


def address(name: str, at: str, scheme: str = "http") -> str:
    user, word, path, key = (secret(f"{name} {part}") for part in PARTS)
    if name == "executor_url":  # it takes no user and no query
        return f"{scheme}://{at}/v2/{path}"
    return f"{scheme}://{user}:{word}@{at}/v2/{path}?key={key}"


PHRASE = '"\\ü\t' + secret("phrase")  # spelled in other ways in JSON, in logs and in addresses
KEY = hashlib.sha256(b"vault").hexdigest()
FILES = {"phrase": PHRASE, "door": secret("door"), "vault": KEY}
ALL = [*FILES.values(), secret("word"), *(secret(f"{name} {part}") for name in (*PLANTED, "proxy") for part in PARTS)]


def spellings(text: str) -> list[str]:
    """A secret as it is, in addresses, JSON, Python, hex and base64; and it may be cut in the middle."""
    raw = text.encode()
    found = [text, quote(text), quote(text, safe=""), json.dumps(text)[1:-1], repr(text)[1:-1], raw.hex()]
    found += [coded.decode().rstrip("=") for coded in (base64.b64encode(raw), base64.urlsafe_b64encode(raw))]
    halves = (half for one in found for half in (one[: len(one) // 2], one[len(one) // 2 :]))
    return [*found, raw.hex().upper(), *halves]


SOUGHT = {part.lower() for text in ALL for part in spellings(text)}


def assert_clean(where: object, text: str) -> None:
    lowered = text.lower()
    at, found = next(((at, part) for part in SOUGHT if (at := lowered.find(part)) >= 0), (0, ""))
    assert not found, f"{where}: ...{text[max(0, at - 200) : at + 60]}... {found}"


def test_every_setting_and_address_of_every_program_is_planted_or_known_to_hold_no_secret():
    def look(parser: argparse.ArgumentParser) -> Iterator[str]:
        for name, group in parser._defaults.items():
            yield from (one.name for one in group if isinstance(one, Setting)) if name.startswith("settings_") else ()
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for inner in action.choices.values():
                    yield from look(inner)
            elif action.metavar == "URL" or re.search("key|password|secret|webhook|url$", action.dest):
                yield action.dest

    found = {name for module in PROGRAMS for name in look(module.build_parser())}
    public = {"url", "target_hotkey", "aggregator_hotkey", "destination_coldkey"}  # `url`: of a validator's receipts
    assert found == PLANTED | OPEN | public


# ---------------------------------------------------------------------------------------------------------------------
# A server that answers in every wrong way


def _http(status: str, body: bytes | str, *headers: str) -> bytes:
    body = body if isinstance(body, bytes) else body.encode()
    return "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]).encode() + body


def _error(code: int, text: str) -> str:
    return json.dumps({"jsonrpc": "2.0", "id": 0, "error": {"code": code, "message": text}})


ANSWERS: dict[str, Callable[[str, str], bytes]] = {  # of a request's head, and of what to quote
    "garbage": lambda head, text: f"{text} {head}".encode()[:3000],
    "two lengths": lambda head, text: _http("200 OK", "xx", f"Content-Length: {head.split()[1]}", f"X: {text[:500]}"),
    "bad header": lambda head, text: f"HTTP/1.1 200 OK\r\n{text[:900]}\0\r\n\r\n".encode(),
    "unauthorised": lambda head, text: _http("401 No", _error(-32001, head.splitlines()[0] + text)),
    "page": lambda head, text: _http("500 Oh", f"<html>{head} {text}", "Content-Type: text/html"),
    "short": lambda head, text: _http("403 No", head.split()[1]),
    "refused": lambda head, text: _http("200 OK", _error(-32000, f"{text} {head}")),
    "half": lambda head, text: _http("403 No", _error(-32000, text[:14])),
    "limited": lambda head, text: _http("429 Slow", _error(-32005, f"rate limit of {text}"), "Retry-After: 0"),
    "number": lambda head, text: _http("200 OK", json.dumps({"jsonrpc": "2.0", "id": 0, "result": text})),
    "redirect": lambda head, text: _http("302 Found", "", f"Location: http://127.0.0.2:9{head.split()[1]}"),
    "nothing": lambda head, text: b"",
    "hang": lambda head, text: b"hang",
}
NO_ANSWER = {"refused": "127.0.0.1:9", "no such name": "nobody.invalid", "no TLS": ""}


class Hostile(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        head = ""
        while (line := self.rfile.readline(65536).decode("latin-1")).strip():
            head += line
        if length := re.search(r"(?i)content-length: (\d+)", head):
            self.rfile.read(int(length[1]))
        if head.count(" ") < 2:  # no HTTP
            return
        if (said := ANSWERS[self.server.mode](head, self.server.quoted)) == b"hang":
            self.server.over.wait(5)
        self.wfile.write(said)


class Server(socketserver.ThreadingTCPServer):
    daemon_threads, block_on_close, over, mode, quoted = True, False, threading.Event(), "", ""

    def quote(self, texts: list[str]) -> str:
        """What was planted with the client of now, in every spelling."""
        self.quoted = " ".join(part for text in texts for part in spellings(text))
        return self.quoted

    def ways(self, *names: str) -> Iterator[tuple[str, str]]:
        """Every way to fail, or these: a host, and the letter that makes of a scheme one with TLS."""
        for self.mode in names or ANSWERS:
            yield self.at, ""
        for name, at in NO_ANSWER.items():
            yield at or self.at, "s" * (name == "no TLS")

    def handle_error(self, *_) -> None:
        """The client gave up."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Hostile) as one:
        threading.Thread(target=one.serve_forever, args=(0.01,), daemon=True).start()
        one.at = f"127.0.0.1:{one.server_address[1]}"
        yield one
        one.over.set()
        one.shutdown()


@pytest.fixture
def log(monkeypatch, capfd) -> Iterator[Callable[[], str]]:
    """What was printed and logged since it was last asked; the log has no handlers before `process.log_to`."""
    levels = {name: logging.getLogger(name).level for name in ("", *process.LIBRARIES)}
    hooks = [(where, name, getattr(where, name)) for where, name in HOOKS]
    monkeypatch.setattr(logging.root, "handlers", [])
    yield lambda: "".join(capfd.readouterr())
    logging.captureWarnings(False)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    for where, name, hook in hooks:
        setattr(where, name, hook)


HOOKS = (sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook")


@pytest.fixture
def run(tmp_path, monkeypatch, log, server) -> Callable[..., str]:
    """Run a program here, in a folder of its own, with files that hold secrets; search all that it left, return it."""
    monkeypatch.setattr(Rpc.__init__, "__defaults__", (0.3, 0.1))
    monkeypatch.setitem(BittensorChain.open.__func__.__wrapped__.__kwdefaults__, "deadline_seconds", 1.0)
    monkeypatch.setattr(opening, "RETRY_SECONDS", None)
    for module, name in ((nodes, "NODE_SECONDS"), (network, "BOT_SECONDS"), (notify, "POST_SECONDS")):
        monkeypatch.setattr(module, name, 0.1)
    lookup = socket.getaddrinfo

    def nowhere(host, *more, **named):
        if "invalid" in str(host):
            raise socket.gaierror(-2, f"Name or service not known: {server.quoted}")
        return lookup(host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text + "\n")
        (tmp_path / name).chmod(0o600)
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.chdir(out)

    def run(module, *arguments: object, **environ: str) -> str:
        words = " ".join(map(str, (*arguments, *environ.values())))
        server.quote([text for text in ALL if text in words] + [FILES[n] for n in FILES if str(tmp_path / n) in words])
        monkeypatch.setattr(logging.root, "handlers", [])
        with monkeypatch.context() as patch:
            for name, value in environ.items():
                patch.setenv(name, value)
            try:
                assert module.main([str(one) for one in arguments]) in (1, 2, 75), arguments
            except SystemExit as ended:
                assert ended.code == 2
            except Exception:  # nobody expected it: so the process says it
                sys.excepthook(*sys.exc_info())
        for handler in logging.root.handlers:
            handler.close()
        said = log()
        assert said, f"{module.__name__} {arguments} said nothing"
        assert_clean(f"{module.__name__} {arguments} {server.mode}", said)
        for file in (path for path in out.rglob("*") if path.is_file() and path.name != ".env"):
            assert_clean(file, file.read_bytes().decode("latin-1"))
        return said

    return run


def test_no_failure_of_a_node_or_bot_shows_an_address_or_a_key_in_any_program(run, server, tmp_path):
    pool, trace, shown = ("--pool", ADDRESS, "--vault", ADDRESS), ("--log-level", "TRACE"), ""
    key, door = ("--key-file", tmp_path / "vault"), ("--api-key-file", tmp_path / "door")
    for at, tls in server.ways():
        urls = address("rpc", at, f"http{tls}"), address("audit_rpc", at, f"http{tls}")
        with_bot = {"EXECUTOR_BOT_URL": address("executor_url", at, f"http{tls}")}
        with_bot |= {"ALM_RPC_URLS": ",".join(urls), "EXECUTOR_API_KEY": secret("executor_key user")}
        shown += run(validator, "doctor", *pool, **with_bot)
        shown += run(validator, *pool, *trace, **with_bot)
        for verb in (("serve", "--live", *door, "--log-json", "--log-file", "log"), ("approve", "--yes"), ("status",)):
            shown += run(bot, *verb, "--pool", ADDRESS, *key, *trace, EXECUTOR_RPC=",".join(urls))
        span = "--from", 1, "--to", 2, "--out", "recording", "--log-level", "DEBUG"
        shown += run(recording, "record", "--rpc", urls[0], "--rpc", urls[1], "--pool", ADDRESS, *span)
    assert "*****" in shown and "an error (code -32000)" in shown and "HTTP 401" in shown


def test_no_failure_of_a_chains_endpoint_shows_its_address(run, server, tmp_path):
    bt.Wallet("w", "plain", str(tmp_path)).create_new_coldkey(use_password=False, suppress=True).create_new_hotkey(
        use_password=False, suppress=True
    )
    who = "--netuid", 9, "--wallet", "w", "--wallet-hotkey", "plain", "--wallet-path", tmp_path
    trace = "--log-level", "TRACE"
    for at, tls in server.ways("garbage", "unauthorised", "redirect", "hang"):
        here = {"BT_CHAIN_ENDPOINT": address("chain_endpoint", at, f"ws{tls}")}
        here["https_proxy"] = here["http_proxy"] = address("proxy", at)
        run(stake, "status", *who, *trace, **here)
        if server.mode == "hang" and at == server.at:
            continue
        run(stake, "status", *who, *trace, "--network", address("network", at, f"ws{tls}"))
        if at != server.at or server.mode == "unauthorised":
            run(validator, *who, *trace, **here)
            run(miner, *who, "--external-ip", "8.8.8.8", *trace, **here)
            run(stake, "burn", "--once", *who, *trace, **here)
            run(validator, "doctor", *who, **here)


def test_no_password_is_shown_that_opens_nothing_wherever_it_came_from(run, tmp_path, monkeypatch):
    def never(file: Keyfile, password: str | None):
        raise KeyfileError(f"{file.path}: cannot be opened with {password!r}, {json.dumps(password)}")

    monkeypatch.setattr(Keyfile, "is_encrypted", lambda file: True)
    monkeypatch.setattr(Keyfile, "get_keypair", never)
    (tmp_path / "vault.json").write_text(json.dumps({"crypto": KEY, "version": 3}))
    (tmp_path / "vault.json").chmod(0o600)
    file = tmp_path / "phrase"
    given = [((), {"PASSWORD": PHRASE}), ((), {"PASSWORD_COMMAND": f"cat {file}"}), (("--password-file", file), {})]
    for options, environ in given:
        for verb in ("status", "burn", "sweep"):
            ends = ("--aggregator-hotkey", hotkey_of("a"), "--destination-coldkey", hotkey_of("b")) * (verb == "sweep")
            names = {f"BT_WALLET_{name}": value for name, value in environ.items()}
            run(stake, verb, "--netuid", 9, *ends, *options, **names)
        names = {f"EXECUTOR_{name}": value for name, value in environ.items()}
        said = run(bot, "approve", "--pool", ADDRESS, "--key-file", tmp_path / "vault.json", *options, **names)
        assert "is its password right?" in said
    Path(".env").write_text(f"BT_WALLET_PASSWORD={secret('word')}\nEXECUTOR_API_KEY='{secret('word')}\n")
    on_net = "--netuid", 9, "--external-ip", "8.8.8.8"
    assert ".env" in run(miner, *on_net)  # a quote that does not end
    Path(".env").write_text(f"BT_WALLET_PASSWORD={secret('word')}\n")
    assert "chmod 600" in run(miner, *on_net)
    Path(".env").chmod(0o600)
    assert "cannot be used" in run(miner, *on_net)
    Path(".env").unlink()
    for mode, text in ((0o644, KEY), (0o600, KEY + " " + KEY), (0o600, f"{{{KEY}")):
        for name in ("vault", "door", "phrase"):
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(mode)
        on_chain = "--rpc", address("rpc", "127.0.0.1:9"), "--pool", ADDRESS
        run(bot, "serve", *on_chain, "--key-file", tmp_path / "vault", "--api-key-file", tmp_path / "door")
        to_bot = "--executor-url", "http://127.0.0.1:9", "--executor-key-file", tmp_path / "door", "--vault", ADDRESS
        run(validator, *on_chain, *to_bot)
        run(validator, "doctor", *on_chain, *to_bot)
        run(stake, "sweep", "--netuid", 9, *ends, "--password-file", tmp_path / "phrase")


def test_no_mistake_in_options_shows_the_value_that_was_meant(run):
    url, word = address("slack_webhook_url", "hooks"), secret("word")
    run(telling, "notify", "hello", "--slack-webhok", url)
    run(telling, "notify", "hello", f"--password={word}", "--token", word)
    run(telling, url)
    run(validator, "--rpc", address("rpc", "a", "wss"))
    run(validator, "--chain-endpoint", address("chain_endpoint", "a"), "--netuid", 1)
    run(validator, "--wallet", address("network", "a"), "--netuid", 1)
    run(examining, "--rpcs", url)
    run(recording, "record", "--rpc", address("rpc", "a", "ws"), "--pool", ADDRESS, "--from", 1, "--to", 2, "-o", "x")
    run(replaying, "replay", "nowhere", ALM_RPC_URLS=url, BT_WALLET_PASSWORD=word)


def test_no_refusal_of_a_webhook_shows_its_address_and_no_alert_a_secret(run, server, log):
    for at, tls in server.ways():
        run(telling, "notify", "hello", SLACK_WEBHOOK_URL=address("slack_webhook_url", at, f"http{tls}"))
    got = []

    async def work() -> None:
        async def take(request: web.Request) -> web.Response:
            got.append(await request.text())
            return web.Response()

        app = web.Application()
        app.router.add_post("/v2/{any}", take)
        async with serve(app, "127.0.0.1", 0) as port:
            url = Secret(address("slack_webhook_url", f"127.0.0.1:{port}"))
            async with notify.Notifier.open(url, "here") as notifier:
                notifier.notify("kind", server.quote([secret(f"slack_webhook_url {part}") for part in PARTS]))

    asyncio.run(work())
    assert "*****" in got[0]
    assert_clean("an alert", got[0])
    assert_clean("the log", log())


def test_no_answer_of_a_bot_and_no_call_of_a_stranger_shows_the_key_to_the_door(server, tmp_path, log):
    logging.root.handlers.clear()  # pytest's own
    process.log_to("TRACE")
    key = secret("executor_key user")
    conceal(key)
    (tmp_path / "door").write_text(secret("door"))
    (tmp_path / "door").chmod(0o600)

    async def fails(order) -> None:
        raise RuntimeError(secret("door"))

    async def work() -> list[str]:
        told = []
        async with client_session(0) as session:
            for at, tls in server.ways():
                url = address("executor_url", at, f"http{tls}")
                conceal(url)
                server.quote([key, secret("executor_url path")])
                told.append(repr(await place(Bot(session, url, key), ORDER, 0.05)))
            door = Door(SimpleNamespace(journal=SimpleNamespace(report=fails)), tmp_path / "door")
            async with serve(door.app, "127.0.0.1", 0) as port:
                for mode, sent in ((0o600, secret("door")), (0o600, key), (0o644, secret("door"))):
                    (tmp_path / "door").chmod(mode)
                    headers = {"Authorization": f"Bearer {sent}"}
                    async with session.get(f"http://127.0.0.1:{port}/orders/x", headers=headers) as reply:
                        told.append(await reply.text())
        return told

    told = asyncio.run(work())
    assert "HTTP 401" in "".join(told) and "handler_failed" in "".join(told)
    assert_clean("a report", "\n".join(told))
    said = log()
    assert "*****" in said
    assert_clean("the log", said)


def test_nothing_that_is_stored_or_shown_of_a_round_holds_a_secret_that_an_error_quoted(tmp_path, server, log, run):
    logging.root.handlers.clear()  # pytest's own
    process.log_to("TRACE")
    urls = [address(name, "127.0.0.1:9") for name in ("rpc", "chain_endpoint")]
    for url in urls:
        conceal(url)
    quoted = server.quote([secret(f"{name} {part}") for name in ("rpc", "chain_endpoint") for part in PARTS])
    errors = [kind(quoted) for kind in (MarketGap, MarketError, ChainError, RuntimeError)]

    async def prepare(subnet, store, chain, venue) -> None:
        snapshot, left = venue.snapshot, errors[:]

        async def failing(*arguments):
            if left:
                raise left.pop()
            return await snapshot(*arguments)

        venue.snapshot = failing

    folder = tmp_path / "played"
    folder.mkdir()
    subnet = play_subnet(folder, {"keep": keep}, [a_job()], model, prepare, rounds=6)
    assert set(subnet.codes()) == {Code.VOID_GAP, Code.VOID_INTERRUPTED, Code.SCORED}

    async def seen() -> list[bytes]:
        told = []
        async with Store.open(subnet.path) as store, Reader.open(subnet.path) as reader:
            for round_id in await store.finished():
                evidence = await stored.evidence(store, round_id)
                told += [canonical(evidence), canonical(await reader.round(round_id))]
                told.append(canonical(statement(evidence, hotkey_of("keep"), seal_digest(evidence))))
            return [*told, canonical(await reader.rounds()), canonical(await reader.jobs_now())]

    for text in asyncio.run(seen()):
        assert_clean("what is told of a round", text.decode())
    for (detail,) in rows(subnet.path, "SELECT detail FROM rounds"):
        assert_clean("a detail", detail)
    assert validator.main(["report", "-o", "report.html", "--db", str(subnet.path)]) == 0
    assert_clean("the report", Path("report.html").read_text())
    for file in folder.iterdir():
        assert_clean(file, file.read_bytes().decode("latin-1"))
    said = log()
    assert "*****" in said
    assert_clean("the log", said)


def test_a_key_in_a_hosts_name_is_hidden_and_the_providers_domain_is_not():
    conceal("https://0123456789abcdef0123.eth.rpc.example.cloud/")
    said = "connecting to 0123456789abcdef0123.eth.rpc.example.cloud failed"
    assert hide(said) == f"connecting to {HIDDEN}.eth.rpc.example.cloud failed"
