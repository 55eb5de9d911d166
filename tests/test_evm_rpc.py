"""`rpc.py`: batches, failover, deadlines and limits, against servers on the loopback interface that misbehave.

Run: `python -m pytest tests/test_evm_rpc.py`. What a market makes of bad answers is in `test_evm_market.py`.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import pytest
from aiohttp import web

from evm import rpc
from evm.rpc import Refusal, RpcError, open_rpc
from runtime.hidden import hide

CALLS = [("echo", [n]) for n in range(10)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(rpc, "FIRST_REST_SECONDS", 0.01)
    monkeypatch.setattr(rpc, "MAX_REST_SECONDS", 0.05)


def echo(calls: list[dict]) -> list[dict]:
    """A node that answers each call with its parameter, last call first: the order is not promised."""
    return [{"jsonrpc": "2.0", "id": call["id"], "result": call["params"][0]} for call in reversed(calls)]


class Server:
    """Answers with what `answer(calls)` returns: a list of answers, or a response.

    Attributes:
        sizes: how many calls each request had.
    """

    def __init__(self, answer=echo):
        self.answer, self.sizes = answer, []

    async def __aenter__(self) -> str:
        app = web.Application()
        app.router.add_post("/secret-key", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return f"http://user:password@127.0.0.1:{site._server.sockets[0].getsockname()[1]}/secret-key"

    async def __aexit__(self, *_) -> None:
        await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        calls = body if isinstance(body, list) else [body]
        self.sizes.append(len(calls))
        said = self.answer(calls)
        said = await said if asyncio.iscoroutine(said) else said
        if isinstance(said, web.StreamResponse):
            return said
        return web.json_response(said if isinstance(body, list) or not isinstance(said, list) else said[0])


def ask(*servers: Server, calls=CALLS, limits=None, **options) -> rpc.Answers:
    """One batch."""

    async def work():
        async with AsyncExitStack() as stack:
            urls = [await stack.enter_async_context(server) for server in servers]
            client = await stack.enter_async_context(open_rpc(urls, **{"total_seconds": 2} | (limits or {})))
            return await client.batch(calls, **options)

    return asyncio.run(work())


def test_results_come_in_the_order_of_the_calls_whatever_the_order_of_the_answers():
    found = ask(Server())
    assert found == list(range(10))


def test_a_batch_that_is_too_large_is_cut_until_the_endpoint_takes_it_and_stays_cut():
    def small(calls):
        return web.Response(status=413) if len(calls) > 3 else echo(calls)

    server = Server(small)
    found = ask(server, calls=[("echo", [n]) for n in range(20)])
    assert found == list(range(20))
    assert server.sizes[:3] == [20, 10, 5] and max(server.sizes[3:]) <= 2 and sum(server.sizes[3:]) == 20


def test_an_endpoint_without_batches_is_asked_one_by_one():
    def single(calls):
        error = {"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "no batches here"}}
        return error if len(calls) > 1 else echo(calls)

    assert ask(Server(single)) == list(range(10))


def test_an_answer_without_end_is_cut_off(monkeypatch):
    monkeypatch.setattr(rpc, "MAX_REPLY_BYTES", 10_000)

    def long(calls):
        return [answer | {"result": "x" * 8000} for answer in echo(calls)]

    found = ask(Server(long))
    assert [len(text) for text in found] == [8000] * 10
    with pytest.raises(RpcError, match="longer than"):
        ask(Server(lambda calls: web.Response(body=b"x" * 20_000)), calls=CALLS[:1], limits={"total_seconds": 0.2})


@pytest.mark.parametrize(
    "answer",
    [
        lambda calls: web.Response(status=429, headers={"Retry-After": "1000000000"}),
        lambda calls: web.Response(status=500),
        lambda calls: web.Response(status=302, headers={"Location": "/elsewhere"}),
        lambda calls: web.Response(text="<html>"),
        lambda calls: web.Response(text="[" * 100_000),
        lambda calls: [],
        lambda calls: echo(calls)[1:],
        lambda calls: echo(calls) + echo(calls)[:1],
        lambda calls: [answer | {"id": 5} for answer in echo(calls)],
        lambda calls: [{"id": call["id"]} for call in calls],
        lambda calls: [5 for _ in calls],
        lambda calls: [{"id": call["id"], "error": "so"} for call in calls],
        lambda calls: [{"id": call["id"], "error": {"code": -32005, "message": "limit"}} for call in calls],
        lambda calls: [{"id": call["id"], "error": {"code": -32000, "message": "header not found"}} for call in calls],
        lambda calls: asyncio.sleep(30),
    ],
)
def test_the_next_endpoint_answers_when_one_does_not(answer, caplog):
    found = ask(Server(answer), Server(), limits={"attempt_seconds": 0.3})
    assert found == list(range(10)) and found.endpoints
    assert "127.0.0.1:" in caplog.text and "rests" in caplog.text
    assert "secret" not in caplog.text and "password" not in caplog.text


def test_a_total_deadline_ends_it_and_says_what_each_endpoint_did():
    with pytest.raises(RpcError, match=r"no answer within 0\.3 s.*HTTP 500.*HTTP 503") as error:
        answers = (lambda calls: web.Response(status=500)), (lambda calls: web.Response(status=503))
        ask(*map(Server, answers), limits={"total_seconds": 0.3})
    assert "secret" not in str(error.value)


def test_a_contracts_refusal_is_a_result_and_a_nodes_own_one_only_if_it_may_be():
    def refuse(calls):
        errors = [{"code": 3, "message": "execution reverted: LOK"}, {"code": -32000, "message": "missing trie node"}]
        return [{"id": call["id"], "error": errors[call["params"][0]]} for call in calls]

    [refusal] = ask(Server(refuse), calls=[("echo", [0])])
    assert isinstance(refusal, Refusal) and refusal.reverted and "LOK" in str(refusal)
    [refusal] = ask(Server(refuse), calls=[("echo", [1])], refusable=True)
    assert isinstance(refusal, Refusal) and not refusal.reverted
    with pytest.raises(RpcError, match="missing trie node"):
        ask(Server(refuse), calls=[("echo", [1])], limits={"total_seconds": 0.2})


def test_a_result_that_cannot_be_used_is_asked_of_another():
    behind = Server(lambda calls: [{"id": call["id"], "result": None} for call in calls])
    found = ask(behind, Server(), calls=[("echo", [7])], usable=bool)
    assert found == [7] and behind.sizes == [1]


def test_who_lied_rests_longer_each_time_until_it_is_right():
    async def work():
        async with open_rpc(["http://one.example", "http://two.example"]) as client:
            one, two = client.endpoints
            rests = []
            for _ in range(3):
                began = time.monotonic()
                client.distrust([one], "it left a log out")
                one.failures = 0  # it answers well in between
                rests.append(one.rests_until - began)
            client.trust([one])
            assert two.lies == 0 and one.lies == 0
            return rests

    rests = asyncio.run(work())
    assert rests == sorted(rests) and rests[2] > 1.5 * rests[0]


@pytest.mark.parametrize("url", ["", "node.example", "ws://node.example", "http://"])
def test_an_address_that_is_none_is_refused(url):
    async def work():
        async with open_rpc([url]):
            pass

    with pytest.raises(RpcError, match="expected"):
        asyncio.run(work())


# ---------------------------------------------------------------------------------------------------------------------
# What nodes say in their own way


def error(calls, code, message, status=200, many=False):
    said = {"jsonrpc": "2.0", "id": calls[0]["id"], "error": {"code": code, "message": message}}
    return web.json_response([said] if many else said, status=status)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (-32005, "project ID request rate exceeded"),
        (-32005, "limit exceeded"),
        (-32029, "Too many requests"),
        (-32007, "50/second request limit reached"),
        (429, "compute units per second capacity"),
        (-32000, "daily request count exceeded"),
    ],
)
def test_a_rate_limit_is_never_a_result(code, message):
    limited = Server(lambda calls: error(calls, code, message))
    assert ask(limited, Server(), calls=CALLS[:1], refusable=True) == [0] and limited.sizes


@pytest.mark.parametrize("message", ["query returned more than 10000 results", "block range is too wide"])
def test_a_range_that_is_too_wide_is_no_rate_limit_whatever_its_code(message):
    [refusal] = ask(Server(lambda calls: error(calls, -32005, message)), calls=CALLS[:1], refusable=True)
    assert refusal.message == message and not refusal.limited


@pytest.mark.parametrize("status", [400, 500])
def test_an_error_in_the_body_of_an_http_error_is_read(status):
    [refusal] = ask(
        Server(lambda calls: error(calls, -32600, "up to a 10 block range", status)), calls=CALLS[:1], refusable=True
    )
    assert refusal.message == "up to a 10 block range"


@pytest.mark.parametrize("status", [401, 403, 503])
def test_who_lets_nobody_in_says_nothing_about_the_call(status):
    closed = Server(lambda calls: error(calls, -32000, "invalid API key", status))
    assert ask(closed, Server(), calls=CALLS[:1], refusable=True) == [0]


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("status", [200, 400])
def test_a_batch_that_is_refused_in_any_shape_is_halved(many, status):
    def small(calls):
        return error(calls, -32600, "batch too large", status, many) if len(calls) > 3 else echo(calls)

    assert ask(Server(small)) == list(range(10))


def test_a_batch_that_was_refused_is_tried_again_later(monkeypatch):
    endpoint = rpc.Endpoint("http://one.example")
    endpoint.cut(1000, "a batch is refused")
    assert endpoint.takes() == 500
    monkeypatch.setattr(rpc, "RELAX_SECONDS", -1.0)
    assert endpoint.takes() == 1000


def test_logs_that_are_too_large_say_nothing_about_batches_of_calls():
    async def work():
        async with Server(lambda calls: web.Response(status=413)) as url, open_rpc([url]) as client:
            await client.batch([("eth_chainId", []), ("eth_getLogs", [])], refusable=True)
            return client.endpoints[0].most_calls

    assert asyncio.run(work()) == rpc.MAX_BATCH


@pytest.mark.parametrize(
    "answer",
    [
        lambda calls: web.Response(status=429, headers={"Retry-After": "²"}),
        *(
            lambda calls, code=code: web.Response(
                text=f'{{"jsonrpc":"2.0","id":0,"error":{{"code":{code},"message":"x"}}}}'
            )
            for code in ("1e999", "NaN", "9" * 4000)
        ),
    ],
)
def test_whatever_an_endpoint_says_costs_only_itself(answer):
    assert ask(Server(answer), Server(), calls=CALLS[:1]) == [0]


@pytest.mark.parametrize("message", ["invalid opcode: INVALID", "EVM error InvalidFEOpcode", "out of gas"])
def test_an_error_of_the_evm_is_the_contracts(message):
    [refusal] = ask(Server(lambda calls: error(calls, -32000, message)), calls=CALLS[:1])
    assert refusal.reverted


def test_no_answer_however_broken_shows_the_address(caplog):
    """The HTTP library quotes the address with the key in what it says of a bad reply."""

    async def work():
        async def broken(reader, writer):
            await reader.read(4000)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx")
            writer.close()

        server = await asyncio.start_server(broken, "127.0.0.1", 0)
        url = f"http://me:hunter22@127.0.0.1:{server.sockets[0].getsockname()[1]}/v2/PLANTED-KEY?token=PLANTED-TOKEN"
        async with server, open_rpc([url], total_seconds=0.3) as client:
            for asked in (client.batch(CALLS[:1]), client.each("echo", [])):
                with pytest.raises(RpcError) as error:
                    await asked
                assert not any(word in str(error.value) for word in ("PLANTED", "hunter22"))
        assert (
            hide(f"GET {url} of me:hunter22, PLANTED-KEY")
            == f"GET {url.split('me:')[0]}*****@" + hide(url.split("@")[1]) + " of *****, *****"
        )

    asyncio.run(work())
    assert "PLANTED" not in caplog.text
