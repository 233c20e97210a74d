"""What every route needs: who asks, which deployment is meant, how much of it is allowed."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, NamedTuple

from fastapi import Request

from ontogeny.errors import BadInput
from ontogeny.server import keys
from ontogeny.server.api import errors as faults
from ontogeny.server.api.errors import ApiError
from ontogeny.server.deployments import AgentDeployment, Deployment, Deployments, LanguageDeployment
from ontogeny.server.keys import LOCAL, Key
from ontogeny.server.rate_limits import RateLimits
from ontogeny.server.sessions.store import NoSession
from ontogeny.server.store import Store
from ontogeny.server.usage import UsageMeter


class ServerContext(NamedTuple):
    deployments: Deployments
    store: Store
    limits: RateLimits
    meter: UsageMeter
    time_limit: float  # seconds that a request may take


def service(request: Request) -> ServerContext:
    return request.app.state.service


def caller(request: Request) -> Key:
    """Whose request this is; 401 for no key, a wrong one and a revoked one. Without any keys all come from here."""
    store = service(request).store
    kind, _, text = request.headers.get("authorization", "").partition(" ")
    text = text.strip() if kind.lower() == "bearer" else ""
    if not keys.any_there(store):
        return LOCAL
    if not text:
        raise faults.unauthorized("no key was given: send it as 'Authorization: Bearer KEY'")
    found = keys.authenticate(store, text)
    if found is None:
        raise faults.unauthorized("this key is wrong or was revoked")
    return found


def admin(request: Request) -> Key:
    key = caller(request)
    if not key.admin:
        raise faults.forbidden("this")
    return key


def deployment(request: Request, name: str | None) -> Deployment:
    """The deployment of that name, or the only one, if it can answer."""
    found = service(request).deployments
    if name is None and len(found.by_name) == 1:
        name = next(iter(found.by_name))
    known = ", ".join(found.by_name)
    if name is None:
        raise faults.bad(f"name a model; there are: {known}", "model")
    if name not in found.by_name:
        raise faults.absent(f"there is no model '{name}'; there are: {known}", "model_not_found", "model")
    ready(request)
    made = found.by_name[name]
    if made.failure is not None:
        raise faults.unavailable(made.failure)
    return made


def ready(request: Request) -> None:
    found = service(request).deployments
    if found.failed is not None:
        raise faults.unavailable("the server has failed; its log says how")
    if not found.ready.is_set():
        raise faults.unavailable("the models are still being made ready", "not_ready")


def language(request: Request, name: str | None) -> LanguageDeployment:
    found = deployment(request, name)
    if not isinstance(found, LanguageDeployment):
        raise faults.bad(f"'{found.name}' is an agent: it has sessions, not completions", "model")
    return found


def agent(request: Request, name: str) -> AgentDeployment:
    found = deployment(request, name)
    if not isinstance(found, AgentDeployment):
        raise faults.bad(f"'{found.name}' is a language model: it has completions, not sessions", "name")
    return found


def take(request: Request, key: Key, tokens: int = 0) -> None:
    """Counts a request against the limits of its key; 429 beyond them."""
    wait = service(request).limits.take(key, tokens)
    if wait > 0:
        raise faults.too_many("this key has used what it is allowed per minute", wait)


async def done(request: Request, work: Future[Any]) -> Any:
    """What comes of work on a session, which goes on on a thread of its own; what goes wrong becomes an answer."""
    try:
        return await asyncio.wait_for(asyncio.wrap_future(work), service(request).time_limit)
    except NoSession as error:
        raise faults.absent(f"there is no session '{error}'") from None
    except BadInput as error:
        raise faults.bad(str(error)) from None
    except TimeoutError:
        raise faults.unavailable("there was no time to answer; try again", "time_limit") from None


@contextlib.contextmanager
def bringing_state() -> Iterator[None]:
    """A state that is brought back and does not belong here is refused by a code of its own."""
    try:
        yield
    except ApiError as fault:
        if fault.status_code == 400:
            fault.code = "state_refused"
        raise


class LastPrompts:
    """What each key's last prompt was, so that of a story that grows only what is new is learned from."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], str] = {}
        self._lock = threading.Lock()

    def new_part(self, key: str, deployment: str, text: str) -> tuple[str, str]:
        """What is new in a prompt, which is the last one from now on; and the one before, for `put_back`."""
        with self._lock:
            before = self._last.get((key, deployment), "")
            self._last[key, deployment] = text
        same = 0
        for one, other in zip(before, text, strict=False):
            if one != other:
                break
            same += 1
        return text[same:], before

    def forget(self, key: str, deployment: str) -> None:
        """What was erased is new if it comes again."""
        with self._lock:
            self._last.pop((key, deployment), None)

    def put_back(self, key: str, deployment: str, text: str, before: str) -> None:
        """What was new could not be taken: it is new again when it comes again."""
        with self._lock:
            if self._last.get((key, deployment)) == text:
                self._last[key, deployment] = before
