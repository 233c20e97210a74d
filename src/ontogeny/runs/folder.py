"""The folder of a run: claimed by one process at a time, refused to every other run.

The folder holds `spec.json`: format, kind, spec, digests of the user's files that the spec names, and versions of the
libraries. It is written last when the folder is set up, so that a folder without it is no run. A stage works like this:

    with claim(out, formats.AGENT_RUN, spec, final="genome.json") as folder, RunRecorder(folder, interval) as recorder:
        ...

A stage that prepares files before its first step (tokens of a corpus) passes `prepare`. The same call resumes a run
that was killed at any moment.
"""

import contextlib
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Generator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import filelock

from ontogeny import __version__
from ontogeny.errors import BadInput
from ontogeny.runs.files import json_digest, read_json, write_bytes, write_sealed_json
from ontogeny.runs.formats import FORMATS, SPEC_FILE, check_format, first_object, refuse_old_folder

LOCK_FILE = ".ontogeny.lock"
Prepare = Callable[[Path], Mapping[str, Any]]


class RunDescription(NamedTuple):
    """The content of `spec.json`.

    Attributes:
        kind: A key of `formats.FORMATS`.
        spec: Everything that determines the run; two runs with equal spec and files are the same run.
        files: SHA-256 of the user's files, by their place in the folder.
        versions: Of the libraries with which the run began.
        details: Further values that follow from the spec, such as sizes.
    """

    kind: str
    spec: dict[str, Any]
    files: dict[str, str]
    versions: dict[str, Any]
    details: dict[str, Any]


def library_versions() -> dict[str, Any]:
    """The versions and devices that must be equal for bitwise reproducible results."""
    import jax  # here, because pages are written without it

    return {
        "ontogeny": __version__,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        **{name: metadata.version(name) for name in ("jax", "jaxlib", "numpy", "optax", "evosax")},
        "platform": jax.default_backend(),
        "devices": jax.local_device_count(),  # pyright: ignore[reportUnknownMemberType]
    }


@contextlib.contextmanager
def claim(
    folder: Path,
    kind: str,
    spec: Mapping[str, Any],
    *,
    files: Mapping[str, Path] | None = None,
    versions: Mapping[str, Any] | None = None,
    final: str | None = None,
    prepare: Prepare | None = None,
) -> Generator[Path]:
    """Make a folder the run's own and lock it; an unfinished run of the same spec is resumed.

    Args:
        folder: It is created where it is absent; what else it may hold stays as it is.
        kind: A key of `formats.FORMATS`.
        spec: Plain JSON values that determine the run.
        files: The user's files that belong to the spec, by the place of their copies in the folder.
        versions: By default `library_versions()`.
        final: The file whose existence marks a finished run, which is refused. None: a finished run is claimed too.
        prepare: Writes files of the run into the new folder before its first step; returns the details for
            `spec.json`. It may be called again after a kill.

    Raises:
        BadInput: The folder holds anything else, a finished run, or a run of another spec, format or version, or
            another process works in it. Such a folder stays untouched.
    """
    sources = dict(files or {})
    description = describe(kind, spec, sources, versions)
    _refuse_foreign(folder, description, final)
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"the folder '{folder}' cannot be created: {error.strerror}") from None
    with locked(folder):
        _refuse_foreign(folder, description, final)
        if not (folder / SPEC_FILE).exists():
            try:
                write_spec(folder, description, sources, prepare)
            except BaseException:
                if new_folders:
                    shutil.rmtree(folder, ignore_errors=True)
                for parent in new_folders[1:]:
                    with contextlib.suppress(OSError):  # another process has put something into it
                        parent.rmdir()
                raise
        yield folder


def write_spec(
    folder: Path, description: RunDescription, files: Mapping[str, Path], prepare: Prepare | None = None
) -> None:
    """Write the files of a new run, and `spec.json` last."""
    for name, path in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / name, path.read_bytes())
    details = dict(prepare(folder)) if prepare is not None else description.details
    content = description._replace(details=details)._asdict()
    write_sealed_json(folder / SPEC_FILE, {"format": FORMATS[description.kind]} | content)


def read_spec(folder: Path) -> RunDescription:
    """The description of the run in a folder.

    Raises:
        BadInput: The folder is absent, holds no run, or a run of another format, or is damaged.
    """
    if not folder.is_dir():
        raise BadInput(f"there is no run in '{folder}'")
    refuse_old_folder(folder)
    path = folder / SPEC_FILE
    content = read_json(path)
    kind = content.get("kind")
    if kind not in FORMATS:
        raise BadInput(f"'{path}' is damaged: it names no kind of run")
    check_format(folder, kind, content.get("format"))
    for key in RunDescription._fields[1:]:
        if not isinstance(content.get(key), dict):
            raise BadInput(f"'{path}' is damaged: it lacks the table '{key}'")
    description = RunDescription(**{key: content[key] for key in RunDescription._fields})
    for name, digest in description.files.items():
        if not (folder / name).is_file() or _digest(folder / name) != digest:
            raise BadInput(f"'{folder / name}' is absent or not the file with which the run began")
    digest = json_digest({key: value for key, value in content.items() if key != "sha256"})
    if content.get("sha256", digest) != digest:  # runs of earlier versions name no digest
        raise BadInput(f"'{path}' was changed after the run began: its digest is not the one that it names")
    return description


def has_kind(folder: Path, kind: str) -> bool:
    """Whether `spec.json` of a folder names a kind of run; checks nothing else."""
    return first_object(folder / SPEC_FILE).get("kind") == kind


def describe(
    kind: str, spec: Mapping[str, Any], files: Mapping[str, Path], versions: Mapping[str, Any] | None = None
) -> RunDescription:
    """The description of a run that begins now; the arguments are those of `claim`."""
    plain = {"spec": dict(spec), "versions": dict(library_versions() if versions is None else versions)}
    plain = json.loads(json.dumps(plain))
    return RunDescription(
        kind, plain["spec"], {name: _digest(path) for name, path in files.items()}, plain["versions"], {}
    )


@contextlib.contextmanager
def locked(folder: Path) -> Generator[None]:
    """Hold a folder for this process; the lock of a process that is killed ends with it."""
    lock = filelock.FileLock(folder / LOCK_FILE, mode=0o600, blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise BadInput(f"another process is working in '{folder}'") from None
    try:
        yield
    finally:
        lock.release()


def _refuse_foreign(folder: Path, description: RunDescription, final: str | None) -> None:
    """Raise `BadInput` unless the folder is absent, empty, or holds this very run, unfinished."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise BadInput(f"'{folder}' exists and is not a folder; not overwritten")
    if not (folder / SPEC_FILE).exists():
        refuse_old_folder(folder)
        # A lock without a spec is what a process leaves that is killed while it sets the folder up.
        is_foreign = any(not path.name.startswith(".") for path in folder.iterdir())
        if is_foreign and not (folder / LOCK_FILE).exists():
            raise BadInput(f"the folder '{folder}' exists and holds no run; not overwritten")
        return
    present = read_spec(folder)
    if present.kind != description.kind:
        raise BadInput(f"the folder '{folder}' holds another kind of run ({present.kind}); not overwritten")
    differing = _differing(present.spec, description.spec) or _differing(present.files, description.files)
    if differing:
        raise BadInput(f"the folder '{folder}' holds a run of another spec ({differing}); not overwritten")
    if final is not None and (folder / final).exists():
        raise BadInput(f"the folder '{folder}' holds a finished run; not overwritten")
    for name, version in description.versions.items():
        if present.versions.get(name) != version:
            hint = " (--num-host-devices and --on determine the number of devices)" if name == "devices" else ""
            raise BadInput(
                f"the run in '{folder}' began with {name} {present.versions.get(name)}; "
                f"with {name} {version} its results would not be bitwise reproducible{hint}"
            )


def _differing(present: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """The keys in which two mappings differ, as a clause; empty where they are equal."""
    keys = sorted(key for key in present.keys() | expected.keys() if present.get(key) != expected.get(key))
    return f"{', '.join(keys)} differ{'s' if len(keys) == 1 else ''}" if keys else ""


def _digest(path: Path) -> str:
    """SHA-256 of a file."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise BadInput(f"'{path}' cannot be read: {error.strerror}") from None
