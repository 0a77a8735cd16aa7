"""A real browser: Chromium without a screen, driven through WebDriver, and the consoles that it visits."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from builders.consoles import PASSWORD
from builders.processes import free_ports
from PIL import Image

from wardround.web.accounts.users import User

PACKAGES = ("chromium", "chromium-driver")
LIMIT_S = 60
WIDTH, HEIGHT = 1200, 900
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic",
    "--disable-background-networking", "--no-first-run", "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}",
    "--force-device-scale-factor=1", "--lang=en",
)  # fmt: skip


def missing() -> str:
    """Install what is needed, and return why it cannot be used, or ""."""
    if shutil.which("chromium") and shutil.which("chromedriver"):
        return ""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return "needs Debian's packages chromium and chromium-driver"
    command = ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    return f"apt-get cannot install {' and '.join(PACKAGES)}: {done.stderr.strip()[-200:]}" if done.returncode else ""


@contextmanager
def console(program: str, folder: Path, port: int | None = None) -> Iterator[str]:
    """Run the console of a site ("client") or a server ("server") as users do; yield its address."""
    option, (free,) = {"client": "--site", "server": "--server"}[program], free_ports(1)
    words = [
        "-m",
        f"wardround_{program}.cli.main",
        "console",
        option,
        str(folder),
        "--port",
        str(port or free),
        "--json",
    ]
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["console"].rstrip("/")
    finally:
        process.terminate()
        assert process.wait(LIMIT_S) == 0


class Tab:
    """A browser with one tab and no cookies."""

    def __init__(self, address: str, language: str = "en", javascript: bool = True) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for option in OPTIONS:
            options.add_argument(option)
        settings: dict[str, object] = {"intl.accept_languages": language}
        if not javascript:
            settings["profile.managed_default_content_settings.javascript"] = 2
        options.add_experimental_option("prefs", settings)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.address = address
        self.driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
        self.driver.set_page_load_timeout(LIMIT_S)

    def open(self, path: str) -> None:
        self.driver.get(self.address + path)

    @property
    def path(self) -> str:
        return self.driver.current_url.removeprefix(self.address)

    def text(self, css: str = "body") -> str:
        """Return the text of an element, which a page that updates itself may replace meanwhile."""
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.common.by import By

        for _ in range(20):
            try:
                return " ".join(self.driver.find_element(By.CSS_SELECTOR, css).text.split())
            except StaleElementReferenceException:
                time.sleep(0.05)
        raise AssertionError(f"{css} was replaced again and again")

    def click(self, words: str) -> None:
        """Click on the link or button with these words, and wait for the next page."""
        from selenium.common.exceptions import WebDriverException
        from selenium.webdriver.common.by import By

        def arrived() -> bool:
            try:
                return bool(self.script("return !window.clicked && document.readyState === 'complete'"))
            except WebDriverException:  # between two pages
                return False

        path = f"//a[normalize-space()={words!r}] | //button[normalize-space()={words!r}]"
        self.script("window.clicked = true")
        self.driver.find_element(By.XPATH, path).click()
        self.wait_for(arrived, LIMIT_S)

    def fill(self, name: str, text: str) -> None:
        from selenium.webdriver.common.by import By

        field = self.driver.find_element(By.CSS_SELECTOR, f"[name={name}]:not([type=hidden])")
        if field.get_attribute("type") == "checkbox":
            field.click()
        else:
            field.clear()
            field.send_keys(text)

    def sign_in(self, user: User) -> None:
        self.open("/login")
        self.fill("login", user.login)
        self.fill("password", PASSWORD)
        self.click(self.text("button.main"))

    def wait_for(self, what: Callable[[], bool], limit_s: float = 20.0) -> None:
        ends = time.monotonic() + limit_s
        while not what():
            assert time.monotonic() < ends, self.text()
            time.sleep(0.2)

    def complaints(self) -> list[str]:
        """Return what the browser reported since the last call: refused scripts or styles, failed requests."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def script(self, text: str) -> object:
        return self.driver.execute_script(text)

    def picture(self, path: Path) -> None:
        """Write a picture of the whole page."""
        height = "document.documentElement.scrollHeight + window.outerHeight - window.innerHeight"
        self.driver.set_window_size(WIDTH, min(int(self.driver.execute_script(f"return {height}")), 4000))
        self.driver.save_screenshot(str(path))
        with Image.open(path) as shown:
            shown.convert("RGB").quantize(64).save(path, optimize=True)  # a third of the size, and looks the same
        self.driver.set_window_size(WIDTH, HEIGHT)

    def close(self) -> None:
        self.driver.quit()


@contextmanager
def tab(address: str, **options: object) -> Iterator[Tab]:
    """A browser for as long as the block lasts."""
    opened = Tab(address, **options)  # type: ignore[arg-type]
    try:
        yield opened
    finally:
        opened.close()
