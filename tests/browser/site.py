"""A real browser without a window, as tests use it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By

from sojourn.settings import variable
from tests.conftest import Found, eventually

#: How long a page may take to show something; tests go on as soon as it does.
PATIENCE_S = 60

FLAGS = (
    *(
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-dev-shm-usage",
    ),
    *(
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
    ),
    # Back and forward must load a page instead of reviving one that was kept.
    "--disable-features=BackForwardCache",
)


def require_browser() -> None:
    """Skip, with the reason, where there is no Chromium; fail where there must be one."""
    missing = [program for program in ("chromium", "chromedriver") if not shutil.which(program)]
    if missing and variable("CI"):
        pytest.fail(f"{' and '.join(missing)} are not installed, and CI must have them")
    if missing:
        pytest.skip(
            f"{' and '.join(missing)} are not installed: apt-get install chromium chromium-driver"
        )


class Browser:
    """One window of Chromium at Flower, logged in with ``login``."""

    def __init__(
        self, base: str, profile: Path, *, login: str = "", wide: int = 1400, dark: bool = False
    ) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={wide},900"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        service = webdriver.ChromeService(
            executable_path=str(shutil.which("chromedriver")), log_output=os.devnull
        )
        self.driver = webdriver.Chrome(options=options, service=service)
        self.driver.set_page_load_timeout(PATIENCE_S)
        self.base = base
        if login:
            # As a person does who types it once; the browser keeps it.
            self.driver.get(_with(base, login))
        self.resize(wide)
        self.look(dark=dark)

    def close(self) -> None:
        """End the browser."""
        self.driver.quit()

    def resize(self, wide: int, high: int = 900) -> None:
        """Set the size of the page, which may be narrower than a window of the desktop."""
        size = {"width": wide, "height": high, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def look(self, *, dark: bool) -> None:
        """Set the colour scheme that the system prefers."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def open(self, path: str) -> None:
        """Go to a page of Flower's."""
        self.driver.get(self.base + path)

    def run(self, script: str, *arguments: object) -> Any:
        """Run a function's body in the page, and return what it returns."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str, *arguments: object, within_s: float = PATIENCE_S) -> Any:
        """Return the result of a script as soon as it is true."""
        return eventually(lambda: self.run(script, *arguments), within_s=within_s)

    def until(self, condition: Callable[[], Found], *, within_s: float = PATIENCE_S) -> Found:
        """Wait for a condition."""
        return eventually(condition, within_s=within_s)

    def text(self, selector: str = "body") -> str:
        """Return the text of the first element of a selector, empty if there is none."""
        found = "const found = document.querySelector(arguments[0]);"
        return str(
            self.run(f"{found} return found?.innerText ?? found?.textContent ?? ''", selector)
        )

    def see(self, fragment: str, selector: str = "body", *, within_s: float = PATIENCE_S) -> None:
        """Wait until an element shows this text."""
        try:
            eventually(lambda: fragment in self.text(selector), within_s=within_s)
        except AssertionError:
            page = self.driver.current_url
            pytest.fail(
                f"{page} shows {self.text(selector)!r} at {selector}, not {fragment!r}; "
                f"{self.text('#answer')}"
            )

    def click(self, selector: str) -> None:
        """Click as a person does, who looks again where a page has just been renewed."""
        self.until(lambda: self._clicks(selector))

    def _clicks(self, selector: str) -> bool:
        found = self.driver.find_elements(By.CSS_SELECTOR, selector)
        if not found:
            return False
        try:
            # Flower's pages scroll smoothly, and a click would come before they are there.
            script = "arguments[0].scrollIntoView({ block: 'center', behavior: 'instant' })"
            self.run(script, found[0])
            found[0].click()
        except StaleElementReferenceException:
            return False
        return True

    def type(self, selector: str, text: str) -> None:
        """Type into a field."""
        self.driver.find_element(By.CSS_SELECTOR, selector).send_keys(text)

    def shoot(self, file: Path, *, high: int | None = None) -> None:
        """Take a picture of the page from its top, ``high`` pixels, or all of it."""
        tall = high or int(self.run("return Math.min(2400, document.documentElement.scrollHeight)"))
        wide = int(self.run("return window.innerWidth"))
        self.resize(wide, tall)
        self.driver.save_screenshot(str(file))
        self.resize(wide)

    def count_work(self) -> None:
        """Count from now on the processor time of the page's thread."""
        self.driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})

    def work_ms(self) -> float:
        """Return the processor time since the page was opened."""
        metrics = self.driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
        return 1000 * float(
            next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")
        )

    def complaints(self) -> list[str]:
        """Return the errors on the browser's console since the last call."""
        lines = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [str(line["message"]) for line in lines if line["level"] == "SEVERE"]


def _with(base: str, login: str) -> str:
    parts = urlsplit(base)
    return urlunsplit(parts._replace(netloc=f"{login}@{parts.netloc}", path="/migrations"))
