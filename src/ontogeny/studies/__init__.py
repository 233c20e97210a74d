"""Studies: several developments compared on the same tasks, their records, and one page that shows them."""

import tomllib
from collections.abc import Sequence
from pathlib import Path

from ontogeny import plugins
from ontogeny.errors import BadInput
from ontogeny.parallel.drivers import IN_PROCESS, is_in_process
from ontogeny.runs.formats import STUDY
from ontogeny.seeds import check_seed
from ontogeny.studies.kinds import study_kinds


def run(
    study: str | Path | None = None,
    out: Path | None = None,
    seed: int | None = None,
    size: str = "",
    *,
    part: str | None = None,
    on: str = IN_PROCESS,
) -> Path:
    """Run a study, or resume the unfinished one in the folder, and show its progress.

    Args:
        study: Path of a TOML file, or the name of a registered study such as `mesa`; by default the study that comes
            with the package.
        out: Folder of the study; by default `studies/default` or `studies/NAME`, of a part `studies/default-3-of-20`.
        seed: From 0 to 4294967295; by default the seed in the TOML file, or 0.
        size: Budget of a registered study, such as `small`; by default its first one.
        part: `3/20` for the third of twenty parts of a study that a TOML file describes; by default the whole study.
        on: Where developments run: `in_process`, `processes` or `processes:num_workers=4`, or `ray`.

    Returns:
        The path of the page.

    Raises:
        BadInput: If the study cannot be run as described, or the folder holds anything else.
        StudyIncomplete: If measurements failed after all others were carried out; the page was written.
    """
    kind = study_kinds().get(str(study))
    if kind is None:
        if size:
            names = [name for name, kind in study_kinds().items() if size in kind.sizes]
            example = f": ontogeny study {' or '.join(names)} --size {size}" if names else ""
            raise BadInput(f"--size and --small apply to a registered study only{example}")
        from ontogeny.studies.runner import run_study

        default_name = f"default-{part.replace('/', '-of-')}" if part else "default"
        return run_study(study, out or Path("studies") / default_name, seed, part=part, on=on)
    if part is not None or not is_in_process(on):
        raise BadInput(f"--part and --on apply to a study that a TOML file describes, not to '{study}'")
    if size and size not in kind.sizes:
        raise plugins.unknown_name_error("size", size, list(kind.sizes))
    seed = check_seed(0 if seed is None else seed)
    return kind.run(size or kind.sizes[0], out or Path("studies") / kind.name, seed, None)


def merge_parts(out: str | Path, folders: Sequence[str | Path]) -> Path:
    """Merge the parts of a study into one folder, and print its tables; the arguments are those of `merge_study`."""
    from ontogeny.studies.merge import merge_study

    return merge_study(out, folders)


def default_driver(study: str | Path | None, part: str | None, *, may_use_processes: bool) -> str:
    """The driver of a study whose user names none; reads the file without importing JAX.

    Args:
        study: As of `run`.
        part: As of `run`.
        may_use_processes: False where the user chooses devices, which only this process uses.

    Returns:
        `processes` for a sweep or a part, because records are then the same on any number of processors.
    """
    if not may_use_processes or str(study) in study_kinds():
        return IN_PROCESS
    try:
        has_sweep = study is not None and "sweep" in tomllib.loads(Path(study).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):  # `read_spec` reports the mistake
        has_sweep = False
    return "processes" if has_sweep or part is not None else IN_PROCESS


def write_page(folder: str | Path) -> Path:
    """Write the page of a study again from its records.

    Args:
        folder: Folder of a study of any kind.

    Returns:
        The path of the page.

    Raises:
        BadInput: If the folder holds no study, or a damaged one.
    """
    from ontogeny.runs.folder import read_spec  # not `runs.kinds`, whose kinds import JAX
    from ontogeny.studies import page

    folder = Path(folder)
    writers = {kind.run_kind: kind.write_page for kind in study_kinds().values()} | {STUDY: page.write}
    kind = read_spec(folder).kind
    if kind not in writers:
        raise BadInput(f"'{folder}' holds a run of the kind '{kind}', not a study")
    return writers[kind](folder)
