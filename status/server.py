"""The status server, for both programs: GET on a few paths, for this machine's names, so many at once.

Read next: `validator.py`, `miner.py`, what each answers.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

from aiohttp import web

from protocol import PROTOCOL_VERSION
from runtime.db import StoreError
from runtime.process import number
from scoring import RULES_VERSION
from status.pages import POLICY, Pages
from status.reader import NotShown
from wire.codec import canonical
from wire.server import LIMITS, Limits, serve
from wire.signing import WireError

VALIDATOR_PORT, MINER_PORT = 8081, 8080
LOOPBACK = "127.0.0.1"
MAX_AT_ONCE = 4
ANSWER_SECONDS = 20.0
HEADERS = {
    "Content-Security-Policy": f"{POLICY}; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

log = logging.getLogger("status")


@cache
def version() -> str:
    """Protocol, rules, and the first digits of a digest over this program's files: who runs the same says the same."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    rooms = [path.parent for path in root.glob("*/__init__.py")]
    files = [file for folder in (root, *rooms) for file in folder.glob("*.py")]
    for path in sorted([*files, *root.glob("status/templates/*")]):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return f"{PROTOCOL_VERSION}, rules {RULES_VERSION}, code {digest.hexdigest()[:12]}"


def add_options(add: Callable, port: int) -> None:
    """`--status-port` and `--status-host` for a parser's or group's `add_argument`."""
    usual = f"of the status page, 0 for any free one (default: {port}, or any free one if it is in use)"
    add("--status-port", type=number(0, 65535), metavar="PORT", help=usual)
    add("--status-host", default=LOOPBACK, help=f"address it listens on (default: {LOOPBACK}: this machine only)")


class Status:
    """What both programs answer: health, everything as JSON, the same for Prometheus, and the page.

    A child adds to `routes`: by path what gives a response, or what JSON is made of. All are for GET and HEAD, at most
    MAX_AT_ONCE at a time beside `/health`, for this machine's names; every answer has the same headers. And a child has

        prefix         of its metrics' names
        port           its usual one
        now()          `/status`; with `version`, `hotkey`, and `health`: `ok` and `problems`
        measured(now)  metrics beyond `info` and `healthy`: name, help, and values by `labels` or one; None is left out
        page(request)  `/`
    """

    def __init__(self):
        self.routes: dict[str, Callable] = {"/": self.page, "/health": self.health, "/status": self.status}
        self.routes["/metrics"] = self.metrics
        self._host, self._working = LOOPBACK, asyncio.Semaphore(MAX_AT_ONCE)
        self._look: asyncio.Task[dict[str, Any]] | None = None

    @asynccontextmanager
    async def serving(self, options: Any) -> AsyncIterator[str | None]:
        """Serve at `status_host` and `status_port` inside the block and give the URL; a port that cannot be had stops
        nobody: that is said, and it is None."""
        host, port, url, problem = options.status_host, options.status_port, None, None
        app, self._host = web.Application(middlewares=[self._guard]), host
        app[LIMITS] = Limits()
        for path, handler in self.routes.items():
            app.router.add_get(path, handler)
        async with AsyncExitStack() as stack:
            for attempt in (self.port, 0) if port is None else (port,):
                try:
                    found = await stack.enter_async_context(serve(app, host, attempt))
                except WireError as error:
                    problem = error
                else:
                    url = f"http://[{host}]:{found}" if ":" in host else f"http://{host}:{found}"
                    log.info("status page: %s/", url)
                    break
            else:
                log.warning("no status page: %s", problem)
            yield url

    @web.middleware
    async def _guard(self, request: web.Request, handler: Callable) -> web.StreamResponse:
        response = await self._respond(request, handler)
        response.headers.update(HEADERS)
        return response

    async def _respond(self, request: web.Request, handler: Callable) -> web.StreamResponse:
        if request.method not in ("GET", "HEAD"):
            return _refused(405, "only GET and HEAD", Allow="GET, HEAD")
        if not self._known(request.headers.getall("Host", [])):
            return _refused(403, "this name is not this machine's: use its address, or localhost")
        place = nullcontext() if request.path == "/health" else self._working
        if place is self._working and place.locked():
            return _refused(503, "busy; try again", **{"Retry-After": "1"})
        try:
            async with place, asyncio.timeout(ANSWER_SECONDS):
                answer = await handler(request)
                return answer if isinstance(answer, web.StreamResponse) else await json_answer(answer)
        except web.HTTPException as error:
            return _refused(error.status, error.reason)
        except NotShown as error:
            return _refused(404, str(error))
        except TimeoutError:
            return _refused(503, f"not done within {ANSWER_SECONDS:g} s; try again", **{"Retry-After": "5"})
        except Exception as error:
            log.exception("%s failed", request.path)
            what = "the database cannot be read" if isinstance(error, StoreError) else "it failed"
            return _refused(500, f"{what}; see the log")

    def _known(self, hosts: list[str]) -> bool:
        """Whether a `Host` can only be this machine: an address, localhost, or the name it was told to listen on."""
        if len(hosts) != 1:
            return False
        name = hosts[0].rpartition(":")[0] if hosts[0].rpartition(":")[2].isdecimal() else hosts[0]
        name = name.removeprefix("[").removesuffix("]").lower()
        if name in ("localhost", self._host.lower()):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not _loopback(self._host)

    async def status(self, request: web.Request) -> dict[str, Any]:
        return await self.now()

    async def health(self, request: web.Request) -> web.Response:
        """`/health`, however busy it is: all who ask meanwhile share one look."""
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self.now())
        health = (await asyncio.shield(self._look))["health"]
        body = canonical(health) + b"\n"
        return web.Response(body=body, status=200 if health["ok"] else 503, content_type="application/json")

    async def metrics(self, request: web.Request) -> web.Response:
        """`/metrics`: Prometheus' text format; what ends in `_total` only grows."""
        now, lines = await self.now(), []
        both = [
            ("info", "What runs here.", {labels(version=now["version"], hotkey=now["hotkey"]): 1}),
            ("healthy", "1, or 0 where /health is 503.", int(now["health"]["ok"])),
        ]
        for name, about, value in both + self.measured(now):
            series = value if isinstance(value, Mapping) else {"": value}
            if given := {which: size for which, size in series.items() if size is not None}:
                kind = "counter" if name.endswith("_total") else "gauge"
                lines += [f"# HELP {self.prefix}_{name} {about}", f"# TYPE {self.prefix}_{name} {kind}"]
                lines += [f"{self.prefix}_{name}{which} {size}" for which, size in given.items()]
        return web.Response(text="\n".join([*lines, ""]), content_type="text/plain")


async def json_answer(value: Any) -> web.Response:
    body = await asyncio.to_thread(canonical, value)
    return web.Response(body=body + b"\n", content_type="application/json")


async def html_answer(pages: Pages, template: str, title: str, **shown: Any) -> web.Response:
    text = await asyncio.to_thread(pages.write, template, title, **shown)
    return web.Response(text=text, content_type="text/html")


def _loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _refused(status: int, why: str, **headers: str) -> web.Response:
    body = canonical({"error": why}) + b"\n"
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)


def labels(**texts: Any) -> str:
    """A metric's labels."""
    escapes = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
    return "{" + ",".join(f'{name}="{str(text).translate(escapes)}"' for name, text in texts.items()) + "}"


def whole(request: web.Request, name: str) -> str | None:
    value = request.query.get(name)
    if value is not None and len(value) > 300:
        raise NotShown(f"{name}: {len(value)} characters")
    return value
