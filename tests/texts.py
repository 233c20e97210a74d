"""Texts that the tests train on and score: the project's own sentences, so that no test depends on the documentation.

`TRAINING` are three files of English prose (stories and descriptions of everyday procedures). `HELD_OUT` is a text of
another topic that shares no run of 13 words with them.
"""

from pathlib import Path

DATA = Path(__file__).parent / "data"
LIGHTHOUSE, PROCEDURES, MARKET = TRAINING = [DATA / f"{name}.txt" for name in ("lighthouse", "procedures", "market")]
HELD_OUT = DATA / "rivers.txt"


def read(path: Path) -> str:
    """Returns the whole text of a file."""
    return path.read_text(encoding="utf-8")


def read_training() -> str:
    """Returns the training texts, one after the other."""
    return "".join(map(read, TRAINING))
