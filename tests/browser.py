"""A real Chromium for tests: driven by its own driver, which speaks WebDriver, JSON over HTTP on this machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
MISSING = "no Chromium with its driver here (Debian: apt-get install chromium chromium-driver)"
_QUIET = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
          "--disable-background-networking", "--disable-component-update", "--disable-sync")  # fmt: skip


class Browser:
    """One window; scripts run in the page as `WebDriver` defines, which no policy of the page forbids."""

    def __init__(self, server: str, profile: Path) -> None:
        chrome = {"binary": CHROMIUM, "args": [*_QUIET, f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": chrome, "goog:loggingPrefs": {"browser": "ALL"}}
        self._server = server
        self._session = ""
        made = self.ask("/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{made['sessionId']}"

    def ask(self, path: str, content: dict[str, Any] | None = None, method: str = "POST") -> Any:
        body = None if method != "POST" else json.dumps(content or {}).encode()
        request = urllib.request.Request(f"{self._server}{self._session}{path}", body, method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def open(self, page: Path, width: int = 1400, height: int = 900, address: str = "") -> None:
        """Open a page, and wait until a report has drawn all of its views: `due` is its list of those to come."""
        self.ask("/window/rect", {"width": width, "height": height})
        self.ask("/url", {"url": "about:blank"})  # else another address of the same page would not load it
        self.ask("/url", {"url": page.resolve().as_uri() + address})
        self.run("while (typeof due === 'object' && due.length) await new Promise(later => setTimeout(later, 20));")

    def run(self, script: str, *arguments: Any) -> Any:
        """Return what a function body gives back; it may await."""
        body = (
            f"const done = [...arguments].pop(); (async () => {{{script}}})().then(done, error => done(String(error)))"
        )
        return self.ask("/execute/async", {"script": body, "args": list(arguments)})

    def complaints(self) -> list[str]:
        """Return what the page wrote to the console since the last call, violations of its policy among it."""
        return [entry["message"] for entry in self.ask("/se/log", {"type": "browser"})]

    def command(self, name: str, **parameters: Any) -> Any:
        """Return the answer to a command of Chromium's own protocol, such as `Emulation.setEmulatedMedia`."""
        return self.ask("/goog/cdp/execute", {"cmd": name, "params": parameters})


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Start Chromium with an empty profile in a folder, and end it."""
    log = folder / "chromedriver.log"
    driver = subprocess.Popen([str(DRIVER), "--port=0", f"--log-path={log}"], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    try:
        line = next(line for line in driver.stdout if "on port" in line and "successfully" in line)
        port = line.strip().rstrip(".").rpartition(" ")[2]
        opened = Browser(f"http://localhost:{port}", folder / "profile")
        try:
            yield opened
        finally:
            opened.ask("", method="DELETE")
    finally:
        driver.terminate()
        driver.wait()
        if driver.stdout is not None:
            driver.stdout.close()
