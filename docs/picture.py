"""Screenshots of charts on a study's page, for the README and the documentation, with headless Chromium.

Needs playwright and a Chromium.

python docs/picture.py studies/default/report.html docs/report.png
python docs/picture.py studies/mesa/report.html docs/_static/planning-by-stream.png "#planning .panels >> nth=0"
"""

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

SCORES = "#scores .panels"
CHROMIUM = "/usr/bin/chromium"


def save_picture(page_file: str, out: str, selector: str = SCORES) -> None:
    """Saves a part of the page, by default the panels with the scores, as an image."""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 800}, color_scheme="light")
        page.goto(Path(page_file).resolve().as_uri())
        page.locator(selector).screenshot(path=out)
        browser.close()


if __name__ == "__main__":
    save_picture(*sys.argv[1:])
