"""A headless Chromium that opens pages and tells what went wrong in them, by the DevTools protocol over a pipe."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]
PHONE, DESKTOP = (390, 844), (1280, 900)
# Labels of a picture that lie over each other by more than a pixel each way, as pairs of their texts.
OVERLAPS = """
[...document.querySelectorAll("svg")].flatMap(svg => {
  const boxes = [...svg.querySelectorAll("text")].filter(text => text.textContent.trim())
    .map(text => [text.textContent, text.getBoundingClientRect()]).filter(([, box]) => box.width > 0);
  const over = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
  return boxes.flatMap(([one, a], i) =>
    boxes.slice(i + 1).filter(([, b]) => over(a, b)).map(([other]) => [one, other]));
})
"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser of its own profile, ended afterwards; the test is skipped where none is installed."""
    program = next((path for name in NAMES if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser here: install one of {', '.join(NAMES)} to check pages in it")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        to_browser, from_browser = os.pipe(), os.pipe()
        # The browser reads commands from descriptor 3 and writes to 4, each message ended by a zero byte.
        redirect = f'exec "$@" 3</dev/fd/{to_browser[0]} 4>/dev/fd/{from_browser[1]}'
        process = subprocess.Popen(
            ["sh", "-c", redirect, "sh", program, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(to_browser[0], from_browser[1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser[0])
        os.close(from_browser[1])
        try:
            yield Browser(from_browser[0], to_browser[1])
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(to_browser[1])
            os.close(from_browser[0])


@dataclass
class Browser:
    """`open` a page; the newest page is the one that `evaluate` and `screenshot` speak to."""

    reads: int
    writes: int
    buffer: bytes = b""
    number: int = 0
    session: str | None = None
    events: list[dict[str, Any]] = field(default_factory=list)

    def open(
        self, page: Path, size: tuple[int, int] = PHONE, dark: bool = False, site: Path | None = None
    ) -> list[str]:
        """Open a page from a file in a window of `size` CSS pixels and return its problems.

        Wrong are errors on the console, requests for anything but the page itself and, if given, files below `site`,
        and a page wider than the window.
        """
        self.session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        width, height = size
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._read(time.monotonic() + 60)
        wide = self.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        wrong = [text for event in self.events if (text := _complaint(event, (site or page).resolve().as_uri()))]
        return wrong + ([f"the page is {wide[0]} pixels wide, the window {width}"] if max(wide) > width else [])

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, as JSON."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, file: Path) -> None:
        """The whole page, as far as it scrolls, as a PNG."""
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        file.write_bytes(base64.b64decode(picture))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the DevTools protocol → its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.writes, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 60
        while True:
            answer = self._read(deadline)
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _read(self, deadline: float) -> dict[str, Any]:
        """The next message; an event is kept in `events` as well."""
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.reads], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self.reads, 1 << 16) if ready else b""
            assert data, "the browser does not answer"
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message


def _complaint(event: dict[str, Any], allowed: str) -> str | None:
    """Describe the problem that an event reports, if any; `allowed` is a page's address, or a folder's."""
    method, details = event["method"], event.get("params", {})
    if method == "Runtime.exceptionThrown":
        return f"exception: {details['exceptionDetails'].get('text')}"
    if method == "Runtime.consoleAPICalled" and details["type"] in ("error", "assert"):
        return f"console: {details['args']}"
    if method == "Log.entryAdded" and details["entry"]["level"] == "error":
        return f"log: {details['entry']['text']}"
    if method == "Network.loadingFailed":
        return f"failed request: {details['errorText']}"
    if method == "Network.requestWillBeSent":
        url = details["request"]["url"]
        if url.split("#")[0] != allowed and not url.startswith((f"{allowed}/", "data:")):
            return f"request: {url}"
    return None
