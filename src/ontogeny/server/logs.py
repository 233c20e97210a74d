"""The log of a server: one line per message and no API key in it, whatever text of a client a message contains."""

import logging
import threading
from types import TracebackType
from typing import Any

from ontogeny.printable import hide_keys, to_printable

RECORD_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
CONTINUATION = "  | "  # begins the lines of a traceback, which no message can imitate
MAX_LENGTH = 2000  # characters of a line
log = logging.getLogger(__name__)


class LogFormatter(logging.Formatter):
    """Formats a message as one line, and the lines of a traceback with a mark in front."""

    def __init__(self) -> None:
        super().__init__(RECORD_FORMAT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (the name that `logging` calls)
        """Returns the first line, which holds the message."""
        record.message = to_printable(hide_keys(record.message), MAX_LENGTH)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Returns the lines of a traceback."""
        return _mark_continuations(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        """Returns the lines of a stack."""
        return _mark_continuations(super().formatStack(stack_info))


def configure_logs(level: str) -> None:
    """Writes messages from a level on to standard error, those of exceptions that end a thread included."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    threading.excepthook = _log_end_of_thread


def _mark_continuations(text: str) -> str:
    """Makes every line of a text printable and recognizable as a part of the message above."""
    return "\n".join(CONTINUATION + to_printable(hide_keys(part), MAX_LENGTH) for part in text.split("\n"))


def _log_end_of_thread(end: threading.ExceptHookArgs) -> None:
    """Logs the exception that ended a thread."""
    if end.exc_value is not None and not issubclass(end.exc_type, SystemExit):
        error: tuple[type[BaseException], BaseException, TracebackType | None]
        error = (end.exc_type, end.exc_value, end.exc_traceback)
        log.error("the thread '%s' ended with an exception", getattr(end.thread, "name", "?"), exc_info=error)
