"""A headless Chromium, driven over its DevTools protocol with tornado's websocket."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import subprocess
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from tornado.websocket import WebSocketClientConnection, websocket_connect

Result = TypeVar("Result")
_START_S = 60.0


def find_chromium() -> str:
    """Find the program; a test without it fails and says what to install."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert found, "this test needs Chromium: apt-get install --no-install-recommends chromium"
    return found


class Page:
    """A page in the browser: commands, and the events that came meanwhile."""

    def __init__(self, socket: WebSocketClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol and return its result."""
        number = next(self._numbers)
        await self._socket.write_message(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = await self._read()
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]

    async def wait_for(self, method: str) -> None:
        """Wait for an event."""
        while not any(event["method"] == method for event in self.events):
            await self._read()

    async def _read(self) -> dict[str, Any]:
        text = await asyncio.wait_for(self._socket.read_message(), _START_S)
        assert text is not None, "Chromium has closed the connection"
        message = json.loads(text)
        if "method" in message:
            self.events.append(message)
        return message

    async def run(self, script: str) -> Any:
        """Evaluate JavaScript and return its value; a promise is awaited."""
        done = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    async def open(self, url: str) -> None:
        """Load a page with all its images."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        self.events.clear()
        await self.call("Page.navigate", url=url)
        await self.wait_for("Page.loadEventFired")
        await self.run("Promise.all([...document.images].map(image => image.decode()))")

    async def window(self, width: int, height: int = 800, dark: bool = False) -> None:
        """Give the window a size in CSS pixels and a colour scheme."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def press(self, key: str, code: int) -> None:
        """Press and release a key."""
        for kind in ("rawKeyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)


def with_page(folder: Path, use: Callable[[Page], Awaitable[Result]]) -> Result:
    """Start Chromium with a profile in `folder`, let `use` work with an empty page, and end Chromium."""
    command = [find_chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--remote-debugging-port=0", "--remote-allow-origins=*", f"--user-data-dir={folder}", "about:blank"]
    with open(folder.with_suffix(".log"), "wb") as log:
        browser = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        return asyncio.run(_use(folder, browser, use))
    finally:
        browser.kill()
        browser.wait()


async def _use(folder: Path, browser: subprocess.Popen, use: Callable[[Page], Awaitable[Result]]) -> Result:
    port_file = folder / "DevToolsActivePort"
    for _ in range(int(_START_S / 0.1)):
        if port_file.is_file() and port_file.read_text().count("\n"):
            break
        assert browser.poll() is None, f"Chromium has ended; see {folder.with_suffix('.log')}"
        await asyncio.sleep(0.1)
    port = port_file.read_text().splitlines()[0]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=_START_S) as answer:
        target = next(one for one in json.load(answer) if one["type"] == "page")
    socket = await websocket_connect(target["webSocketDebuggerUrl"], max_message_size=1 << 28)
    try:
        return await use(Page(socket))
    finally:
        socket.close()
