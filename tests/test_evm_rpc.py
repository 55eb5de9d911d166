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
        lambda calls: web.Response(text="<html>more than a batch: error 522</html>", status=522),
        lambda calls: web.json_response("nothing"),
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


def test_an_endpoint_rests_for_as_long_as_it_asks_for(monkeypatch):
    async def work(status):
        monkeypatch.setattr(rpc, "MAX_REST_SECONDS", 30.0)
        busy = Server(lambda calls: web.Response(status=status, headers={"Retry-After": "20"}))
        async with busy as url, Server() as other, open_rpc([url, other]) as client:
            assert await client.batch(CALLS[:1]) == [0]
            return client.endpoints[0].rests_until - time.monotonic()

    assert all(asyncio.run(work(status)) > 15 for status in (429, 503))


def test_each_endpoint_is_asked_and_who_says_what_cannot_be_rests():
    async def work():
        async with (
            Server() as one,
            Server(lambda calls: [{"id": 0, "result": {}}]) as two,
            open_rpc([one, two]) as client,
        ):
            found = await client.each("echo", [7], lambda result: result + 0)
            return found == {client.endpoints[0]: 7}, client.endpoints[1].failures

    assert asyncio.run(work()) == (True, 1)


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
    assert isinstance(refusal, Refusal) and refusal.reverted and "LOK" in refusal.message
    [refusal] = ask(Server(refuse), calls=[("echo", [1])], refusable=True)
    assert isinstance(refusal, Refusal) and not refusal.reverted
    with pytest.raises(RpcError, match=r"an error \(code -32000\)"):
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


DIALECTS = {  # codes and words of clients and providers
    "reverted": """
        3 execution reverted
        3 Panic
        -32000 execution reverted: rate limit exceeded
        -32000 invalid opcode: INVALID
        -32000 invalid opcode: opcode 0xfe not defined
        -32000 invalid jump destination
        -32000 stack underflow (0 <=> 1)
        -32000 stack limit reached 1024 (1023)
        -32000 out of gas
        -32003 out of gas
        -32000 err: out of gas (supplied gas 50000000)
        -32000 gas uint64 overflow
        -32000 write protection
        -32000 return data out of bounds
        -32000 max call depth exceeded
        -32000 invalid code: must not begin with 0xef
        -32003 EVM error: InvalidFEOpcode
        -32603 EVM error InvalidFEOpcode
        -32003 EVM error: StackUnderflow
        -32003 EVM error: OpcodeNotFound
        -32003 out of gas: gas exhausted during memory expansion: 50000000
        -32603 evm error: InvalidCode(Opcode(254))
        -32603 evm error: DesignatedInvalid
        -32015 VM execution error.
        -32000 BadInstruction
        -32000 Bad instruction fe
        -32000 BadJumpDestination
        -32000 StackUnderflow
        -32000 Stack overflow
        -32000 OutOfGas
        -32000 Static call violation
        -32000 StaticCallViolation
        -32000 Access violation
        -32000 Out of stack
        -32000 Invalid opcode: 0xfe
        -32000 INVALID_OPERATION
        -32000 Illegal state change
        -32000 Code is invalid
        -32000 Transaction processing could not be completed due to an exception
        -32000 VM Exception while processing transaction: invalid opcode
        -32000 Error: VM Exception while processing transaction: reverted
        -32000 CONTRACT_REVERT_EXECUTED
        -32000 Precompile Secp256r1 failed with error
    """,
    "limited": """
        -32005 project ID request rate exceeded
        -32005 limit exceeded
        -32005 limit exceeded
        -32005 daily request count exceeded, request rate limited
        -32000 rate exceeded
        429 Your app has exceeded its compute units per second capacity, see https://docs.example/block-range
        429 Your app has exceeded its concurrent requests capacity.
        429 Monthly capacity limit exceeded.
        -32007 50/second request limit reached - reduce calls per second or upgrade your account
        -32007 15/second request limit reached
        -32012 credits limited to 6000/sec
        -32003 daily request limit reached - upgrade your account
        -32029 Too Many Requests, Please apply an OnFinality API key or contact us to receive a higher rate limit
        -32090 Too many requests, reason: call rate limit exhausted, retry in 10s
        -32090 Too many requests, reason: tenant call limit
        -32005 You've exceeded the RPS limit available on the current plan.
        -32001 You've reached the usage limit for your current plan
        0 cu limit exceeded
        0 You reached Public endpoint rate limit
        -32016 over rate limit
        -32017 sender is over rate limit
        -32012 backend is over capacity
        -32016 rate limit exceeded
        -32000 maximum number of concurrent requests
        -32000 exceeded request limit
        -32000 Exceeded the quota usage
        -32000 usage limit reached
        -32005 Rate limit exceeded
        -32000 rate limited, try again in 4ms
        -32000 rate-limited
        -32000 rate_limit_exceeded
        -32000 ratelimit
        -32000 free-plan-daily total included usage has been consumed, please upgrade your plan here
        -32000 server is under too much load
        -32005 Too many requests
        429 too many requests
        -32097 Compute units exceeded
        0 error code: 1015
    """,
    "too_large": """
        -32005 query returned more than 10000 results
        -32005 query returned more than 10000 results. Try with this block range [0x1, 0x2].
        -32600 block range is too wide
        -32062 Block range is too large
        -32000 block range too large (2500), maximum allowed is 2000 blocks
        -32047 Invalid eth_getLogs request. 'fromBlock'-'toBlock' range too large. Max range: 800
        -32600 You can make eth_getLogs requests with up to a 10 block range.
        -32600 Under the Free tier plan, you can make eth_getLogs requests with up to a 10 block range.
        -32600 up to a 10 block range
        -32602 Log response size exceeded. You can make eth_getLogs requests with up to a 2K block range
        -32614 eth_getLogs is limited to a 10,000 range
        -32614 eth_getLogs and eth_newFilter are limited to a 10,000 blocks range
        -32602 eth_getLogs is limited to 0 - 50 blocks range
        -32602 eth_getLogs is limited to 1024 block range. See https://docs.example/rate-limits
        -32602 exceed maximum block range: 5000
        -32701 exceed maximum block range: 50000
        -32602 query exceeds max block range 100000
        -32602 query exceeds max results 20000, retry with the range 24383075-24383096
        -32602 query exceeds limit
        -32000 logs matched by query exceeds limit of 10000
        -32602 response size should not greater than 10000000 bytes
        -32020 backend response too large
        -32000 exceeds the range allowed for your plan (100 > 10)
        -32000 Block range limit exceeded. See https://docs.example/rate-limits
        -32000 please limit the query to at most 1000 blocks
        35 ranges over 10000 blocks are not supported on free plan
        35 ranges over 10000 blocks are not supported on freetier
        -32000 log query range must not exceed 25 blocks
        -32005 eth_getLogs block range too large, range: 855077, max: 3500
        -32600 block range too high
        -32602 block range greater than 100 max
        -32000 Limit exceeded: Query requested more than 10.000 blocks
        -32000 requested too many blocks from 1 to 9, maximum is set to 2048
        -32000 too many results
        -32000 query timeout exceeded. Consider reducing your block range.
        -32000 range 49999 exceeds limit of 10000
        -32602 requested range too large
        -32000 This query contains 5006 filters. The current limit is 5000.
        -32000 exceed max addresses or topics per search position
        -32000 please specify less number of address
        -32007 Request is too big
        -32008 Response is too big
        -32003 response too large
        0 the answer is longer than 32 MB
        0 a batch of 1 is too large (HTTP 413)
        -32000 block range too large, blocks distance maximum 1000
        -32005 more than 20000 results
    """,
    "forgotten": """
        -32000 missing trie node ecd6 (path ) state 0xecd6 is not available, not found
        -32000 required historical state unavailable (reexec=128)
        -32000 historical state 197e is not available
        -32000 historical state not available
        -32000 No state available for block 0x3f9e
        -32002 No state available for block 45615500 (0xab)
        -32000 old data not available due to pruning
        -32000 state at block #39000001 is pruned
        4444 pruned history unavailable
        -32000 state transitaion failed: seek with txNum=1 but data before txNum=2 is not available: blockNum=1
        -32000 This request is not supported because your node is running with state pruning.
        -32000 distance to target block exceeds maximum proof window
        -32602 Archive requests require a personal token.
        27 Unknown state. First available state is 1
        -32601 public endpoint only serves recent blocks (last 1024)
        -32000 World state unavailable
        -32000 WORLD_STATE_UNAVAILABLE
        -32000 state 0x3068d1 is not available
        -32000 state is not available
        -32000 State is unavailable for base block 5.
        -32000 It looks like you're trying to fork from an older block with a non-archive node
        -32000 trie does not have root
        -32000 state not found for block 5
    """,
    "": """
        -32000 header not found
        -32000 block not found
        26 Unknown block
        -32019 block is out of range
        -32602 BlockOutOfRangeError: block height is 5 but requested was 1005
        -32602 block range extends beyond current head block
        -32000 invalid block range params
        -32000 cannot query unfinalized data
        -32015 gateway timeout
        -32011 no backend is currently healthy to serve traffic
        -32603 internal error
        -32603 Internal JSON-RPC error.
        -32000 Unauthorized: You must authenticate your request with an API key
        -32000 nonce too low
        -32000 already known
        -32000 replacement transaction underpriced
        -32000 insufficient funds for gas * price + value
        -32601 the method eth_maxPriorityFeePerGas does not exist/is not available
        -32000 execution aborted (timeout = 5s)
        30 Request timeout on the free plan, please upgrade to paid plan
        -32603 EVM error; database error: failed to get account for 0x56: HTTP error 403
        -32000 tx fee (2.00 ether) exceeds the configured cap (1.00 ether)
        -32600 Invalid Request
        -32000 exceeds block gas limit
        -32000 max fee per gas less than block base fee: address 0x1, maxFeePerGas: 1 baseFee: 2
        -32000 unsupported block number 124728734
    """,
}


@pytest.mark.parametrize(
    ("kind", "told"), [(kind, one.strip()) for kind, told in DIALECTS.items() for one in told.strip().splitlines()]
)
def test_a_refusal_is_read_by_its_words_first_and_then_by_its_code(kind, told):
    code, _, message = told.partition(" ")
    refusal = Refusal(int(code), message)
    assert [name for name in DIALECTS if name and getattr(refusal, name)] == [kind] * bool(kind)


@pytest.mark.parametrize("status", [200, 400, 403, 503])
@pytest.mark.parametrize(
    "said",
    [
        {"code": -32005, "message": "limit exceeded"},
        {"code": "-32005", "message": "limit exceeded"},
        {"code": -32005.0, "message": "limit exceeded"},
        {"code": -32000, "message": "", "data": {"message": "request rate limited"}},
        "cu limit exceeded",
    ],
)
def test_a_rate_limit_is_never_a_result(said, status):
    limited = Server(lambda calls: web.json_response({"id": 0, "error": said}, status=status))
    assert ask(limited, Server(), calls=CALLS[:1], refusable=True) == [0] and limited.sizes


@pytest.mark.parametrize("status", [400, 500])
@pytest.mark.parametrize("message", ["up to a 10 block range", "query returned more than 10000 results"])
def test_an_error_in_the_body_of_an_http_error_is_read(status, message):
    [refusal] = ask(Server(lambda calls: error(calls, -32005, message, status)), calls=CALLS[:1], refusable=True)
    assert refusal.message == message and refusal.too_large


def test_a_refusal_may_be_words_alone_or_have_them_beside_the_error():
    for said in ({"error": "header not found"}, {"message": "header not found", "code": 30}):
        [refusal] = ask(Server(lambda calls, said=said: web.json_response(said)), calls=CALLS[:1], refusable=True)
        assert refusal.message == "header not found"
    both = {"id": 0, "result": None, "error": {"code": -32603, "message": "Internal error", "data": "Reverted 0x"}}
    [refusal] = ask(Server(lambda calls: web.json_response(both)), calls=CALLS[:1])
    assert refusal.reverted


def test_results_are_told_apart_by_their_ids_also_as_text_and_null_is_one():
    def answer(calls):
        return [{"id": str(call["id"]), "result": call["params"][0] or None, "error": None} for call in calls]

    assert ask(Server(answer)) == [None, *range(1, 10)]


@pytest.mark.parametrize("status", [401, 402, 403, 408, 503, 504])
def test_who_lets_nobody_in_says_nothing_about_the_call(status):
    closed = Server(lambda calls: error(calls, -32000, "invalid API key", status))
    assert ask(closed, Server(), calls=CALLS[:1], refusable=True) == [0]


def words(text, status=200):
    return lambda calls: web.Response(text=text, status=status)


FREE = "Batch of more than 3 requests are not allowed on free tier"
REFUSED_BATCHES = {
    "alone": lambda calls: error(calls, -32600, "batch too large"),
    "alone, HTTP 400": lambda calls: error(calls, -32600, "batch too large", 400),
    "in a list of one": lambda calls: error(calls, -32600, "batch too large", many=True),
    "in a list of one, HTTP 400": lambda calls: error(calls, -32600, "batch too large", 400, True),
    "for every call, HTTP 500": lambda calls: web.json_response(
        [{"id": call["id"], "error": {"code": 31, "message": FREE}} for call in calls], status=500
    ),
    "for every call, with the code of a contract": lambda calls: [
        {"id": call["id"], "error": {"code": 3, "message": FREE}} for call in calls
    ],
    "for every call, without ids": lambda calls: [{"error": {"code": 31, "message": FREE}} for _ in calls],
    "with the code of a rate limit": lambda calls: error(calls, -32005, "Batched requests are not supported"),
    "in other words": lambda calls: error(calls, -32014, "too many RPC calls in batch request"),
    "as too many requests": lambda calls: error(calls, -32000, "too many requests", 400),
    "as no request": lambda calls: error(calls, -32600, "Invalid Request"),
    "as an error of words": lambda calls: web.json_response({"error": FREE}),
    "as words": lambda calls: web.json_response(FREE),
    "as a list of words": lambda calls: web.json_response([FREE]),
    "without an error around it": lambda calls: web.json_response({"code": 31, "message": FREE}, status=500),
    "as plain words": words(FREE),
    "as plain words, HTTP 400": words("Bad request", 400),
    "HTTP 413": words("Request Entity Too Large", 413),
    "in part, for what it would answer": lambda calls: (
        echo(calls)[:3]
        + [{"id": call["id"], "error": {"code": -32003, "message": "response too large"}} for call in calls[:-3]]
    ),
    "by silence": lambda calls: web.Response(status=503),
}


@pytest.mark.parametrize("shape", REFUSED_BATCHES)
def test_a_batch_that_is_refused_in_any_shape_is_made_smaller(shape):
    assert ask(Server(lambda calls: REFUSED_BATCHES[shape](calls) if len(calls) > 3 else echo(calls))) == [*range(10)]


def test_what_one_endpoint_takes_says_nothing_about_the_next():
    hostile = Server(lambda calls: error(calls, -32600, "batch too large"))
    honest = Server()
    assert ask(hostile, honest) == [*range(10)] and honest.sizes == [10]


def test_only_who_says_so_is_given_smaller_batches_later():
    async def work(answer):
        async with (
            Server(lambda calls: answer(calls) if len(calls) > 5 else echo(calls)) as url,
            open_rpc([url]) as client,
        ):
            assert await client.batch(CALLS) == [*range(10)]
            return client.endpoints[0].most_calls

    assert asyncio.run(work(lambda calls: error(calls, -32600, "batch too large"))) == 5
    assert asyncio.run(work(lambda calls: error(calls, -32603, "internal error"))) == rpc.MAX_BATCH


def test_a_batch_that_was_refused_is_tried_again_later(monkeypatch):
    endpoint = rpc.Endpoint("http://one.example")
    endpoint.cut(500)
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
