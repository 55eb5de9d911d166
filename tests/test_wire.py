"""The wire under attack: each refusal by its code, peers that misbehave at every stage, and evidence that verifies.

Run: `python -m pytest tests/test_wire.py`. Loopback only; bad peers and bad callers speak through raw sockets.
Read next: `wire/server.py`.
"""

import asyncio
import gzip
import ipaddress
import json
import logging
import random
import socket
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress
from functools import partial
from types import SimpleNamespace

import aiohttp
import pytest
from bittensor import http_auth
from bittensor.sp_core import CRYPTO_ED25519, CRYPTO_SR25519, Keypair, verify
from multidict import CIMultiDict

from protocol import Code, ProtocolError
from wire import client, connections, signing
from wire import server as server_module
from wire.codec import digest

ALICE, BOB, EVE = (Keypair.create_from_uri(uri) for uri in ("//Alice", "//Bob", "//Eve"))  # validator, miner, stranger
QUERY, ANSWER = b'{"prompt": "hello"}', b'{"accepted": true}'
LIMIT = 32 * 1024


# ---------------------------------------------------------------------------------------------------------------------
# Tools: our server, a peer of raw bytes, a caller of raw bytes


async def echo(caller: str, body: bytes) -> bytes:
    return ANSWER


def gate_of(
    *hotkeys: str, permit: bool = True, stake_rao: int = 0, age_seconds: float = 0.0, **options
) -> server_module.Gate:
    callers = dict.fromkeys(hotkeys, (permit, stake_rao))
    return server_module.Gate(lambda: (callers, age_seconds), min_stake_rao=1000, **options)


@asynccontextmanager
async def miner(handler=echo, gate=None, clock=time.monotonic, **limits):
    """Bob's server; gives its port."""
    gate = gate or gate_of(ALICE.ss58_address)
    routes = dict.fromkeys(["/rebalance", "/other", "/%7Eraw"], handler)
    app = server_module.build_app(
        keypair=BOB, gate=gate, routes=routes, limits=server_module.Limits(**limits), clock=clock
    )
    async with server_module.serve(app, "127.0.0.1", 0) as port:
        yield port


@asynccontextmanager
async def peer(behave):
    """A raw server; `await behave(reader, writer, headers, body)` runs once a request is read. Gives its port."""

    tasks = []

    async def connected(reader, writer):
        tasks.append(asyncio.current_task())
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:-2])
            await behave(reader, writer, headers, await reader.readexactly(int(headers["Content-Length"])))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        for task in tasks:  # from Python 3.12 on a server waits for its connections
            task.cancel()


async def ask(
    port: int, session=None, total_seconds: float = 5.0, receiver=BOB, path: str = "/rebalance"
) -> client.Reply:
    options = {"keypair": ALICE, "receiver": receiver.ss58_address, "max_reply_bytes": LIMIT}
    url = f"http://127.0.0.1:{port}{path}"
    if session:
        return await client.ask(session, url, QUERY, total_seconds=total_seconds, **options)
    async with client.client_session(4) as own:
        return await client.ask(own, url, QUERY, total_seconds=total_seconds, **options)


def ask_peer(behave, **options) -> client.Reply:
    async def main():
        async with peer(behave) as port:
            return await ask(port, **options)

    return asyncio.run(main())


def signed_reply(
    headers, request_body: bytes, *, key=BOB, answer: bytes = ANSWER, extra: str = "", status="200 OK"
) -> bytes:
    """A correct reply, as raw HTTP, to the request of these headers."""
    payload = signing.answer_payload(
        digest(request_body), int(headers["X-Bittensor-Nonce"]), headers["X-Bittensor-Hotkey"], BOB.ss58_address, answer
    )
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(answer)}\r\n"
        f"{signing.ANSWER_HEADER}: {key.sign(payload).hex()}\r\n{extra}\r\n"
    ).encode() + answer


def says(raw: bytes):
    """A peer that always replies these bytes."""

    async def behave(reader, writer, headers, body):
        writer.write(raw)
        await writer.drain()

    return behave


def signed(body: bytes = QUERY, *, key=ALICE, receiver=BOB, path: str = "/rebalance", age_seconds: float = 0) -> dict:
    nonce = time.time_ns() - int(age_seconds * 1e9)
    return http_auth.sign(key, method="POST", path=path, body=body, receiver_ss58=receiver.ss58_address, nonce_ns=nonce)


async def send(port: int, headers, body: bytes = QUERY, *, path="/rebalance", method="POST", length=None):
    """Raw request with these header pairs, in this order; gives status, JSON and header text of the reply."""
    pairs = list(headers.items()) if isinstance(headers, dict) else headers
    if length != "chunked":
        pairs = [*pairs, ("Content-Length", str(len(body) if length is None else length))]
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\n" + "".join(f"{name}: {value}\r\n" for name, value in pairs)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + b"\r\n" + body)
    reply_head = (await reader.readuntil(b"\r\n\r\n")).decode()
    size = int(CIMultiDict(line.split(": ", 1) for line in reply_head.split("\r\n")[1:-2])["Content-Length"])
    reply = await reader.readexactly(size)
    writer.close()
    status = int(reply_head.split()[1])
    return status, json.loads(reply) if "application/json" in reply_head else reply, reply_head


def refusal(headers, body: bytes = QUERY, *, server: dict | None = None, **request) -> tuple[int, str]:
    """Status and code of one raw request to Bob's server."""

    async def main():
        async with miner(**(server or {})) as port:
            status, reply, _ = await send(port, headers, body, **request)
            assert set(reply) == {"code", "detail"}, reply
            return status, reply["code"]

    return asyncio.run(main())


@pytest.fixture(autouse=True)
def _short_linger(monkeypatch):
    monkeypatch.setattr(server_module, "LINGER_SECONDS", 0.2)


@pytest.fixture
def verify_calls(monkeypatch):
    """The calls of btauth's `verify`, which go through."""
    calls, real = [], http_auth.verify

    def counted(headers, body, **options):
        calls.append(headers)
        return real(headers, body, **options)

    monkeypatch.setattr(http_auth, "verify", counted)
    return calls


# ---------------------------------------------------------------------------------------------------------------------
# Signatures


GOLDEN_NONCE = 1752076800000000000  # btauth/1's published vector: //Alice asks //Bob
GOLDEN_PAYLOAD = (
    b"btauth/1\nsr25519\nPOST\n/generate?stream=false\n"
    b"341c57448e531310fbbe83f44cea2a5e838bd9e8a6b82b269f01d0dbbc23c3cc\n1752076800000000000\n"
    b"5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY\n5FHneW46xGXgs5mUiveU4sbTyGBzmstUspZC92UhjJM694ty"
)


def test_the_published_btauth_vector_is_the_payload_that_is_signed_and_verified(monkeypatch):
    monkeypatch.setattr(time, "time_ns", lambda: GOLDEN_NONCE + 10**9)
    headers = {
        "X-Bittensor-Version": "1",
        "X-Bittensor-Hotkey": ALICE.ss58_address,
        "X-Bittensor-Receiver": BOB.ss58_address,
        "X-Bittensor-Nonce": str(GOLDEN_NONCE),
        "X-Bittensor-Signature": "0x" + ALICE.sign(GOLDEN_PAYLOAD).hex(),
    }
    store = http_auth.InMemoryNonceStore(server_module.NONCE_RETENTION_SECONDS)
    seen = server_module._verify(headers, QUERY, "/generate?stream=false", BOB.ss58_address, store)
    assert seen == (GOLDEN_NONCE, ALICE.ss58_address)


def test_the_published_ed25519_vector_holds_in_the_installed_sdk():
    signature = (
        "0x1a6b631988bf1f7ea093ab9d5acf61f05c316d0b0e428b24b487b75a5f6ee0e1"
        "a56a26918fdf871b6cf09437e6588023a4ce423cf622621b2a7feee17612f704"
    )
    sender = "5FA9nQDVg267DEd8m1ZypXLBnvN7SFxYwV7ndqSYGiN9TTpu"
    payload = http_auth.build_payload(
        scheme="ed25519",
        method="POST",
        path="/generate?stream=false",
        body=QUERY,
        nonce_ns=GOLDEN_NONCE,
        sender_ss58=sender,
        receiver_ss58=BOB.ss58_address,
    )
    assert verify(payload, bytes.fromhex(signature[2:]), sender, CRYPTO_ED25519)


def test_the_sdk_is_told_the_scheme_exactly_when_its_verify_takes_it(monkeypatch):
    def verify_of_11_3_2(headers, body, *, expected_crypto_type, **options):
        assert expected_crypto_type == CRYPTO_SR25519
        return verify_of_11_3_0(headers, body, **options)

    def verify_of_11_3_0(headers, body, *, self_hotkey_ss58, nonce_store, **options):
        return http_auth.Caller(ALICE.ss58_address, int(headers["X-Bittensor-Nonce"]), CRYPTO_SR25519)

    for either in (verify_of_11_3_0, verify_of_11_3_2):
        monkeypatch.setattr(http_auth, "verify", either)
        assert server_module._verify(signed(), QUERY, "/rebalance", BOB.ss58_address, None)[1] == ALICE.ss58_address


def test_nonces_are_remembered_for_twice_the_time_they_are_fresh():
    assert server_module.NONCE_RETENTION_SECONDS >= 2 * (signing.MAX_AGE_SECONDS + signing.MAX_SKEW_SECONDS)


def test_the_answer_payload_is_six_lines():
    sha256_of_braces = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # printf '{}' | sha256sum
    expected = "alm-answer/1\nV\nM\n12\n" + "ab" * 32 + "\n" + sha256_of_braces
    assert signing.answer_payload("ab" * 32, 12, "V", "M", b"{}") == expected.encode()


def stored_answer() -> dict:
    """What a validator keeps of one answer, made without the network."""
    nonce, request_digest = 1_760_000_000_000_000_000, digest(QUERY)
    payload = signing.answer_payload(request_digest, nonce, ALICE.ss58_address, BOB.ss58_address, ANSWER)
    return {
        "request_digest": request_digest,
        "nonce": nonce,
        "validator_hotkey": ALICE.ss58_address,
        "miner_hotkey": BOB.ss58_address,
        "body": ANSWER,
        "signature": BOB.sign(payload).hex(),
    }


def test_a_third_party_verifies_stored_answers_and_notices_every_change():
    stored = stored_answer()
    assert signing.verify_answer(**stored)
    changes = {
        "request_digest": digest(b"other"),
        "nonce": stored["nonce"] + 1,
        "validator_hotkey": EVE.ss58_address,
        "miner_hotkey": EVE.ss58_address,
        "body": ANSWER + b" ",
        "signature": EVE.sign(b"").hex(),
    }
    for name, other in changes.items():
        assert not signing.verify_answer(**(stored | {name: other})), name


@pytest.mark.parametrize("junk", ["", "x", "0" * 48, "1" * 48, "zz" * 64, "ab" * 64, "é" * 128, "1" * 100_000])
@pytest.mark.parametrize("name", ["request_digest", "validator_hotkey", "miner_hotkey", "signature"])
def test_stored_junk_is_no_answer_and_no_error(name, junk):
    assert not signing.verify_answer(**(stored_answer() | {name: junk}))


# ---------------------------------------------------------------------------------------------------------------------
# Round trip


def test_an_ask_brings_back_the_signed_answer_with_all_that_is_stored():
    async def main():
        seen = []

        async def handler(caller, body):
            seen.append((caller, body))
            return ANSWER

        before = time.time_ns()
        async with miner(handler) as port, client.client_session(2) as session:
            replies = [await ask(port, session) for _ in range(3)]
        assert seen == [(ALICE.ss58_address, QUERY)] * 3
        assert len({reply.nonce for reply in replies}) == len({reply.signature for reply in replies}) == 3
        for reply in replies:
            assert (reply.code, reply.detail, reply.body) == (Code.ACCEPTED, "", ANSWER)
            assert reply.request_digest == digest(QUERY)
            assert before <= reply.nonce <= reply.arrived_ns <= time.time_ns()
            assert signing.verify_answer(
                request_digest=reply.request_digest,
                nonce=reply.nonce,
                validator_hotkey=ALICE.ss58_address,
                miner_hotkey=BOB.ss58_address,
                body=reply.body,
                signature=reply.signature,
            )

    asyncio.run(main())


@pytest.mark.parametrize("path", ["/rebalance?a=1&b=%20", "/rebalance?x=%7E+%2F", "/rebalance?", "/%7Eraw"])
def test_the_target_is_signed_exactly_as_it_is_sent(path):
    async def main():
        async with miner() as port:
            return await ask(port, path=path)

    assert asyncio.run(main()).code is Code.ACCEPTED


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255"),
        *("192.168.1.1", "169.254.169.254", "100.64.0.1", "198.18.0.1", "192.0.2.1", "203.0.113.9", "224.0.0.1"),
        *("239.255.255.255", "240.0.0.1", "255.255.255.255", "192.0.0.8", "198.51.100.7", "192.88.99.1"),
        *("168.63.129.16", "100.100.100.200", "192.0.0.192", "[fd00:ec2::254]"),  # clouds' metadata
        *("[::]", "[::1]", "[::127.0.0.1]", "[::ffff:127.0.0.1]", "[::ffff:10.0.0.1]", "[::ffff:8.8.8.8]"),
        *("[fe80::1]", "[fc00::1]", "[fd12:3456::1]", "[fec0::1]", "[ff02::1]", "[2001:db8::1]", "[100::1]"),
        *("[64:ff9b::7f00:1]", "[2002:7f00:1::1]", "[2001:0:7f00:1::1]", "[3fff::1]", "[4000::1]"),
        *("localhost", "metadata.google.internal", "example.com", "127.1", "0x7f000001", "2130706433", "8.8.8"),
    ],
)
def test_on_a_real_network_an_address_that_is_not_public_is_refused_before_connecting(host, monkeypatch):
    """What IANA's registries call special; the last line are names, or are read as loopback by other programs."""

    async def main():
        async def connect(*_, **__):
            raise AssertionError("it connected")

        async with client.client_session(1) as session:
            monkeypatch.setattr(session.connector, "connect", connect)
            return await client.ask(
                session,
                f"http://{host}:8091/rebalance",
                QUERY,
                keypair=ALICE,
                receiver=BOB.ss58_address,
                total_seconds=5,
                max_reply_bytes=LIMIT,
                public_only=True,
            )

    reply = asyncio.run(main())
    assert (reply.code, reply.body) == (Code.ADDRESS_REFUSED, b"")
    assert reply.detail.endswith("is not a public IP address")


@pytest.mark.parametrize("host", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "223.255.255.1", "2606:4700::1"])
def test_public_addresses_are_public(host):
    assert client.is_public(host)


def test_what_is_public_is_global_for_the_standard_library_too_and_most_of_the_reverse():
    """`ipaddress` is the oracle; which of the special addresses it knows depends on the Python."""
    random_, public, agreed = random.Random(4), 0, 0
    for number in range(20_000):
        bits = (32, 125)[number % 2]
        ip = ipaddress.ip_address(random_.getrandbits(bits) + (bits == 125) * 2**125)  # the latter in 2000::/3
        theirs = ip.is_global and not (ip.is_multicast or ip.is_reserved)
        ours = client.is_public(str(ip))
        assert not client.is_public(f"{ip}%eth0")
        assert theirs or not ours, ip
        public, agreed = public + ours, agreed + (ours == theirs)
    assert 15_000 < public < 19_500 and agreed > 19_980


def test_without_public_only_loopback_is_asked():
    async def main():
        async with miner() as port:
            return await ask(port)

    assert asyncio.run(main()).code is Code.ACCEPTED


def test_a_request_shows_nothing_but_what_is_needed():
    names = []

    async def behave(reader, writer, headers, body):
        names.extend(headers)
        writer.write(signed_reply(headers, body))

    assert ask_peer(behave).code is Code.ACCEPTED
    auth = {f"X-Bittensor-{name}" for name in ("Version", "Hotkey", "Receiver", "Nonce", "Signature")}
    assert set(names) == auth | {"Host", "Content-Type", "Content-Length", "Accept-Encoding", "Connection"}


# ---------------------------------------------------------------------------------------------------------------------
# Callers that are refused


HEADERS = [f"X-Bittensor-{name}" for name in ("Version", "Hotkey", "Receiver", "Nonce", "Signature")]


@pytest.mark.parametrize("name", HEADERS)
def test_each_header_must_be_there_exactly_once(name, verify_calls):
    headers = signed()
    missing = {key: value for key, value in headers.items() if key != name}
    assert refusal(missing) == (401, "auth_missing")
    assert refusal([*headers.items(), (name.lower(), headers[name])]) == (401, "auth_malformed")
    assert not verify_calls


def test_an_over_long_hotkey_is_refused_without_any_base58_or_signature_work(verify_calls):
    for hotkey in ("1" * 49, "1" * 4000, "5" + "z" * 3000):
        assert refusal(signed() | {"X-Bittensor-Hotkey": hotkey}) == (401, "auth_malformed")
    assert not verify_calls


def test_a_header_beyond_the_limit_is_not_even_parsed(verify_calls):
    async def main():
        async with miner() as port:
            status, _, _ = await send(port, signed() | {"X-Bittensor-Hotkey": "1" * 65536})
            assert status == 400
            assert (await ask(port)).code is Code.ACCEPTED

    asyncio.run(main())
    assert len(verify_calls) == 1


@pytest.mark.parametrize(
    "nonce", [" 12", "12 ", "+5", "-5", "1_0", "0x1f", "1e9", "\u0663", "\uff11", "0", "007", "", "1" * 21]
)
def test_a_nonce_is_plain_ascii_digits(nonce):
    request = SimpleNamespace(headers=CIMultiDict(signed() | {"X-Bittensor-Nonce": nonce}))
    with pytest.raises(ProtocolError) as error:
        server_module._auth_headers(request)
    assert error.value.code is Code.AUTH_MALFORMED


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Bittensor-Version", "2"),
        ("X-Bittensor-Hotkey", "0" * 48),
        ("X-Bittensor-Receiver", "-"),
        ("X-Bittensor-Nonce", "\u0663"),
        ("X-Bittensor-Signature", "ab" * 64),
        ("X-Bittensor-Signature", "0x" + "ab" * 63),
        ("X-Bittensor-Signature", "0x" + "ab" * 1900),
        ("X-Bittensor-Crypto", "ed25519"),
        ("X-Bittensor-Crypto", "0"),
    ],
)
def test_a_header_of_another_shape_is_refused_without_signature_work(name, value, verify_calls):
    assert refusal(signed() | {name: value}) == (401, "auth_malformed")
    assert not verify_calls


def test_a_hotkey_with_a_wrong_checksum_is_refused():
    wrong = ALICE.ss58_address[:-1] + ("1" if ALICE.ss58_address[-1] != "1" else "2")
    assert refusal(signed() | {"X-Bittensor-Hotkey": wrong}) == (401, "auth_malformed")


def test_the_signature_covers_body_target_sender_and_receiver():
    assert refusal(signed(), QUERY + b" ") == (401, "auth_signature")
    assert refusal(signed(), path="/other") == (401, "auth_signature")
    assert refusal(signed(), path="/rebalance?x=1") == (401, "auth_signature")
    assert refusal(signed(key=EVE) | {"X-Bittensor-Hotkey": ALICE.ss58_address}) == (401, "auth_signature")
    assert refusal(signed(receiver=EVE)) == (401, "auth_receiver")
    assert refusal(signed(receiver=EVE) | {"X-Bittensor-Receiver": BOB.ss58_address}) == (401, "auth_signature")


def test_old_and_future_requests_are_stale():
    assert refusal(signed(age_seconds=signing.MAX_AGE_SECONDS + 1)) == (401, "auth_stale")
    assert refusal(signed(age_seconds=-signing.MAX_SKEW_SECONDS - 5)) == (401, "auth_stale")


@pytest.mark.parametrize(
    ("age_seconds", "told"),
    [(12.34, "12.3 s old by the server's clock, at most 10"), (-8, "8.0 s ahead of the server's clock, at most 5")],
)
def test_a_stale_request_is_told_that_clocks_differ_and_by_how_much(age_seconds, told, monkeypatch):
    headers = signed()
    now = int(headers["X-Bittensor-Nonce"]) + int(age_seconds * 1e9)
    monkeypatch.setattr(time, "time_ns", lambda: now)
    with pytest.raises(ProtocolError) as error:
        server_module._verify(headers, QUERY, "/rebalance", BOB.ss58_address, None)
    assert error.value.code is Code.AUTH_STALE
    assert told in error.value.detail and "clocks differ" in error.value.detail and "NTP" in error.value.detail


@pytest.mark.parametrize("clock_off_seconds", [-3, 3])
def test_a_clock_three_seconds_off_is_no_reason_to_refuse(clock_off_seconds):
    assert refusal(signed(age_seconds=clock_off_seconds), QUERY + b" ") == (401, "auth_signature")  # fresh enough


def test_a_request_is_served_once_and_each_server_remembers_for_itself():
    async def main():
        headers = signed()
        async with miner() as port, miner() as other_port:
            assert (await send(port, headers))[0] == 200
            assert [(await send(port, headers))[1]["code"] for _ in range(2)] == ["auth_replayed"] * 2
            assert (await send(other_port, headers))[0] == 200  # the store is the server's own, not the process's

    asyncio.run(main())


def test_a_statement_or_an_answer_that_was_signed_as_a_wallets_text_does_not_count():
    """Every signature but a request's is checked by these two; the next test has the request."""
    wrapping = SimpleNamespace(
        ss58_address=ALICE.ss58_address, sign=lambda data: ALICE.sign(b"<Bytes>" + data + b"</Bytes>")
    )
    for key, counts in ((ALICE, True), (wrapping, False)):
        signature = signing.sign_statement(key, "x/1", b"data")
        assert signing.verify_statement(ALICE.ss58_address, "x/1", b"data", signature) is counts
        stored = {"request_digest": "0" * 64, "nonce": 1, "validator_hotkey": BOB.ss58_address, "body": b"{}"}
        signature = key.sign(signing.answer_payload(miner_hotkey=ALICE.ss58_address, **stored)).hex()
        assert signing.verify_answer(miner_hotkey=ALICE.ss58_address, signature=signature, **stored) is counts


def test_a_signature_over_a_wallets_bytes_text_does_not_count():
    headers = signed()
    payload = http_auth.build_payload(
        scheme="sr25519",
        method="POST",
        path="/rebalance",
        body=QUERY,
        nonce_ns=int(headers["X-Bittensor-Nonce"]),
        sender_ss58=ALICE.ss58_address,
        receiver_ss58=BOB.ss58_address,
    )
    assert refusal(headers | {"X-Bittensor-Signature": "0x" + ALICE.sign(payload).hex()}, path="/other")[0] == 401
    wrapped = ALICE.sign(b"<Bytes>" + payload + b"</Bytes>")
    assert verify(payload, wrapped, ALICE.ss58_address, CRYPTO_SR25519)  # the SDK alone would take it
    assert refusal(headers | {"X-Bittensor-Signature": "0x" + wrapped.hex()}) == (401, "auth_signature")


def test_a_dendrite_is_told_to_upgrade():
    async def main():
        async with miner() as port:
            return await send(port, {"bt_header_dendrite_signature": "0xab"}, path="/RebalanceQuery")

    status, reply, head = asyncio.run(main())
    assert (status, reply["code"]) == (426, "auth_missing")
    assert "btauth/1" in reply["detail"] and "Upgrade: btauth/1" in head


@pytest.mark.parametrize("request_line", [{"path": "/"}, {"path": "/rebalance/"}, {"path": "/%0A"}, {"method": "GET"}])
def test_another_path_or_method_is_not_found(request_line):
    assert refusal(signed(), **request_line) == (404, "not_found")


def test_a_body_is_limited_by_its_declared_and_by_its_real_length(verify_calls):
    assert refusal(signed(), b"", length=10**12) == (413, "body_too_large")
    chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"
    many = {**signed(), "Transfer-Encoding": "chunked"}
    assert refusal(many, chunk * 3, length="chunked", server={"max_body_bytes": 8192}) == (413, "body_too_large")
    assert not verify_calls
    exact = b"x" * 8192
    assert refusal(signed(), exact, server={"max_body_bytes": 8192}) == (401, "auth_signature")  # so it was read


def test_a_slow_body_meets_the_total_deadline(verify_calls):
    async def main():
        async with miner(body_seconds=0.3) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            headers = "".join(f"{name}: {value}\r\n" for name, value in signed().items())
            writer.write(f"POST /rebalance HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: 30\r\n\r\n".encode())

            async def dribble():  # 30 bytes in 1.5 s: no single wait is long
                for _ in range(30):
                    writer.write(b"x")
                    await asyncio.sleep(0.05)

            task = asyncio.create_task(dribble())
            head = await reader.readuntil(b"\r\n\r\n")
            task.cancel()
            writer.close()
            return head

    assert b" 408 " in asyncio.run(main()).split(b"\r\n")[0]
    assert not verify_calls


def test_a_compressed_body_is_refused_unread():
    bomb = gzip.compress(bytes(10_000_000))
    assert refusal({**signed(bomb), "Content-Encoding": "gzip"}, bomb) == (415, "content_type")


def test_callers_who_leave_at_any_stage_do_not_disturb_the_next_one():
    async def main():
        request = b"POST /rebalance HTTP/1.1\r\nHost: x\r\n" + b"".join(
            f"{name}: {value}\r\n".encode() for name, value in signed().items()
        )
        whole = request + b"Content-Length: 19\r\n\r\n" + QUERY
        broken_chunk = request + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"
        async with miner(max_reading=1, max_handling=1) as port:
            for sent in (b"", b"\x16\x03\x01", whole[:20], whole[:-25], whole[:-5], broken_chunk, whole):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(sent)
                await writer.drain()
                writer.close()
            await asyncio.sleep(0.05)
            return await ask(port)

    assert asyncio.run(main()).code is Code.ACCEPTED


def test_a_connection_without_a_complete_header_is_closed(monkeypatch):
    monkeypatch.setattr(server_module, "IDLE_SECONDS", 0.2)

    async def main():
        async with miner() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)

            async def dribble():
                writer.write(b"POST /rebalance HTTP/1.1\r\nX-Slow: ")
                for _ in range(200):
                    writer.write(b"x")
                    await asyncio.sleep(0.02)

            task = asyncio.create_task(dribble())
            with suppress(ConnectionResetError):  # what was written meanwhile turns the end into a reset
                async with asyncio.timeout(3):
                    assert await reader.read() == b""
            task.cancel()
            writer.close()

    asyncio.run(main())


# ---------------------------------------------------------------------------------------------------------------------
# Who may call, and how often


def test_registered_with_a_permit_or_enough_stake_may_call():
    alice = ALICE.ss58_address
    cases = [
        (gate_of(alice, permit=True), None),
        (gate_of(alice, permit=False, stake_rao=1000), None),
        (gate_of(alice, permit=False, stake_rao=999), Code.NO_PERMIT),
        (gate_of(EVE.ss58_address), Code.NOT_REGISTERED),
        (gate_of(), Code.NOT_REGISTERED),
        (gate_of(alice, age_seconds=600), None),
        (gate_of(alice, age_seconds=601), Code.BUSY),
        (gate_of(alice, age_seconds=float("inf")), Code.BUSY),
        (gate_of(age_seconds=601, allow=frozenset({alice})), None),
        (gate_of(alice, permit=False, allow=frozenset({EVE.ss58_address})), Code.NO_PERMIT),
    ]
    for gate, code in cases:
        try:
            gate.check(alice)
            assert code is None
        except ProtocolError as error:
            assert error.code is code, error


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        (gate_of(), (403, "not_registered")),
        (gate_of(ALICE.ss58_address, permit=False), (403, "no_permit")),
        (gate_of(ALICE.ss58_address, age_seconds=10_000), (503, "busy")),
    ],
)
def test_the_gate_is_asked_about_the_verified_caller(gate, expected):
    assert refusal(signed(), server={"gate": gate}) == expected
    assert refusal(signed(key=EVE) | {"X-Bittensor-Hotkey": ALICE.ss58_address}, server={"gate": gate})[0] == 401


def test_a_bucket_gives_its_burst_and_then_its_rate():
    """Against an oracle that keeps every grant: n grants in any window of s seconds need n <= burst + rate * s."""
    rng = random.Random(1)
    for _ in range(200):
        now, rate, burst = 0.0, rng.choice([0.5, 1.0, 8.0]), rng.randint(1, 5)
        limit, granted, refused = server_module.RateLimit(rate, burst, lambda: now), [], 0  # noqa: B023
        for _ in range(60):
            now += rng.choice([0.0, 0.0, 0.125, 0.25, 1.0])  # binary fractions: exact
            tokens = min(
                (burst + rate * (now - start) - sum(1 for t in granted if t >= start) for start in [*granted, now]),
                default=burst,
            )
            taken = limit.take("k")
            assert taken == (tokens >= 1), (tokens, granted, now)
            if taken:
                granted.append(now)
            refused += not taken
        assert granted and limit.take("another")


def test_full_buckets_are_forgotten_and_keys_are_apart():
    now = 0.0
    limit = server_module.RateLimit(1.0, 2, lambda: now)
    assert [limit.take("a") for _ in range(3)] == [True, True, False]
    assert limit.take("b")
    for n in range(1000):
        now += 1.0
        limit.take(str(n))
    assert len(limit.buckets) <= 3
    assert limit.take("a")


def test_an_ipv6_host_has_one_bucket_for_its_64_bit_network():
    key = connections.address_key
    assert key("10.0.0.1") != key("10.0.0.2")
    assert key("2001:db8::1") == key("2001:db8::ffff:1") != key("2001:db8:0:1::1")
    assert key("fe80::1%eth0") == key("fe80::2")
    assert key("::ffff:10.0.0.1") == key("10.0.0.1")
    assert len(key("no address" * 1000)) == 64


def test_too_many_requests_of_a_caller_are_refused_until_time_passes():
    async def main():
        now = 1000.0
        limits = {"hotkey_per_second": 2.0, "hotkey_burst": 3, "address_burst": 1, "address_per_second": 0.001}
        async with miner(clock=lambda: now, **limits) as port, client.client_session(1) as session:
            replies = [await ask(port, session) for _ in range(4)]
            assert [reply.code for reply in replies] == [Code.ACCEPTED] * 3 + [Code.HTTP_STATUS]
            assert replies[3].detail.startswith("429 rate_limited: ")
            now += 0.5
            assert [(await ask(port, session)).code for _ in range(2)] == [Code.ACCEPTED, Code.HTTP_STATUS]

    asyncio.run(main())


def test_too_many_refusals_of_an_address_are_refused_until_time_passes():
    async def main():
        now = 1000.0
        async with miner(clock=lambda: now, address_per_second=2.0, address_burst=3) as port:
            codes = [(await send(port, signed(key=EVE)))[1]["code"] for _ in range(4)]
            assert codes == ["not_registered"] * 3 + ["rate_limited"]
            assert (await ask(port)).detail.startswith("429 rate_limited: ")
            now += 0.5
            assert (await ask(port)).code is Code.ACCEPTED
            assert [(await send(port, {}))[1]["code"] for _ in range(2)] == ["auth_missing", "rate_limited"]

    asyncio.run(main())


def test_192_asks_at_once_of_64_validators_behind_one_address_are_all_answered():
    validators = [Keypair.create_from_uri(f"//validator{n}") for n in range(64)]

    async def one(port, session, key):
        options = {"keypair": key, "receiver": BOB.ss58_address, "max_reply_bytes": LIMIT, "total_seconds": 20}
        return (await client.ask(session, f"http://127.0.0.1:{port}/rebalance", QUERY, **options)).code

    async def main():
        gate = gate_of(*(key.ss58_address for key in validators))
        async with miner(gate=gate, max_handling=192) as port, client.client_session(0) as session:
            return await asyncio.gather(*(one(port, session, key) for key in validators * 3))

    assert set(asyncio.run(main())) == {Code.ACCEPTED}


def test_a_trusted_proxy_says_who_calls_and_nobody_else_does():
    async def main(trusted, *forwarded):
        limits = {"address_per_second": 0.001, "address_burst": 1, "trusted_proxies": trusted}
        async with miner(**limits) as port:
            found = []
            for told in forwarded:
                found.append((await send(port, {"X-Forwarded-For": told} if told else {}))[1]["code"])
            return found

    proxies = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("10.9.0.0/16"))
    once, twice = ["auth_missing"], ["auth_missing", "rate_limited"]
    assert asyncio.run(main((), "1.1.1.1", "1.1.1.2")) == twice
    assert asyncio.run(main(proxies, "1.1.1.1", "1.1.1.2", "1.1.1.1")) == once + twice
    assert asyncio.run(main(proxies, "9.9.9.9, 1.1.1.1", "8.8.8.8, 1.1.1.1")) == twice
    assert asyncio.run(main(proxies, "1.1.1.1, 10.9.1.1", "1.1.1.2, 10.9.1.1")) == once * 2
    assert asyncio.run(main(proxies, None, "", "nonsense", "x" * 3000)) == [*twice, *once * 2]


def test_the_options_of_limits_are_kept_to():
    options = SimpleNamespace(trusted_proxy=[ipaddress.ip_network("10.0.0.0/8")], address_limit=7.0)
    found = server_module.limited(server_module.Limits(), options)
    assert (found.address_per_second, found.address_burst) == (7.0, 14.0) and found.trusted_proxies
    none = SimpleNamespace(trusted_proxy=None, address_limit=None)
    assert server_module.limited(server_module.Limits(), none) == server_module.Limits()
    assert server_module.limited(server_module.Limits(), SimpleNamespace(trusted_proxy=None, address_limit=0)) == (
        server_module.Limits(address_per_second=1e9, address_burst=2e9)
    )


# ---------------------------------------------------------------------------------------------------------------------
# Connections


REFUSED = b"POST /rebalance HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
FOREIGN = REFUSED.replace(b"Host: x", b"Host: x\r\nX-Bittensor-Receiver: " + EVE.ss58_address.encode())


@pytest.mark.parametrize("request_", [REFUSED, FOREIGN, b"nonsense\r\n\r\n", REFUSED.replace(b"/re", b"/no")])
def test_a_refusal_closes_the_connection_whatever_was_sent_behind_the_request(request_):
    async def main():
        async with miner() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request_ * 100)
            data = b""
            with suppress(ConnectionResetError):
                async with asyncio.timeout(3):
                    data = await reader.read()
            writer.close()
            assert data.count(b"HTTP/1.1") <= 1

    asyncio.run(main())


def test_a_connection_is_for_one_request_whatever_comes_behind_it():
    async def main():
        async with miner() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(3):
                headers = "".join(f"{name}: {value}\r\n" for name, value in signed().items())
                writer.write(
                    f"POST /rebalance HTTP/1.1\r\nHost: x\r\nContent-Length: {len(QUERY)}\r\n{headers}\r\n".encode()
                    + QUERY
                )
            async with asyncio.timeout(5):
                data = await reader.read()
            writer.close()
            assert data.count(b"HTTP/1.1 200") == data.count(b"HTTP/1.1") == 1 and b"Connection: close" in data

    asyncio.run(main())


def test_in_a_turn_of_the_loop_a_few_slices_are_parsed_of_the_newest_and_of_the_oldest():
    async def main():
        turns, parsed = connections._Turns(), []
        for n in range(100):
            turns.add(partial(parsed.append, n))
        await asyncio.sleep(0)
        assert len(parsed) <= connections.TURN_SLICES and {0, 99} <= set(parsed)
        turns.add(partial(parsed.append, "new"))
        await asyncio.sleep(0)
        assert "new" in parsed
        while len(parsed) < 101:
            await asyncio.sleep(0)

    asyncio.run(main())


def test_chunks_behind_a_refusal_are_not_parsed(monkeypatch):
    parsed = Counter()

    def parse(connection, piece):
        parsed["bytes"] += len(piece)
        connection.inner.data_received(piece)

    monkeypatch.setattr(connections.Sliced, "parse", parse)

    async def main():
        async with miner() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /nothing HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            with suppress(ConnectionError):
                async with asyncio.timeout(5):
                    assert b"404" in await reader.readuntil(b"\r\n")
                    for _ in range(100):
                        writer.write(b"1\r\nx\r\n" * 1000)
                        await writer.drain()
            writer.transport.abort()

    asyncio.run(main())
    assert parsed["bytes"] < 50_000


def test_who_does_not_take_its_answer_is_cut_off(monkeypatch):
    monkeypatch.setattr(connections, "STALL_SECONDS", 0.3)

    async def long(caller, body):
        return bytes(20_000_000)

    async def main():
        async with miner(long) as port:
            sock = socket.create_connection(("127.0.0.1", port))
            headers = "".join(f"{name}: {value}\r\n" for name, value in signed().items())
            sock.sendall(f"POST /rebalance HTTP/1.1\r\nContent-Length: {len(QUERY)}\r\n{headers}\r\n".encode() + QUERY)
            await asyncio.sleep(1.5)
            sock.settimeout(5)
            taken = 0
            with suppress(ConnectionResetError):
                while piece := await asyncio.to_thread(sock.recv, 2**20):
                    taken += len(piece)
            sock.close()
            assert taken < 20_000_000

    asyncio.run(main())


def test_connections_of_one_address_are_capped_and_its_oldest_give_way_to_new_ones():
    async def main():
        async with miner(address_connections=5) as port:
            peers = [await asyncio.open_connection("127.0.0.1", port) for _ in range(8)]
            await asyncio.sleep(0.1)
            gone = [reader.at_eof() or reader.exception() is not None for reader, _ in peers]
            assert gone == [True] * 3 + [False] * 5
            async with client.client_session(1) as session, asyncio.timeout(5):
                assert (await ask(port, session)).code is Code.ACCEPTED
            for _, writer in peers:
                writer.close()

    asyncio.run(main())


def test_when_all_places_are_taken_the_oldest_of_who_has_most_gives_way():
    class Made(asyncio.Protocol):
        pass

    class Transport:
        aborted = False

        def __init__(self, address):
            self.address = address

        def get_extra_info(self, _):
            return (self.address, 1)

        def set_write_buffer_limits(self, _):
            pass

        def abort(self):
            self.aborted = True

    places = connections.Connections(Made, 4, 3, (ipaddress.ip_network("10.0.0.0/8"),))

    def connect(address):
        transport = Transport(address)
        places().connection_made(transport)
        return transport

    async def main():
        mine = [connect("1.1.1.1") for _ in range(4)]
        assert [one.aborted for one in mine] == [True, False, False, False] and places.open == 3
        others = [connect("2.2.2.2"), connect("3.3.3.3")]
        assert [one.aborted for one in mine[1:] + others] == [True, False, False, False, False] and places.open == 4
        proxied = [connect("10.0.0.1") for _ in range(5)]
        assert places.open == 4 and not proxied[-1].aborted and sum(one.aborted for one in proxied) > 0

    asyncio.run(main())


def test_a_caller_that_left_is_not_worked_for_any_longer():
    async def main():
        entered, left = asyncio.Event(), asyncio.Event()

        async def slow(caller, body):
            entered.set()
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                left.set()
                raise

        async with miner(slow) as port:
            await ask(port, total_seconds=0.5)
            async with asyncio.timeout(3):
                await left.wait()

    asyncio.run(main())


def test_requests_for_another_hotkey_do_not_spend_the_callers_rate():
    """Whoever publishes this address as their own has every validator ask here too."""

    async def main():
        async with miner(address_burst=1, address_per_second=0.0, max_reading=0) as port:
            replies = [await ask(port, receiver=EVE) for _ in range(5)]
            assert {reply.detail[:18] for reply in replies} == {"401 auth_receiver:"}
            return (await ask(port)).detail

    assert asyncio.run(main()).startswith("503 busy")  # past the rate


def test_strangers_cannot_spend_a_callers_rate():
    async def main():
        async with miner(hotkey_burst=1, hotkey_per_second=0.001) as port:
            for _ in range(3):
                forged = signed(key=EVE) | {"X-Bittensor-Hotkey": ALICE.ss58_address}
                assert (await send(port, forged))[1]["code"] == "auth_signature"
            return (await ask(port)).code

    assert asyncio.run(main()) is Code.ACCEPTED


def test_the_address_rate_comes_before_any_other_work(verify_calls):
    server = {"address_burst": 0, "address_per_second": 0.0}
    assert refusal(signed(), server=server) == (429, "rate_limited")
    assert refusal({}, path="/nowhere", server=server) == (429, "rate_limited")
    assert not verify_calls


def test_a_full_server_is_busy_at_once_and_serves_again_when_there_is_room():
    async def main():
        entered, leave = asyncio.Semaphore(0), asyncio.Event()

        async def slow(caller, body):
            entered.release()
            await leave.wait()
            return ANSWER

        async with miner(slow, max_handling=2) as port, client.client_session(4) as session:
            held = [asyncio.create_task(ask(port, session)) for _ in range(2)]
            for _ in held:
                await entered.acquire()
            third = await ask(port, session)
            assert third.detail.startswith("503 busy: ")
            leave.set()
            assert [(await task).code for task in held] == [Code.ACCEPTED] * 2
            assert (await ask(port, session)).code is Code.ACCEPTED

    asyncio.run(main())


def test_unverified_requests_have_their_own_places():
    async def main():
        async with miner(max_reading=1) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            headers = "".join(f"{name}: {value}\r\n" for name, value in signed().items())
            writer.write(f"POST /rebalance HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: 30\r\n\r\n".encode())
            await asyncio.sleep(0.1)
            assert (await ask(port)).detail.startswith("503 busy: ")
            writer.close()
            await asyncio.sleep(0.1)
            return (await ask(port)).code

    assert asyncio.run(main()) is Code.ACCEPTED


# ---------------------------------------------------------------------------------------------------------------------
# Handlers


def test_a_handlers_fault_is_logged_here_and_hidden_there(caplog):
    async def broken(caller, body):
        raise RuntimeError("secret path")

    async def text(caller, body):
        return "not bytes"

    async def main():
        for handler in (broken, text):
            async with miner(handler) as port:
                status, reply, head = await send(port, signed())
                assert (status, reply["code"]) == (500, "handler_failed")
                assert "secret" not in str(reply) + head and "Traceback" not in str(reply)

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert "secret path" in caplog.text


def test_a_handler_refuses_with_its_own_code():
    detail = "ticks 1, 2 are not multiples of 10"

    async def picky(caller, body):
        raise ProtocolError(Code.TICK_SPACING, detail + "\n" * 1000)

    async def main():
        async with miner(picky) as port:
            reply = (await send(port, signed()))[1]
            return reply["detail"], (await ask(port)).detail

    raw_detail, told = asyncio.run(main())
    assert raw_detail.isprintable() and len(raw_detail) == client.MAX_DETAIL_CHARS
    assert told.startswith(f"400 tick_spacing: {detail}?")


def test_a_slow_handler_meets_its_deadline(caplog):
    async def slow(caller, body):
        await asyncio.sleep(60)

    with caplog.at_level(logging.CRITICAL):
        assert refusal(signed(), server={"handler": slow, "handler_seconds": 0.1}) == (500, "handler_failed")


# ---------------------------------------------------------------------------------------------------------------------
# Peers that misbehave


def raw(head: str, body: bytes = b"") -> bytes:
    return head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body


JSON = "HTTP/1.1 200 OK\nContent-Type: application/json"
SIG = f"{signing.ANSWER_HEADER}: {'ab' * 64}"


@pytest.mark.parametrize(
    ("reply", "code", "detail"),
    [
        (raw("HTTP/1.1 302 Found\nLocation: http://127.0.0.1:1/x\nContent-Length: 0"), Code.REDIRECT, "302 to http"),
        (raw("HTTP/1.1 307 T\nContent-Length: 0"), Code.REDIRECT, "307 to nowhere"),
        (raw("HTTP/1.1 308 P\nLocation: /rebalance\nContent-Length: 0"), Code.REDIRECT, "308"),
        (raw("HTTP/1.1 204 No Content"), Code.HTTP_STATUS, "204"),
        (raw("HTTP/1.1 101 Switching Protocols\nUpgrade: websocket\nConnection: upgrade"), Code.HTTP_STATUS, "101"),
        (raw("HTTP/1.1 500 Oops\nContent-Length: 4", b"oops"), Code.HTTP_STATUS, "500"),
        (
            raw("HTTP/1.1 503 B\nContent-Length: 31", b'{"code":"busy","detail":"late"}'),
            Code.HTTP_STATUS,
            "503 busy: late",
        ),
        (raw("HTTP/1.1 403 F\nContent-Length: 14", b'{"code": [[]]}'), Code.HTTP_STATUS, "403"),
        (raw("HTTP/1.1 403 F\nContent-Length: 4", b"[[]]"), Code.HTTP_STATUS, "403"),
        (raw(f"HTTP/1.1 403 F\nContent-Length: {10**12}", b"x" * 10**5), Code.HTTP_STATUS, "403"),
        (
            raw(f"HTTP/1.1 200 OK\nContent-Type: text/html\n{SIG}\nContent-Length: 2", b"{}"),
            Code.CONTENT_TYPE,
            "text/html",
        ),
        (raw(f"HTTP/1.1 200 OK\n{SIG}\nContent-Length: 2", b"{}"), Code.CONTENT_TYPE, "none, not"),
        (
            raw(f"{JSON}\n{SIG}\nContent-Encoding: gzip\nContent-Length: 2", b"{}"),
            Code.CONTENT_TYPE,
            "compressed with gzip",
        ),
        (raw(f"{JSON}\n{SIG}\nContent-Length: {10**15}", b"{"), Code.REPLY_TOO_LARGE, f"{10**15} bytes declared"),
        (raw(f"{JSON}\n{SIG}\nContent-Length: {LIMIT + 1}", b"{"), Code.REPLY_TOO_LARGE, "32769 bytes declared"),
        (raw(f"{JSON}\n{SIG}", b"x" * (LIMIT + 1)), Code.REPLY_TOO_LARGE, "more than 32768"),
        (raw(f"{JSON}\nContent-Length: 2", b"{}"), Code.REPLY_SIGNATURE, "0 headers"),
        (raw(f"{JSON}\n{SIG}\n{SIG}\nContent-Length: 2", b"{}"), Code.REPLY_SIGNATURE, "2 headers"),
        (raw(f"{JSON}\n{SIG}\nContent-Length: 2", b"{}"), Code.REPLY_SIGNATURE, "not signed by 5FHne"),
        (raw(f"{JSON}\n{signing.ANSWER_HEADER}: zz\nContent-Length: 2", b"{}"), Code.REPLY_SIGNATURE, "not signed"),
        (raw(f"{JSON}\nX-Long: {'x' * 70_000}"), Code.UNREACHABLE, "(ClientResponseError)"),
        (raw(f"{JSON}\n" + "\n".join(f"X-{n}: 1" for n in range(3000))), Code.UNREACHABLE, "(ClientResponseError)"),
        (raw(f"{JSON}\n{SIG}\nContent-Length: -5"), Code.UNREACHABLE, "(ClientResponseError)"),
        (raw(f"{JSON}\n{SIG}\nTransfer-Encoding: chunked", b"zz\r\n"), Code.UNREACHABLE, ""),
        (raw("SSH-2.0-OpenSSH_9.6"), Code.UNREACHABLE, ""),
    ],
)
def test_a_wrong_reply_gets_its_code(reply, code, detail):
    got = ask_peer(says(reply))
    assert got.code is code and detail in got.detail, got
    assert (got.body, got.signature) == (b"", "") and got.nonce and got.request_digest == digest(QUERY)


def test_a_redirect_is_not_followed():
    requests = []

    async def behave(reader, writer, headers, body):
        requests.append(headers)
        writer.write(raw(f"HTTP/1.1 307 T\nLocation: http://{headers['Host']}/again\nContent-Length: 0"))

    assert ask_peer(behave).code is Code.REDIRECT
    assert len(requests) == 1


def test_a_peers_refusal_is_cut_and_made_printable():
    for text in ("\x1b[31m\n\r\t\u202eevil\u2603", "x" * 1900):
        body = json.dumps({"code": "busy", "detail": text}).encode()
        got = ask_peer(says(raw(f"HTTP/1.1 503 B\nContent-Length: {len(body)}", body)))
        assert got.detail.startswith("503 busy: ")
        assert len(got.detail) <= client.MAX_DETAIL_CHARS and got.detail.isascii() and got.detail.isprintable()


def test_a_gzip_bomb_stays_packed():
    bomb = gzip.compress(bytes(50_000_000))

    async def behave(reader, writer, headers, body):
        writer.write(signed_reply(headers, body, answer=bomb, extra="Content-Encoding: gzip\r\n"))

    assert ask_peer(behave).code is Code.CONTENT_TYPE
    packed = gzip.compress(b'{"code":"busy","detail":"late"}')
    head = f"HTTP/1.1 503 B\nContent-Encoding: gzip\nContent-Length: {len(packed)}"
    assert ask_peer(says(raw(head, packed))).detail == "503"
    unlabelled = ask_peer(says(raw(f"{JSON}\n{SIG}\nContent-Length: {len(bomb)}", bomb)))
    assert unlabelled.code is Code.REPLY_TOO_LARGE  # 48,600 bytes, counted as they are


def test_an_endless_chunked_reply_is_cut_when_the_limit_is_passed():
    closed = []

    async def behave(reader, writer, headers, body):
        writer.write(raw(f"{JSON}\n{SIG}\nTransfer-Encoding: chunked"))
        try:
            while True:
                writer.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")
                await writer.drain()
        except ConnectionError:
            closed.append(True)

    async def main():
        async with peer(behave) as port:
            reply = await ask(port)
            for _ in range(100):
                if closed:
                    break
                await asyncio.sleep(0.02)
            return reply

    assert asyncio.run(main()).code is Code.REPLY_TOO_LARGE
    assert closed


def test_an_answer_of_exactly_the_limit_is_taken():
    answer = b"x" * LIMIT

    async def behave(reader, writer, headers, body):
        writer.write(signed_reply(headers, body, answer=answer))

    assert ask_peer(behave).body == answer


@pytest.mark.parametrize("stage", ["status line", "headers", "body"])
def test_a_byte_at_a_time_is_cut_at_the_total_deadline(stage):
    """The reply is correct and would be whole after 2 s or more, no single wait longer than 20 ms."""

    async def behave(reader, writer, headers, body):
        reply = signed_reply(headers, body, answer=b"x" * 100)
        at_once = {"status line": 0, "headers": 15, "body": len(reply) - 100}[stage]
        writer.write(reply[:at_once])
        for n in range(at_once, len(reply)):
            writer.write(reply[n : n + 1])
            await writer.drain()
            await asyncio.sleep(0.02)

    got = ask_peer(behave, total_seconds=0.4)
    assert got.code is Code.TIMEOUT and "0.4 s" in got.detail
    assert ask_peer(behave, total_seconds=60).code is Code.ACCEPTED if stage == "body" else True


@pytest.mark.parametrize("interim", [b"", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_silence_and_a_few_interim_replies_meet_the_deadline(interim):
    async def behave(reader, writer, headers, body):
        while True:
            writer.write(interim)
            await writer.drain()
            await asyncio.sleep(0.01)

    assert ask_peer(behave, total_seconds=0.3).code is Code.TIMEOUT


INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
CHUNKED = f"{JSON}\n{SIG}\nTransfer-Encoding: chunked"


@pytest.mark.parametrize(
    ("first", "then", "detail"),
    [
        (b"", INTERIM * 100, "more than 16384 bytes before an answer"),
        (raw(CHUNKED, b"2;"), b"x" * 4096, "more than 131072 bytes with headers and framing"),
        (raw(CHUNKED), b"1\r\nx\r\n" * 1000, "more than 131072 bytes with headers and framing"),
    ],
)
def test_endless_framing_is_cut_off_though_no_answer_grows_too_long(first, then, detail):
    async def behave(reader, writer, headers, body):
        writer.write(first)
        while True:
            writer.write(then)
            await writer.drain()
            await asyncio.sleep(0)

    got = ask_peer(behave, total_seconds=10)
    assert (got.code, got.detail) == (Code.REPLY_TOO_LARGE, detail)


@pytest.mark.parametrize("pause_seconds", [0, 0.1])
def test_replies_behind_the_answer_are_not_parsed(pause_seconds, monkeypatch):
    """Neither in the answer's own packets nor later: 100,000 would be parsed and kept, at every ask."""
    parsed, feed = [], aiohttp.client_proto.ResponseHandler.feed_data
    monkeypatch.setattr(
        aiohttp.client_proto.ResponseHandler,
        "feed_data",
        lambda *arguments: parsed.append(1) or feed(*arguments),
    )

    async def behave(reader, writer, headers, body):
        writer.write(signed_reply(headers, body))
        await asyncio.sleep(pause_seconds)
        for _ in range(1000):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" * 100)
            await writer.drain()

    async def main():
        async with peer(behave) as port, client.client_session(1) as session:
            reply = await ask(port, session)
            await asyncio.sleep(2 * pause_seconds)
            return reply

    code = asyncio.run(main()).code
    assert code is Code.ACCEPTED or (not pause_seconds and code is Code.REPLY_TOO_LARGE)
    assert len(parsed) < 300


def test_a_long_answer_in_two_byte_chunks_is_taken_whole_also_when_the_peer_hangs_up_at_once():
    answer = bytes(range(33, 127)) * 150

    async def behave(reader, writer, headers, body):
        head, _, whole = signed_reply(headers, body, answer=answer).partition(b"\r\n\r\n")
        head = head.replace(f"Content-Length: {len(answer)}".encode(), b"Transfer-Encoding: chunked")
        chunks = b"".join(b"2\r\n" + whole[n : n + 2] + b"\r\n" for n in range(0, len(whole), 2))
        writer.write(head + b"\r\n\r\n" + chunks + b"0\r\n\r\n")
        writer.close()

    got = ask_peer(behave)
    assert got.code is Code.ACCEPTED and got.body == answer


@pytest.mark.parametrize("cut", [0, 1, 12, 40, -len(ANSWER) - 2, -len(ANSWER), -1])
def test_a_connection_closed_at_any_stage_is_unreachable(cut):
    async def behave(reader, writer, headers, body):
        writer.write(signed_reply(headers, body)[:cut])

    assert ask_peer(behave).code is Code.UNREACHABLE


def test_a_connection_closed_before_the_request_is_read_is_unreachable():
    async def main():
        server = await asyncio.start_server(lambda reader, writer: writer.transport.abort(), "127.0.0.1", 0)
        async with server:
            return await ask(server.sockets[0].getsockname()[1])

    assert asyncio.run(main()).code is Code.UNREACHABLE


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/rebalance",  # nothing listens there
        "http://127.0.0.1:99999/rebalance",
        "http://127.0.0.1:port/rebalance",
        "http://[::1/rebalance",
        "http:///rebalance",
        "http://" + "a" * 64 + ".invalid/rebalance",
        "http://0.0.0.0:0/",
        "ftp://127.0.0.1/",
        "rebalance",
        "",
    ],
)
def test_an_impossible_address_is_unreachable(url):
    async def main():
        async with client.client_session(1) as session:
            return await client.ask(
                session,
                url,
                QUERY,
                keypair=ALICE,
                receiver=BOB.ss58_address,
                total_seconds=2,
                max_reply_bytes=LIMIT,
            )

    assert asyncio.run(main()).code is Code.UNREACHABLE


def test_a_key_that_cannot_sign_is_the_askers_own_error():
    public_only = Keypair(ss58_address=ALICE.ss58_address)

    async def main():
        async with client.client_session(1) as session:
            options = {"keypair": public_only, "receiver": BOB.ss58_address, "total_seconds": 1, "max_reply_bytes": 1}
            await client.ask(session, "http://127.0.0.1:1/", QUERY, **options)

    with pytest.raises(ValueError, match="private key"):
        asyncio.run(main())


def test_an_answer_by_another_key_or_to_another_request_is_refused():
    async def by_eve(reader, writer, headers, body):
        writer.write(signed_reply(headers, body, key=EVE))

    async def to_another_body(reader, writer, headers, body):
        writer.write(signed_reply(headers, body + b" "))

    async def to_another_caller(reader, writer, headers, body):
        writer.write(signed_reply(headers | {"X-Bittensor-Hotkey": EVE.ss58_address}, body))

    async def to_another_nonce(reader, writer, headers, body):
        writer.write(signed_reply({**headers, "X-Bittensor-Nonce": int(headers["X-Bittensor-Nonce"]) - 1}, body))

    async def changed_on_the_way(reader, writer, headers, body):
        writer.write(signed_reply(headers, body).replace(b"true", b"TRUE"))

    for behave in (by_eve, to_another_body, to_another_caller, to_another_nonce, changed_on_the_way):
        got = ask_peer(behave)
        assert got.code is Code.REPLY_SIGNATURE, behave.__name__
        assert (got.body, got.signature) == (b"", "")


def test_whatever_bytes_a_peer_sends_an_ask_ends_in_a_code():
    """Fuzz: 300 damaged copies of a correct reply; none but the signed body is ever accepted."""
    rng = random.Random(7)

    async def behave(reader, writer, headers, body):
        reply = bytearray(signed_reply(headers, body))
        for _ in range(rng.randint(1, 2)):
            at = rng.randrange(len(reply))
            match rng.randrange(4):
                case 0:
                    reply[at] = rng.randrange(256)
                case 1:
                    del reply[at : at + rng.randint(1, 20)]
                case 2:
                    reply[at:at] = rng.randbytes(rng.randint(1, 20))
                case 3:
                    reply[at:at] = reply[: rng.randint(1, len(reply))]
        writer.write(reply)

    async def main():
        async with peer(behave) as port, client.client_session(1) as session:
            return [await ask(port, session, total_seconds=1.0) for _ in range(300)]

    replies = asyncio.run(main())
    assert all(reply.body == ANSWER if reply.code is Code.ACCEPTED else reply.body == b"" for reply in replies)
    assert {reply.code for reply in replies} > {Code.ACCEPTED, Code.UNREACHABLE, Code.REPLY_SIGNATURE}


def test_one_bad_peer_does_not_disturb_the_others():
    async def silent(reader, writer, headers, body):
        await asyncio.sleep(60)

    async def main():
        async with miner() as good, peer(silent) as bad, client.client_session(30) as session:
            return await asyncio.gather(*(ask(port, session, total_seconds=1.5) for port in [good, bad] * 10))

    codes = [reply.code for reply in asyncio.run(main())]
    assert codes == [Code.ACCEPTED, Code.TIMEOUT] * 10


def test_a_cancelled_ask_is_cancelled():
    async def silent(reader, writer, headers, body):
        await asyncio.sleep(60)

    async def main():
        async with peer(silent) as port:
            task = asyncio.create_task(ask(port))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())


# ---------------------------------------------------------------------------------------------------------------------
# Listening


def test_a_busy_port_is_one_line_with_the_fix():
    async def main():
        async with miner() as port:
            app = server_module.build_app(keypair=EVE, gate=gate_of(), routes={})
            with pytest.raises(signing.WireError) as error:
                async with server_module.serve(app, "127.0.0.1", port):
                    pass
            return str(error.value), port

    message, port = asyncio.run(main())
    assert f"port {port}" in message and "in use" in message and "another port" in message and "\n" not in message


@pytest.mark.parametrize(("host", "port"), [("203.0.113.1", 0), ("127.0.0.1", 70_000), ("no.such.host.invalid", 0)])
def test_an_impossible_place_to_listen_is_one_line(host, port):
    async def main():
        async with server_module.serve(server_module.build_app(keypair=BOB, gate=gate_of(), routes={}), host, port):
            pass

    with pytest.raises(signing.WireError) as error:
        asyncio.run(main())
    assert host in str(error.value) and "\n" not in str(error.value)


def test_the_server_is_gone_after_the_block():
    async def main():
        async with miner() as port:
            assert (await ask(port)).code is Code.ACCEPTED
        return (await ask(port)).code

    assert asyncio.run(main()) is Code.UNREACHABLE
