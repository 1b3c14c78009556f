"""Debian's Chromium, headless, driven by selenium: one browser for all tests of a file, a fresh page for each."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
Found = TypeVar("Found")
# Runs in every page before its own scripts: what must not happen is written down.
WITNESS = """
window.witness = { alerts: [], violations: [], errors: [], addresses: 0 };
for (const name of ["alert", "confirm", "prompt"]) window[name] = (text) => window.witness.alerts.push(String(text));
const violated = (e) => window.witness.violations.push(`${e.violatedDirective} ${e.blockedURI}`);
addEventListener("securitypolicyviolation", violated);
addEventListener("error", (e) => window.witness.errors.push(e.message ?? String(e.target)));
addEventListener("unhandledrejection", (e) => window.witness.errors.push(String(e.reason)));
const create = URL.createObjectURL, revoke = URL.revokeObjectURL;
URL.createObjectURL = (blob) => (window.witness.addresses++, create.call(URL, blob));
URL.revokeObjectURL = (address) => (window.witness.addresses--, revoke.call(URL, address));
"""
# Quiet: nothing but the page may ask the network for anything.
ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--disable-default-apps",
    "--disable-dev-shm-usage", "--mute-audio", "--hide-scrollbars", "--force-device-scale-factor=1",
    "--js-flags=--expose-gc", "--disable-features=Translate,OptimizationHints,MediaRouter,DialMediaRouteProvider",
)  # fmt: skip


def missing() -> str:
    """Why browser tests cannot run here; empty if they can."""
    if importlib.util.find_spec("selenium") is None:
        return "needs selenium (pip install selenium)"
    for program, package in ((CHROMIUM, "chromium"), (DRIVER, "chromium-driver")):
        if shutil.which(program) is None:
            return f"needs {Path(program).name} (Debian: {package})"
    return ""


class Browser:
    """What tests do with a page, waiting for what they expect."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self.cdp("Page.addScriptToEvaluateOnNewDocument", {"source": WITNESS})

    def open(self, address: str, width: int = 1440, height: int = 900, dark: bool = False, phone: bool = False) -> None:
        """Load a page in a window of a given size, as a fresh visitor."""
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self.cdp("Emulation.setDeviceMetricsOverride", size)
        self.media({"prefers-color-scheme": "dark" if dark else "light"})
        self.driver.get("about:blank")
        self.cdp("Storage.clearDataForOrigin", {"origin": address.rstrip("/"), "storageTypes": "all"})
        self.cdp("Network.clearBrowserCookies", {})
        self.logs()
        while self.addresses():
            pass  # what the page before has asked for
        self.driver.get(address)

    def media(self, features: dict[str, str]) -> None:
        """Set media features, such as prefers-color-scheme."""
        listed = [{"name": name, "value": value} for name, value in features.items()]
        self.cdp("Emulation.setEmulatedMedia", {"features": listed})

    def cdp(self, command: str, arguments: dict[str, Any]) -> Any:
        return self.driver.execute_cdp_cmd(command, arguments)

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def witness(self) -> dict[str, Any]:
        """What has happened in the page that must not: alerts, violations of its policy, errors; and the number of
        object URLs that are not revoked."""
        return dict(self.js("return window.witness"))

    def clean(self) -> bool:
        """Assert that nothing has gone wrong in the page."""
        seen = self.witness()
        assert (seen["alerts"], seen["violations"], seen["errors"], self.logs()) == ([], [], [], [])
        return True

    def find(self, selector: str) -> Any:
        from selenium.webdriver.common.by import By

        return self.wait(lambda: next(iter(self.driver.find_elements(By.CSS_SELECTOR, selector)), None), selector)

    def text(self, selector: str) -> str:
        return str(self.js("return document.querySelector(arguments[0])?.textContent ?? ''", selector))

    def press(self, *keys: str) -> None:
        """Press keys wherever the focus is."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def wait(self, condition: Callable[[], Found | None], what: str, timeout_s: float = 30.0) -> Found:
        """Wait until a condition gives something true, and return that."""
        until = time.monotonic() + timeout_s
        while True:
            found = condition()
            if found:
                return found
            if time.monotonic() > until:
                raise AssertionError(f"not within {timeout_s:g} s: {what}; log: {self.logs()}")
            time.sleep(0.03)

    def wait_text(self, selector: str, text: str) -> None:
        self.wait(lambda: text in self.text(selector), f"{text!r} in {selector}, which has {self.text(selector)!r}")

    def logs(self) -> list[str]:
        """What stands in the console since the last call: errors of the page, of its policy, of the network."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def addresses(self) -> list[str]:
        """What the page has asked the network for since it was opened, or since the last call."""
        found = []
        for entry in self.driver.get_log("performance"):
            if '"Network.requestWillBeSent"' in entry["message"]:
                found.append(json.loads(entry["message"])["message"]["params"]["request"]["url"])
        return found

    def heap_bytes(self) -> int:
        """Bytes of the page's JavaScript objects, after collecting garbage."""
        for _ in range(3):
            self.cdp("HeapProfiler.collectGarbage", {})
        return int(self.cdp("Runtime.getHeapUsage", {})["usedSize"])

    def screenshot(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(path))


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A browser with an empty profile, which is thrown away."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        try:
            yield Browser(driver)
        finally:
            driver.quit()
