"""The command line: flags -> configuration -> strategy -> one of a table of operations.

Heavy imports wait until the flags make sense, so that `--help` and typing errors are answered at once.
"""

from __future__ import annotations

import functools
import gc
import os
import re
import signal
import sys
from collections.abc import Callable
from logging import LogRecord, getLogger

from absl import flags, logging

from simclr_tf.core import windows_paths
from simclr_tf.core.errors import StartAgain, UsageError, UserError, first_line, visible
from simclr_tf.distribute import preemption
from simclr_tf.models import bundled
from simclr_tf.settings.flags import (
    BATCHES,
    DATA_DIR,
    DRY_RUN,
    GIN_FILE,
    GIN_PARAM,
    INIT_FROM,
    MAKE_PLAN_ENV,
    MODE,
    OUTPUT,
    PLAN_ENV,
    PRICE,
    QUERY,
    SEARCH,
    SOURCE,
    STAGE,
    STRATEGY,
    TEACHER,
    TOPOLOGY,
    TPU,
    VIRTUAL_DEVICES,
    WORKDIR,
    described,
    help_text,
    parse_flags,
    suggest,
)
from simclr_tf.settings.modes import ABOUT_OTHERS, OPERATIONS, TRAINING_MODES, Kind, Operation

# The workdirs of modes that work without --workdir.
_WITHOUT_WORKDIR = {
    "demo": "runs/demo",
    "embed": bundled.DEFAULT,
    "neighbors": bundled.DEFAULT,
}


def _check_usage(argv: list[str]) -> Operation:
    if len(argv) > 1:
        raise UsageError(f"{argv[1]!r} belongs to no flag; write every value as --FLAG=VALUE, such as --mode=pretrain")
    _refuse_windows_paths()
    mode = MODE.value
    if mode is None:
        raise UsageError(f"--mode is missing; choose one of {', '.join(OPERATIONS)}")
    if mode not in OPERATIONS:
        raise UsageError(f"--mode={mode} is unknown{suggest(mode, list(OPERATIONS))}")
    if WORKDIR.value is None and mode in _WITHOUT_WORKDIR:
        flags.FLAGS.set_default("workdir", _WITHOUT_WORKDIR[mode])
    if not WORKDIR.value:
        raise UsageError(f"--workdir is missing; --mode={mode} needs a folder")
    if STAGE.value is not None and not OPERATIONS[mode].shows_recipe:
        raise UsageError(f"--mode={mode} takes no --stage; only preview, plan and export_step can use it")
    for flag in ABOUT_OTHERS:
        given = flags.FLAGS[flag].value not in (None, [])
        if given and flag not in OPERATIONS[mode].takes + OPERATIONS[mode].needs:
            takers = [name for name, operation in OPERATIONS.items() if flag in operation.takes + operation.needs]
            raise UsageError(f"--mode={mode} takes no --{flag}; only {', '.join(takers)} can use it")
        if flag in OPERATIONS[mode].needs and not given:
            raise UsageError(f"--{flag} is missing, which --mode={mode} needs: {described(flag)}")
    _resolve_embedded(OPERATIONS[mode])
    return OPERATIONS[mode]


def _refuse_windows_paths() -> None:
    """Refuses Windows paths in all flags but the gin bindings, which `gin_config` checks."""
    for flag in flags.FLAGS.flags_by_module_dict()["simclr_tf.settings.flags"]:
        for value in flag.value if isinstance(flag.value, list) else [flag.value]:
            if isinstance(value, str) and flag.name != GIN_PARAM.name:
                windows_paths.refuse(value, f"--{flag.name}")


def _resolve_embedded(operation: Operation) -> None:
    """Replaces the names of bundled networks by their folders, into which no mode may write."""
    if bundled.is_embedded(WORKDIR.value):
        readers = [name for name, other in OPERATIONS.items() if "output" in other.takes + other.needs]
        if MODE.value not in readers:
            raise UsageError(
                f"--workdir={WORKDIR.value} comes with the package, and --mode={MODE.value} writes into its workdir; "
                f"only {', '.join(readers)} can read it (others start from it by --init_from or --teacher)"
            )
        if not OUTPUT.value:
            raise UsageError(
                f"--output is missing: --workdir={WORKDIR.value} comes with the package and nothing is written there"
            )
    for flag in ("workdir", "init_from", "teacher"):
        value = flags.FLAGS[flag].value
        if value:
            wrong = next((sign for sign in "[\\" if sign in value), None)
            if wrong is not None:
                raise UserError(
                    f"--{flag}={value} contains {wrong}, and TensorFlow cannot find checkpoints in such a folder; "
                    "give a folder without it"
                )
            flags.FLAGS[flag].value = bundled.resolve(value, f"--{flag}")


def _check_writable(workdir: str) -> None:
    """Creates the workdir and writes a file into it, so that a bad folder fails before hours of work, not after."""
    from simclr_tf.core.files import refusal
    from simclr_tf.core.tf import tf

    probe = os.path.join(workdir, f".writable.{os.getpid()}")
    try:
        tf.io.gfile.makedirs(workdir)
        with tf.io.gfile.GFile(probe, "w") as file:
            file.write("")
        tf.io.gfile.remove(probe)
    except (OSError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0]
        raise refusal(workdir, error)(
            f"--workdir={workdir} cannot be written to ({reason}); choose another folder"
        ) from None


def _inherited(operation: Operation) -> list[str]:
    """Returns bindings of the network and data of the run that this one starts from, imitates or examines."""
    from simclr_tf.core.tf import tf
    from simclr_tf.workdir import records
    from simclr_tf.workdir.networks import read_architecture

    if operation.kind in (Kind.COMPARE, Kind.MAKE):
        return []
    from_others = operation.kind is Kind.TRAIN or operation.shows_recipe
    source, flag = (INIT_FROM.value, "--init_from") if from_others else (WORKDIR.value, "--workdir")
    sections = {}
    if source:
        description = read_architecture(source, flag)
        sections["Data"] = dict(description["data"])
        if operation.kind in (Kind.TRAIN, Kind.PLAN):
            # The new run chooses its own labels.
            for name in ("label_fraction", "labels_per_class", "label_list", "subset_seed", "balance"):
                sections["Data"].pop(name, None)
            sections["ResNet"] = description["network"]["encoder"]
            head = description["network"]["head"]
            if head:
                sections["ProjectionHead"] = {name: head[name] for name in ("num_layers", "output_dim")}
            else:
                sections["Supervised"] = {"head_layer": 0}
    elif TEACHER.value and tf.io.gfile.exists(os.path.join(TEACHER.value, records.ARCHITECTURE)):
        sections["Data"] = read_architecture(TEACHER.value, "--teacher")["data"]
    return [f"{section}.{name} = {value!r}" for section, values in sections.items() for name, value in values.items()]


def _shown_mode() -> str:
    """Returns the training mode whose recipe is shown: --stage, else the recipe's folder, else pretraining."""
    if STAGE.value is not None:
        if STAGE.value not in TRAINING_MODES:
            raise UsageError(f"--stage={STAGE.value} is unknown{suggest(STAGE.value, list(TRAINING_MODES))}")
        return STAGE.value
    folders = [part for name in GIN_FILE.value for part in name.replace(os.sep, "/").split("/")[:-1]]
    return next((folder for folder in reversed(folders) if folder in TRAINING_MODES), "pretrain")


def _run_sequence() -> None:
    from simclr_tf.commands import demo, sequence

    others = [f"--{name}={value}" for name in ("data_dir", "strategy", "tpu") if (value := flags.FLAGS[name].value)]
    if VIRTUAL_DEVICES.value:
        others.append(f"--virtual_devices={VIRTUAL_DEVICES.value}")
    if DRY_RUN.value:
        raise UsageError(f"--mode={MODE.value} has no --dry_run; each of its stages has")
    if MODE.value == "demo":
        if GIN_FILE.value or GIN_PARAM.value:
            raise UsageError(
                "--mode=demo takes no gin files or parameters; --mode=all does the same with your settings"
            )
        demo.run(WORKDIR.value, others=others)
        return
    from simclr_tf import configurables  # noqa: F401  (registers what the stages' settings name)

    sequence.run_all(WORKDIR.value, gin_files=GIN_FILE.value, gin_params=GIN_PARAM.value, others=others)


def _run_plan(operation: Operation) -> None:
    """Builds runs for machines elsewhere: the user's configuration, plus the bindings that the planner varies."""
    from simclr_tf import configurables
    from simclr_tf.commands.plan import chips, compiler, plan
    from simclr_tf.data.sources.known_sizes import numbers_suffice
    from simclr_tf.settings import gin_config
    from simclr_tf.settings.run_context import RunContext
    from simclr_tf.workdir import inherited_splits

    shown = _shown_mode()
    wanted = OPERATIONS[shown]
    for flag in ("init_from", "teacher"):
        if flags.FLAGS[flag].value and flag not in wanted.takes + wanted.needs:
            raise UsageError(f"--mode={MODE.value} of {shown} takes no --{flag}, because --mode={shown} takes none")
    if "teacher" in wanted.needs and not TEACHER.value:
        raise UsageError(f"--teacher is missing, which --mode={MODE.value} of {shown} needs: {described('teacher')}")
    # A plan is for TPUs, which compute in bfloat16 by default. An exported step follows this machine's default.
    inherited = ["train.precision = 'bfloat16'"] if MODE.value == "plan" else []
    inherited += _inherited(operation)

    def parse(kept: list[str], *bindings: str) -> None:
        inherited[:] = kept
        gin_config.parse(shown, GIN_FILE.value, [*GIN_PARAM.value, *bindings], inherited=kept)

    def settle() -> None:
        parse(inherited)
        flag = "--init_from" if INIT_FROM.value else "--teacher"
        with numbers_suffice():
            told = inherited_splits.settle(parse, tuple(inherited), mode=shown, flag=flag, data_dir=DATA_DIR.value)
        for line in told:
            print(visible(line), flush=True)

    def build(program, bindings: list[str]):
        parse(inherited, *bindings)
        context = RunContext(
            workdir=WORKDIR.value,
            strategy=program,
            data_dir=DATA_DIR.value,
            init_from=INIT_FROM.value,
            teacher=TEACHER.value,
            settings=gin_config,
        )
        return configurables.configured(operation.configurable)().build(context)

    if DRY_RUN.value:
        raise UsageError(f"--mode={MODE.value} has no --dry_run: it trains nothing")
    if MODE.value == "export_step":
        _check_writable(WORKDIR.value)
        settle()
        batches = 4 if BATCHES.value is None else BATCHES.value
        plan.export_step(build, workdir=WORKDIR.value, batches=batches, init_from=INIT_FROM.value)
        return
    topologies = [chips.parse_topology(name) for name in TOPOLOGY.value.split(",")]
    _check_writable(WORKDIR.value)
    settle()
    plan.plan(
        build,
        topologies,
        workdir=WORKDIR.value,
        compiler_folder=PLAN_ENV.value or compiler.default_folder(),
        make_environment=bool(MAKE_PLAN_ENV.value),
        price=PRICE.value,
        search=SEARCH.value is not False,
    )


def _run(argv: list[str]) -> None:
    if sys.platform == "win32":  # Locks and signals need Unix.
        raise UserError("simclr_tf does not run on Windows itself; use it in WSL 2 (`wsl --install`), which is Linux")
    operation = _check_usage(argv)
    if operation.kind is Kind.SEQUENCE:
        _run_sequence()
        return
    if operation.kind is Kind.PLAN:
        _run_plan(operation)
        return
    from simclr_tf import configurables
    from simclr_tf.distribute import cluster
    from simclr_tf.settings import gin_config
    from simclr_tf.settings.run_context import RunContext, Settings
    from simclr_tf.workdir import inherited_splits

    inherited, shown = _inherited(operation), _shown_mode() if operation.shows_recipe else None
    parse = functools.partial(gin_config.parse, MODE.value, GIN_FILE.value, GIN_PARAM.value, shown=shown)
    parse(inherited=inherited)
    strategy = cluster.make_strategy(STRATEGY.value, tpu=TPU.value, virtual_devices=VIRTUAL_DEVICES.value)
    # This opens the sources, which starts TensorFlow; the strategy has to come first.
    notes = inherited_splits.settle(
        lambda bindings: parse(inherited=bindings),
        inherited,
        mode=shown or MODE.value,
        flag=next(f"--{flag}" for flag in ("init_from", "teacher", "workdir") if flags.FLAGS[flag].value),
        data_dir=DATA_DIR.value,
    )
    reads_only = operation.leaves_workdir or bool(OUTPUT.value)
    if not DRY_RUN.value and not reads_only and cluster.role(strategy).is_chief:
        _check_writable(WORKDIR.value)

    context = RunContext(
        workdir=WORKDIR.value,
        strategy=strategy,
        data_dir=DATA_DIR.value,
        init_from=INIT_FROM.value,
        teacher=TEACHER.value,
        source=SOURCE.value,
        output=OUTPUT.value,
        queries=tuple(QUERY.value),
        dry_run=DRY_RUN.value,
        # A mode that only shows a recipe leaves most bindings unread; that is no error of the user's.
        settings=Settings() if operation.shows_recipe else gin_config,
    )
    if flags.FLAGS["workdir"].using_default_value:
        context.say(f"no --workdir was given; using {_WITHOUT_WORKDIR[MODE.value]}, which comes with the package")
    for line in notes:
        context.say(line)
    with cluster.lost_hosts_start_again(strategy):
        if operation.kind is Kind.TRAIN:
            configurables.configured(operation.configurable)().run(context)
        else:
            configurables.configured(operation.configurable)(context)


def _guarded(run: Callable[[], None]) -> int:
    """Calls `run` and returns the exit code; prints an error that the user can fix as one line."""
    try:
        run()
        return 0
    except UserError as error:
        sys.stdout.flush()
        print(f"simclr: {error.original}", file=sys.stderr)
        return error.original.exit_code
    except KeyboardInterrupt:
        print("simclr: interrupted; the same command goes on from what was saved last", file=sys.stderr)
        return 130
    except Exception as error:
        refused = _machine_error(error)
        if refused is None:
            raise
        sys.stdout.flush()
        print(f"simclr: {refused}", file=sys.stderr)
        return refused.exit_code


def _machine_error(error: Exception) -> UserError | None:
    """Turns an error of the machine into one line: a forbidden path, too little memory, a bucket that is away.

    Returns:
      None for any other error.
    """
    # Compared by name, because this also runs where TensorFlow, and with it its errors, cannot be imported.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    unknown = "UnimplementedError" in kinds and "File system scheme" in str(error)
    if unknown or kinds & {"PermissionDeniedError", "PermissionError"}:
        return UserError(f"{first_line(error)}; give a path that can be used from here")
    exhausted = "ResourceExhaustedError" in kinds and re.search(r"\bOOM\b|out of memory", str(error), re.IGNORECASE)
    if exhausted or "MemoryError" in kinds:
        return UserError(
            f"there is not enough memory ({first_line(error)}); use a smaller batch. A training run goes on with "
            "ResNet.remat = True or Pretrain.nt_xent = 'tiled'; anything else needs a new --workdir (see "
            "docs/troubleshooting.md)"
        )
    if kinds & {"UnavailableError", "AbortedError", "DeadlineExceededError", "ResourceExhaustedError"}:
        return StartAgain(f"a bucket or machine does not answer ({first_line(error)}); give the same command again")
    return None


def _concerns_users(record: LogRecord) -> bool:
    """Drops TensorFlow's warnings of retracing, which are for programmers: each network needs its own graph."""
    return "triggered tf.function retracing" not in record.getMessage()


def main(argv: list[str] | None = None) -> None:
    """Runs a command line and exits; `argv` starts with the program's name, and None means the process's own."""
    argv = sys.argv if argv is None else argv
    # Graphs are many objects that stay; scanning them for garbage at Python's usual rate takes a tenth of the startup.
    gc.set_threshold(100_000)
    # Until a run installs its own handler, there is nothing to save.
    signal.signal(signal.SIGTERM, preemption.leave)
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    getLogger("tensorflow").addFilter(_concerns_users)
    asked = {argument.lstrip("-") for argument in argv[1:] if argument.startswith("-")}
    if asked & {"help", "h", "helpshort", "helpfull"}:
        print(help_text(full="helpfull" in asked))
        sys.exit(0)
    sys.exit(_guarded(lambda: _run(parse_flags(argv))))


if __name__ == "__main__":
    main()
