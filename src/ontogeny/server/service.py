"""What every route needs: who asks, which deployment is meant, how much of it is allowed."""

import threading
from typing import NamedTuple

from fastapi import Request

from ontogeny.server import faults, keys
from ontogeny.server.deployments import Acting, Deployment, Deployments, Text
from ontogeny.server.keys import LOCAL, Key
from ontogeny.server.limits import Limits
from ontogeny.server.meter import Meter
from ontogeny.server.store import Store


class Service(NamedTuple):
    deployments: Deployments
    store: Store
    limits: Limits
    meter: Meter
    time_limit: float  # seconds that a request may take


def service(request: Request) -> Service:
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
    if name not in found.by_name:
        known = ", ".join(found.by_name)
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


def language(request: Request, name: str | None) -> Text:
    found = deployment(request, name)
    if not isinstance(found, Text):
        raise faults.bad(f"'{found.name}' is an agent: it has sessions, not completions", "model")
    return found


def agent(request: Request, name: str) -> Acting:
    found = deployment(request, name)
    if not isinstance(found, Acting):
        raise faults.bad(f"'{found.name}' is a language model: it has completions, not sessions", "name")
    return found


def take(request: Request, key: Key, tokens: int = 0) -> None:
    """Counts a request against the limits of its key; 429 beyond them."""
    wait = service(request).limits.take(key, tokens)
    if wait > 0:
        raise faults.too_many("this key has used what it is allowed per minute", wait)


class Recent:
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

    def put_back(self, key: str, deployment: str, text: str, before: str) -> None:
        """What was new could not be taken: it is new again when it comes again."""
        with self._lock:
            if self._last.get((key, deployment)) == text:
                self._last[key, deployment] = before
