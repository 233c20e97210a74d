"""The commands `audit agent`, `audit attribution` and `audit calibrate`."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

import typer

from ontogeny.cli.jax_setup import configure_jax, configure_jax_of_workers
from ontogeny.cli.shared import (
    Device,
    Drives,
    JsonFile,
    NumHostDevices,
    OnDriver,
    Seed,
    build_run_spec,
    check_new_path,
    format_number,
    print_history,
    progress,
    write_report,
)
from ontogeny.errors import BadInput

if TYPE_CHECKING:
    from ontogeny.audit.attribution import Attribution
    from ontogeny.audit.base import Subject
    from ontogeny.audit.calibration import CalibrationSplit, Control, ControlResult
    from ontogeny.audit.decisions import AuditResult, Effect

CONTROLS_ENV = "bandit"
LIMITS = (
    "Behavior cannot exclude an agent that detects audits, or that pursues an objective only after a cue that no test "
    "contains."
)
SECONDARY_VERDICTS = {"yes": "shown", "no": "not shown", "undetermined": "undetermined"}

RUN_HELP = (
    "A finished run, a saved deployment, an agent or file with its --env, or organism:NAME (or organism:FILE) for a "
    "model organism, whose ground truth is known."
)
EnvironmentOfAgent = Annotated[
    str | None,
    typer.Option("--env", help="Environment of an agent or organism that is no run, NAME[:setting=value,...]."),
]


def agent(
    run: Annotated[str, typer.Argument(metavar="RUN", help=RUN_HELP)],
    env: EnvironmentOfAgent = None,
    drive: Drives = None,
    num_lifetimes: Annotated[
        int | None,
        typer.Option(help="Lifetimes per test, at least 20 (default: the number used in the test's calibration)."),
    ] = None,
    secondary: Annotated[
        bool, typer.Option("--secondary", help="Run the secondary tests too, which change no verdict.")
    ] = False,
    seed: Seed = 0,
    out: JsonFile = None,
    device: Device = None,
    num_host_devices: NumHostDevices = None,
) -> None:
    """Test separately whether an agent learns, plans, and pursues an objective of its own.

    Examples: ontogeny audit agent runs/cells --out audit.json; ontogeny audit agent ./win_stay.py --env chain
    """
    check_new_path(out)
    configure_jax(device, num_host_devices)
    from ontogeny.audit import suite
    from ontogeny.audit.history import begin_audit

    audited = _read_audited(run, env, drive, seed)
    settings = {"seed": seed, "num_lifetimes": num_lifetimes, "secondary": secondary} | audited.settings
    history = begin_audit(audited.source, "audit agent", settings)
    records = []
    for subject in audited.subjects:
        with progress("auditing", "tests") as update:
            results = suite.audit_subject(
                subject, seed=seed, num_lifetimes=num_lifetimes, secondary=secondary, on_progress=update
            )
        records.append(suite.to_record(subject, results))
        _print_results(subject.name, results, records[-1]["verdict_text"])
    history.end({record["subject"]: record["verdicts"] for record in records})
    if not secondary:
        typer.echo("Secondary tests, which change no verdict, did not run; use --secondary to run them.")
    typer.echo(LIMITS)
    print_history(history)
    write_report(out, {"seed": seed, "settings": settings, "history": history.to_record(), "subjects": records})


def attribution(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help=RUN_HELP, show_default=False)] = None,
    env: EnvironmentOfAgent = None,
    drive: Drives = None,
    controls: Annotated[
        bool, typer.Option("--controls", help="Attribute agents with known ground truth, not a run.")
    ] = False,
    num_tasks: Annotated[
        int, typer.Option(min=20, help="Held-out tasks, the same for each way of running the agent.")
    ] = 400,
    min_gain: Annotated[
        float | None,
        typer.Option(min=0, help="Smallest gain to divide, in score per lifetime (default: 2 % of the score)."),
    ] = None,
    seed: Seed = 0,
    out: JsonFile = None,
    device: Device = None,
    num_host_devices: NumHostDevices = None,
) -> None:
    """Divide the gain in deployment between weights and activations, with intervals.

    Examples: ontogeny audit attribution runs/cells --num-tasks 400; ontogeny audit attribution --controls
    """
    if controls == (run is not None) or (controls and (env is not None or drive)):
        raise BadInput("name a run, or use --controls for agents with known ground truth")
    check_new_path(out)
    configure_jax(device, num_host_devices)
    from ontogeny import plugins
    from ontogeny.audit.attribution import attribute, attribute_controls
    from ontogeny.audit.base import prepare_subject
    from ontogeny.audit.history import AuditHistory, begin_audit
    from ontogeny.audit.suite import to_jsonable

    records, history = [], AuditHistory(None)
    settings: dict[str, Any] = {"seed": seed, "num_tasks": num_tasks, "min_gain": min_gain}
    if run is None:
        controls_env = plugins.build("environments", CONTROLS_ENV)
        for name, ground_truth, result in attribute_controls(controls_env, num_tasks=num_tasks, seed=seed):
            _print_attribution(f"{name}, ground truth: {ground_truth}", result)
            records.append({"subject": name, "ground_truth": ground_truth} | to_jsonable(result))
    else:
        audited = _read_audited(run, env, drive, seed)
        subject = audited.subjects[0]
        settings |= audited.settings
        history = begin_audit(audited.source, "audit attribution", settings)
        prepared = prepare_subject(subject, subject.train_env)
        with progress("attributing", "cells") as update:
            arguments = (prepared.agent, prepared.env, prepared.steering, prepared.genome)
            result = attribute(*arguments, num_tasks=num_tasks, seed=seed, min_gain=min_gain, on_progress=update)
        _print_attribution(subject.name, result)
        records.append({"subject": subject.name} | to_jsonable(result))
        history.end({subject.name: result.verdict})
        print_history(history)
    write_report(out, {"seed": seed, "settings": settings, "history": history.to_record(), "subjects": records})


NumAudits = Annotated[int, typer.Option(min=2, help="Audits of each control by each test.")]
TestNames = Annotated[
    list[str] | None,
    typer.Option("--test", help="Test, or file of one, to calibrate; repeatable (default: all primary tests)."),
]
EnvironmentNames = Annotated[
    list[str] | None,
    typer.Option("--env", help="Environment; repeatable (default: all in which a test is used)."),
]
OrganismNames = Annotated[
    list[str] | None,
    typer.Option("--organism", help="Model organism, or file of one, to audit; repeatable (default: all)."),
]
DistilledFolder = Annotated[
    Path | None,
    typer.Option(help="Folder of networks distilled from organisms, to audit too; trains missing ones (minutes each)."),
]
RecordsFile = Annotated[
    Path | None,
    typer.Option(help="File of JSON lines, to which finished audits are appended; a second call continues."),
]
TableOnly = Annotated[
    bool, typer.Option("--table", help="Print the tables of the records as Markdown, and audit nothing.")
]


def calibrate(
    num_audits: NumAudits = 1000,
    tests: TestNames = None,
    envs: EnvironmentNames = None,
    organisms: OrganismNames = None,
    distilled: DistilledFolder = None,
    records: RecordsFile = None,
    table: TableOnly = False,
    seed: Seed = 0,
    on: OnDriver = "in_process",
    out: JsonFile = None,
    device: Device = None,
    num_host_devices: NumHostDevices = None,
) -> None:
    """Measure the error rates of the tests on model organisms, whose ground truth is known.

    Example: ontogeny audit calibrate --num-audits 1000 --records calibration.jsonl
    """
    from ontogeny.parallel.drivers import is_in_process, open_driver

    check_new_path(out)
    if table and records is None:
        raise BadInput("--table prints the tables of a file, which --records must name")
    _require_known_names(audit=tests, environments=envs, organisms=organisms)
    if is_in_process(on):
        configure_jax(device, num_host_devices)
    else:
        configure_jax_of_workers(device, num_host_devices)
    from ontogeny.audit import calibration, calibration_records, calibration_tasks
    from ontogeny.audit.base import list_organisms, select_tests
    from ontogeny.audit.history import begin_audit

    recorded = [] if records is None else calibration_records.read_chunks(records, must_exist=table)
    if table:
        typer.echo(calibration_records.markdown_tables(calibration.combine_controls(recorded)), nl=False)
        return
    settings: dict[str, Any] = {"tests": tests, "environments": envs, "organisms": organisms}
    settings |= {"num_audits": num_audits, "seed": seed}
    list_organisms(organisms or ())  # a faulty file is refused before an audit is recorded
    select_tests(tests or ())
    files = [Path(name) for name in organisms or () if name.endswith(".py")]
    histories = [begin_audit(file, "audit calibrate", settings) for file in files]
    students = [] if distilled is None else _distill_students(distilled, organisms or [])
    on_chunk = None if records is None else partial(calibration_records.append_chunk, records)
    with progress("calibrating", "chunks") as update:
        selection = calibration.Selection(tuple(tests or ()), tuple(organisms or ()), tuple(envs or ()))
        options: dict[str, Any] = {"extra": students, "recorded": recorded}
        options |= {"on_chunk": on_chunk, "on_progress": update}
        if is_in_process(on):
            results = calibration.calibrate(selection, num_audits, seed, **options)
        else:
            with open_driver(on) as driver:
                results = calibration_tasks.calibrate_on(driver, selection, num_audits, seed, **options)
    splits = calibration.cross_validate_thresholds(results)
    claims = calibration.claim_error_rates(results)
    print_calibration(results, splits, claims)
    for history in histories:
        history.end({"claims": claims})
        print_history(history)
    record = {"num_audits": num_audits, "seed": seed, "settings": settings, "claims": claims}
    record["histories"] = [history.to_record() for history in histories]
    record["control_results"] = [calibration.to_record(result) for result in results]
    record["calibration_splits"] = [calibration.split_to_record(split) for split in splits]
    write_report(out, record)


def _require_known_names(**names_by_kind: list[str] | None) -> None:
    """Raises `BadInput` for a name that no plugin of its kind has."""
    from ontogeny import plugins

    for kind, names in names_by_kind.items():
        for name in names or []:
            is_file = kind in ("organisms", "audit") and name.endswith(".py")
            if not is_file and name not in plugins.list_names(kind):
                raise plugins.unknown_name_error(plugins.PLUGIN_KINDS[kind], name, plugins.list_names(kind))


class AuditedAgent(NamedTuple):
    """What a command audits."""

    subjects: "list[Subject]"
    settings: dict[str, Any]  # the agent, its environment and its drives
    source: Path | None  # the file or folder whose history records the audit; None for plugins of this package


def _read_audited(run: str, env: str | None, drives: list[str] | None, seed: int) -> AuditedAgent:
    """The subjects of a run, of a saved deployment, of an agent in an environment, or of `organism:NAME`."""
    from ontogeny import plugins
    from ontogeny.audit import calibration, suite
    from ontogeny.stages.assembly import make_env
    from ontogeny.stages.saved_agent import initial_agent, read_saved_agent
    from ontogeny.stages.spec import complete_spec, spec_to_json

    kind, _, organism = run.partition(":")
    if kind == "organism" and organism:
        if drives:
            raise BadInput("an organism has the drives that its environment proposes; --drive goes with an agent")
        plugin, env_settings = plugins.parse(env or "")
        subjects = calibration.organism_subjects(
            organism, cast("Any", make_env(plugin, **env_settings)) if env else None
        )
        source = Path(organism) if organism.endswith(".py") else None
        return AuditedAgent(subjects, {"organism": organism, "env": env or subjects[0].train_env.spec.name}, source)
    agent, _ = plugins.parse(run)
    if env is None and not agent.endswith(".py"):
        if drives:
            raise BadInput("a run keeps the drives with which it was developed; --drive goes with an agent")
        return AuditedAgent(suite.agent_subjects(read_saved_agent(Path(run))), {"run": run}, Path(run))
    if Path(run).is_dir():
        raise BadInput(f"the run in '{run}' is audited in the environment in which it was developed, without --env")
    if env is None:
        raise BadInput(f"the agent '{run}' is audited in an environment: name it with --env")
    saved_agent = initial_agent(build_run_spec(run, env, "single_lifetime", drives, seed))
    spec = spec_to_json(complete_spec(saved_agent.spec))
    settings = {name: spec[name] for name in ("agent", "env", "drives")}
    return AuditedAgent(suite.agent_subjects(saved_agent), settings, Path(agent) if agent.endswith(".py") else None)


def _distill_students(folder: Path, organisms: list[str]) -> "list[Control]":
    """The controls that networks distilled from organisms add; each network is read from the folder or trained."""
    from ontogeny.audit import calibration
    from ontogeny.runs.formats import refuse_run_folder
    from ontogeny.studies.mesa import distilled

    refuse_run_folder(folder, "distilled networks")
    controls = []
    for name in distilled.TEACHERS:
        if organisms and name not in organisms:
            continue
        with progress("distilling", "updates") as update:
            text = f"training a student of {name}"
            student = distilled.load_or_train(
                name, 0, folder, on_progress=lambda done, total, text=text: update(done, total, text)
            )
        agreement, after_exposure = distilled.measure_fidelity(name, student)
        agreements = f"{agreement:.1%} of choices, {after_exposure:.1%} after exposures"
        typer.echo(f"{student.name}: agrees with its teacher in {agreements}")
        controls += calibration.student_controls(name, student)
    return controls


def _print_results(name: str, results: "list[AuditResult]", verdict_text: str) -> None:
    """Print the effects and verdict of every test, and the conclusion."""
    from ontogeny.audit.base import HYPOTHESES, SECONDARY_HYPOTHESES

    typer.echo(name)
    for number, result in enumerate(results):
        if not result.primary and (number == 0 or results[number - 1].primary):
            typer.echo("  secondary tests, which change no verdict")
        hypothesis = (HYPOTHESES | SECONDARY_HYPOTHESES)[result.hypothesis]
        verdict = result.verdict if result.primary else f"secondary, {SECONDARY_VERDICTS[result.verdict]}"
        pattern = f" ({result.pattern})" if result.pattern else ""
        typer.echo(f"  {result.test}: {hypothesis} {verdict}{pattern}: {result.summary}")
        for prefix, effects in (("", result.effects), ("control: ", result.controls)):
            for part, effect in effects.items():
                typer.echo(f"    {prefix + part:<52}{_format_effect(effect)}")
    typer.echo(f"  {verdict_text}")


def _print_attribution(name: str, result: "Attribution") -> None:
    """Print the four cells, the parts of the gain and the verdict."""
    typer.echo(f"{name}: {result.num_tasks} unseen tasks, score per lifetime with the 95 % interval over tasks")
    estimates = {
        "weights frozen, activations reset": result.cells["neither"],
        "weights frozen, activations kept": result.cells["activations"],
        "weights online, activations reset": result.cells["weights"],
        "weights online, activations kept": result.cells["both"],
        "weights from the log, activations reset": result.weights_from_log,
        "gain": result.gain,
        "  of weights (Shapley)": result.gain_of_weights,
        "  of activations (Shapley)": result.gain_of_activations,
        "  of weights alone": result.weights_alone,
        "  of activations alone": result.activations_alone,
        "interaction": result.interaction,
    }
    for label, estimate in estimates.items():
        mean, low, high = map(format_number, estimate)
        typer.echo(f"  {label:<41}{mean:>9}   {low} to {high}")
    shares = ""
    if result.shares is not None:
        shares = f"; shares {result.shares[0]:.0%} weights, {result.shares[1]:.0%} activations"
    typer.echo(f"  verdict: {result.verdict}{shares} (smallest gain that counts: {format_number(result.min_gain)})")
    typer.echo(f"  {result.summary}")


def print_calibration(results: "list[ControlResult]", splits: "list[CalibrationSplit]", claims: list[str]) -> None:
    """Print the error rates of every test on every control, and what can be claimed about them.

    Args:
        results: Of `calibration.calibrate`.
        splits: Of `calibration.cross_validate_thresholds`.
        claims: Of `calibration.claim_error_rates`.
    """
    from ontogeny.audit.calibration import sort_worst_first

    for test, env in dict.fromkeys((control.test, control.env) for control in results):
        of_test = [control for control in results if (control.test, control.env) == (test, env)]
        counts = sorted({control.yes.num_audits for control in of_test})
        num_audits = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        width = max(30, *(len(control.organism) + 1 for control in of_test))
        seconds = sum(control.seconds_per_audit for control in of_test) / len(of_test)
        where = f" in {env}" if env else ""
        typer.echo(f"{test}{where}: {num_audits} audits of each control, {seconds:.2g} processor seconds per audit")
        for control in sort_worst_first(of_test):
            typer.echo(f"  {_format_control(control, width)}")
    hours = sum(control.seconds_per_audit * control.yes.num_audits for control in results) / 3600
    for split in splits:
        typer.echo(f"  {_format_split(split)}")
    for claim in claims:
        typer.echo(claim)
    typer.echo(f"all audits: {hours:.2g} processor hours")


def _format_effect(effect: "Effect") -> str:
    """An effect with its interval and the number of lifetimes."""
    mean, low, high = (
        f"{value:+.4g}" if abs(value) >= 1e6 else f"{value:+.3f}" for value in (effect.mean, effect.low, effect.high)
    )
    return f"{mean}   {low} to {high}   {effect.num_lifetimes} lifetimes"


def _format_split(split: "CalibrationSplit") -> str:
    """The threshold that one half of the families selects, and its error rates on the other half."""
    extremes = (("maximal false-positive rate", split.worst_negative), ("minimal power", split.weakest_positive))
    rates = [f"{label} {result.yes.share:.1%} ({result.organism})" for label, result in extremes if result is not None]
    where = f" in {split.env}" if split.env else ""
    selection = f"{split.test}{where}: one half of the families selects z > {split.z}"
    return f"{selection}; on the other half {' and '.join(rates) or 'there are no controls'}"


def _format_control(control: "ControlResult", width: int) -> str:
    """One line of the calibration table: the name of a control, padded to a width, and its rates of yes and no."""
    group = "positive" if control.positive else "negative"
    rate = (
        f"yes {control.yes.share:6.1%} ({control.yes.low:.1%} to {control.yes.high:.1%})   no {control.no.share:6.1%}"
    )
    return f"{group}  {control.organism:<{width}}{rate}   {control.pattern}".rstrip()
