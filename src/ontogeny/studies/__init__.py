"""Studies: several developments compared on the same tasks, their records, and one page that shows them."""

import json
from pathlib import Path

from ontogeny.errors import BadInput
from ontogeny.studies.kinds import RECORDS_FILE, study_kinds


def run(study: str | Path | None = None, out: Path | None = None, seed: int | None = None, size: str = "") -> Path:
    """Run a study, or resume the unfinished one in the folder, and show its progress.

    Args:
        study: Path of a TOML file, or the name of a registered study such as `mesa`; by default the study that comes
            with the package.
        out: Folder of the study; by default `studies/default` or `studies/NAME`.
        seed: From 0 to 4294967295; by default the seed in the TOML file, or 0.
        size: Budget of a registered study, such as `small`; by default the full one.

    Returns:
        The path of the page.

    Raises:
        BadInput: If the study cannot be run as described, or the folder holds anything else.
    """
    kind = study_kinds().get(str(study))
    if kind is None:
        if size:
            names = ", ".join(name for name, kind in study_kinds().items() if size in kind.sizes)
            raise BadInput(f"--{size} applies only to the studies: {names}. For example: ontogeny study mesa --{size}")
        from ontogeny.studies.runner import run_study

        return run_study(study, out or Path("studies/default"), seed)
    from ontogeny.stages.spec import MAX_SEED

    if not 0 <= (seed or 0) <= MAX_SEED:
        raise BadInput(f"--seed must be from 0 to {MAX_SEED}, not {seed}")
    return kind.run(size or kind.sizes[0], out or Path("studies") / kind.name, seed or 0, None)


def write_page(folder: str | Path) -> Path:
    """Write the page of a study again from its records.

    Args:
        folder: Folder of a study of any kind.

    Returns:
        The path of the page.

    Raises:
        BadInput: If the folder holds no study, or a damaged one.
    """
    from ontogeny.studies import page

    folder = Path(folder)
    first_record_kind = _first_record_kind(folder / RECORDS_FILE)
    for kind in study_kinds().values():
        if kind.first_record_kind == first_record_kind:
            return kind.write_page(folder)
    return page.write(folder)


def _first_record_kind(path: Path) -> str | None:
    """`kind` of the first record of a file; None where there is no such record."""
    try:
        with path.open("rb") as file:
            record = json.loads(file.readline())
    except (OSError, ValueError, RecursionError):
        return None
    return record.get("kind") if isinstance(record, dict) else None
