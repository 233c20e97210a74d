"""Screenshot of the opening and the scores of a study's page, for the README, with headless Chromium.

python docs/picture.py studies/default/report.html docs/report.png   # needs playwright and a Chromium
"""

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

SECTIONS = ("scores",)
CHROMIUM = "/usr/bin/chromium"


def picture(page_file: str, out: str) -> None:
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 800}, color_scheme="light")
        page.goto(Path(page_file).resolve().as_uri())
        page.evaluate(
            "sections => document.querySelectorAll('section, nav, footer').forEach("
            "part => { if (!sections.includes(part.id)) part.style.display = 'none' })",
            list(SECTIONS),
        )
        page.screenshot(path=out, full_page=True)
        browser.close()


if __name__ == "__main__":
    picture(*sys.argv[1:])
