# SPDX-License-Identifier: GPL-2.0-or-later
"""A headless Chromium driven over its debugging pipe (Chrome DevTools Protocol, NUL-ended JSON on
file descriptors 3 and 4): pages at any width, in light and dark, looked at and audited."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

DEADLINE_S = 120.0

AUDIT = (Path(__file__).with_name("audit.js")).read_text(encoding="utf-8")


_EXEC = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(one), fcntl.F_DUPFD, 10) for one in sys.argv[1:3]]
for end, number in zip(ends, (3, 4)):
    os.dup2(end, number)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One browser with one tab. Use as a context manager."""

    def __init__(self, profile: Path) -> None:
        found = shutil.which("chromium") or shutil.which("google-chrome")
        if found is None:
            pytest.skip("no chromium")
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        options = "--headless --no-sandbox --disable-gpu --hide-scrollbars --remote-debugging-pipe"
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", _EXEC, str(to_read), str(to_write), found),
                *options.split(),
                *(f"--user-data-dir={profile}", "about:blank"),
            ],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._numbers = itertools.count(1)
        self._buffer = b""
        try:
            self._attach()
        except BaseException:
            self.__exit__()
            raise

    def _attach(self) -> None:
        targets = self._ask("Target.getTargets", {})["targetInfos"]
        page = next(one for one in targets if one["type"] == "page")
        attached = self._ask(
            "Target.attachToTarget", {"targetId": page["targetId"], "flatten": True}
        )
        self._session = attached["sessionId"]
        self._ask("Page.enable", {})

    _session: str | None = None

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def open(self, path: Path, width: int, is_dark: bool) -> None:
        """Loads a page and waits for it."""
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self._ask("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self._ask("Emulation.setEmulatedMedia", {"features": [scheme]})
        answer = self._ask("Page.navigate", {"url": path.as_uri()})
        assert "errorText" not in answer, f"{path}: {answer['errorText']}"
        self._wait("Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        """What JavaScript gives in the page; the page's own policy does not bind it."""
        asked = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        answer = self._ask("Runtime.evaluate", asked)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def audit(self) -> list[str]:
        """What is wrong with the page that is open."""
        found = self.evaluate(AUDIT)
        assert isinstance(found, list)
        return [str(line) for line in found]

    def screenshot(self, path: Path) -> bytes:
        """The whole page as PNG, also written to `path`."""
        answer = self._ask("Page.captureScreenshot", {"captureBeyondViewport": True})
        data = base64.b64decode(answer["data"])
        path.write_bytes(data)
        return data

    def _ask(self, method: str, parameters: Mapping[str, object]) -> dict[str, Any]:
        number = next(self._numbers)
        message: dict[str, object] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                result = answer["result"]
                assert isinstance(result, dict)
                return result

    def _wait(self, method: str) -> None:
        while self._next().get("method") != method:
            pass

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + DEADLINE_S
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            data = os.read(self._from, 1 << 16)
            assert data, "the browser ended"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        assert isinstance(message, dict)
        return message
