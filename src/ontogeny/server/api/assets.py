"""Style sheet and scripts of the web page: files of the package, which need no key."""

from importlib import resources
from typing import NamedTuple

from fastapi import APIRouter
from fastapi.responses import Response

from ontogeny.server.api import errors

router = APIRouter()
FOLDER = "/assets/"
MEDIA_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}


class Asset(NamedTuple):
    """A file that a page loads."""

    content: bytes
    media_type: str


def _read_assets() -> dict[str, Asset]:
    """The files by name."""
    files = (resources.files("ontogeny.server") / "assets").iterdir()
    return {
        file.name: Asset(file.read_bytes(), MEDIA_TYPES[file.name.rpartition(".")[2]])
        for file in files
        if file.name.rpartition(".")[2] in MEDIA_TYPES
    }


ASSETS = _read_assets()
PATHS = frozenset(FOLDER + name for name in ASSETS)


@router.get(FOLDER + "{name}", include_in_schema=False)
async def show_asset(name: str) -> Response:
    """Returns a file that a page loads."""
    if name not in ASSETS:
        raise errors.missing_resource(f"there is no file '{name}'")
    return Response(ASSETS[name].content, media_type=ASSETS[name].media_type, headers={"Cache-Control": "no-cache"})
