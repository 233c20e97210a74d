"""Screenshot of the scores on a study's page, for the README, with headless Chromium.

python docs/picture.py studies/default/report.html docs/report.png   # needs playwright and a Chromium
"""

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PANELS = "#scores .panels"
CHROMIUM = "/usr/bin/chromium"


def save_picture(page_file: str, out: str) -> None:
    """Saves the panels of the section with the scores as an image."""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 800}, color_scheme="light")
        page.goto(Path(page_file).resolve().as_uri())
        page.locator(PANELS).screenshot(path=out)
        browser.close()


if __name__ == "__main__":
    save_picture(*sys.argv[1:])
