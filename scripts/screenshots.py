"""Takes pictures of the page: `sweep view` of a sweep that never ran, in Chromium."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from playwright.sync_api import sync_playwright

from scripts import demo_sweep

#: The pictures by their files' names: the page's address, the element that shows it is there, and its height.
PICTURES: Final = {
    "page-sweep.png": ("/sweep/nightly/", ".row", 860),
    "page-compare.png": ("/compare?run=nightly&side=nightly/yesterday&side=nightly/large", ".sentence", 700),
}
WIDTH: Final = 1280


def main() -> None:
    target = Path(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="sweep-screenshots-") as runs:
        demo_sweep.write(Path(runs) / "nightly", scenarios=120, seed=5)
        viewing = subprocess.Popen(
            [sys.executable, "-m", "orchestrator", "view", "--port", "0"],
            env={**os.environ, "SWEEP_RUNS": runs},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert viewing.stdout is not None
            link, _, token = viewing.stdout.readline().strip().partition("/?")
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
                for name, (address, shown, height) in PICTURES.items():
                    page = browser.new_page(viewport={"width": WIDTH, "height": height})
                    page.goto(f"{link}{address}{'&' if '?' in address else '?'}{token}")
                    page.locator(shown).first.wait_for()
                    page.screenshot(path=target / name)
                    print(f"Wrote {target / name}: {(target / name).stat().st_size // 1000} kB.")
                browser.close()
        finally:
            viewing.terminate()
            viewing.wait(10)


if __name__ == "__main__":
    main()
