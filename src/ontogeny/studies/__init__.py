"""Studies: several developments compared on the same tasks, their records, and one page that shows them."""

from pathlib import Path

from ontogeny import plugins
from ontogeny.errors import BadInput
from ontogeny.runs.formats import STUDY
from ontogeny.seeds import check_seed
from ontogeny.studies.kinds import study_kinds


def run(study: str | Path | None = None, out: Path | None = None, seed: int | None = None, size: str = "") -> Path:
    """Run a study, or resume the unfinished one in the folder, and show its progress.

    Args:
        study: Path of a TOML file, or the name of a registered study such as `mesa`; by default the study that comes
            with the package.
        out: Folder of the study; by default `studies/default` or `studies/NAME`.
        seed: From 0 to 4294967295; by default the seed in the TOML file, or 0.
        size: Budget of a registered study, such as `small`; by default its first one.

    Returns:
        The path of the page.

    Raises:
        BadInput: If the study cannot be run as described, or the folder holds anything else.
    """
    kind = study_kinds().get(str(study))
    if kind is None:
        if size:
            names = [name for name, kind in study_kinds().items() if size in kind.sizes]
            example = f": ontogeny study {' or '.join(names)} --size {size}" if names else ""
            raise BadInput(f"--size and --small apply to a registered study only{example}")
        from ontogeny.studies.runner import run_study

        return run_study(study, out or Path("studies/default"), seed)
    if size and size not in kind.sizes:
        raise plugins.unknown_name_error("size", size, list(kind.sizes))
    seed = check_seed(0 if seed is None else seed)
    return kind.run(size or kind.sizes[0], out or Path("studies") / kind.name, seed, None)


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
