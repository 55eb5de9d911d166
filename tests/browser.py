"""A real browser for tests: headless Chromium through its DevTools protocol, over aiohttp's websocket.

    async with browser(tmp_path) as open_tab:
        tab = await open_tab(width=390, height=844, dark=True)
        await tab.go("http://127.0.0.1:8081/")
        await tab.click("a")
        assert not tab.errors

Used by `test_status.py`. `find()` says where the program is, None if this machine has none.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
START_SECONDS, CALL_SECONDS = 60, 30
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps"),
    *("--remote-debugging-port=0", "--hide-scrollbars", "--force-color-profile=srgb", "about:blank"),
)


def find() -> str | None:
    """Path of a browser, None if there is none."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


class Tab:
    """One page.

    Attributes:
        errors: what went to the console as an error, uncaught exceptions, and what the browser itself complains of.
        requests: every URL it asked for, data: URLs left out.
    """

    def __init__(self, call, session: str):
        self._call, self._session = call, session
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._loaded = asyncio.Event()

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A DevTools command."""
        return await self._call(method, parameters, self._session)

    def heard(self, method: str, said: dict[str, Any]) -> None:
        """An event of this tab."""
        match method:
            case "Page.loadEventFired":
                self._loaded.set()
            case "Network.requestWillBeSent" if not said["request"]["url"].startswith("data:"):
                self.requests.append(said["request"]["url"])
            case "Runtime.exceptionThrown":
                self.errors.append(json.dumps(said["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if said["type"] in ("error", "warning", "assert"):
                self.errors.append(json.dumps(said["args"]))
            case "Log.entryAdded" if said["entry"]["level"] in ("error", "warning"):
                self.errors.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")

    async def go(self, url: str) -> None:
        """Open an address and wait until it is there."""
        self._loaded.clear()
        said = await self.call("Page.navigate", url=url)
        assert not said.get("errorText"), said
        await asyncio.wait_for(self._loaded.wait(), CALL_SECONDS)

    async def click(self, selector: str) -> str:
        """Click on the first element that fits, with the mouse, and wait for the page it leads to; returns its text."""
        where = await self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center'}); const r = e.getClientRects()[0];"
            " return [r.x + r.width / 2, r.y + r.height / 2, e.textContent]; })()"
        )
        self._loaded.clear()
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=where[0], y=where[1], button="left", clickCount=1)
        await asyncio.wait_for(self._loaded.wait(), CALL_SECONDS)
        return where[2]

    async def js(self, expression: str) -> Any:
        """The value of an expression, a promise's too."""
        said = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    async def screenshot(self, path: Path, whole: bool = True) -> None:
        """A PNG of the page."""
        said = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(said["data"]))


@asynccontextmanager
async def browser(folder: Path) -> AsyncIterator[Any]:
    """Start a browser with its files in `folder`; yields `await open_tab(width, height, dark, script)`."""
    process = await asyncio.create_subprocess_exec(
        find(),
        f"--user-data-dir={folder / 'browser'}",
        *FLAGS,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    reading = None
    try:
        async with asyncio.timeout(START_SECONDS):
            while b"DevTools listening on " not in (line := await process.stderr.readline()):
                assert line, "the browser ended at once"
        draining = asyncio.create_task(_drain(process.stderr))
        url = line.split(b" on ")[1].strip().decode()
        async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as socket:
            waiting: dict[int, asyncio.Future] = {}
            tabs: dict[str, Tab] = {}
            numbers = itertools.count(1)

            async def call(method: str, parameters: dict, session_id: str | None = None) -> dict:
                number = next(numbers)
                waiting[number] = asyncio.get_running_loop().create_future()
                message = {"id": number, "method": method, "params": parameters}
                await socket.send_str(json.dumps(message | ({"sessionId": session_id} if session_id else {})))
                said = await asyncio.wait_for(waiting[number], CALL_SECONDS)
                assert "error" not in said, (method, said)
                return said["result"]

            async def read() -> None:
                async for message in socket:
                    said = json.loads(message.data)
                    if future := waiting.pop(said.get("id"), None):
                        future.done() or future.set_result(said)
                    elif tab := tabs.get(said.get("sessionId")):
                        tab.heard(said["method"], said["params"])

            async def open_tab(width: int = 1280, height: int = 900, dark: bool = False, script: bool = True) -> Tab:
                target = (await call("Target.createTarget", {"url": "about:blank"}))["targetId"]
                attached = await call("Target.attachToTarget", {"targetId": target, "flatten": True})
                tab = tabs[attached["sessionId"]] = Tab(call, attached["sessionId"])
                for domain in ("Page", "Network", "Runtime", "Log"):
                    await tab.call(f"{domain}.enable")
                phone = width < 600
                await tab.call(
                    "Emulation.setDeviceMetricsOverride",
                    width=width,
                    height=height,
                    deviceScaleFactor=2 if phone else 1,
                    mobile=phone,
                )
                scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
                await tab.call("Emulation.setEmulatedMedia", features=scheme)
                await tab.call("Emulation.setScriptExecutionDisabled", value=not script)
                return tab

            reading = asyncio.create_task(read())
            yield open_tab
            with suppress(AssertionError, TimeoutError, ConnectionError):
                await call("Browser.close", {})
        await asyncio.gather(draining)
    finally:
        if reading:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
        await process.wait()


async def _drain(stream: asyncio.StreamReader) -> None:
    while await stream.read(65_536):
        pass
