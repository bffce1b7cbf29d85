"""The command line: flags -> configuration -> strategy -> one of a table of operations.

Nothing heavy is imported before the flags are known to make sense, so that `--help` and typing errors answer at once.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from logging import LogRecord, getLogger

from absl import flags, logging

from simclr_tf import preemption
from simclr_tf.errors import UsageError, UserError, first_line
from simclr_tf.models import embedded_networks
from simclr_tf.operations import ABOUT_OTHERS, OPERATIONS, TRAINING_MODES, Kind, Operation

_MODE = flags.DEFINE_string("mode", None, "What to do: one of the modes above.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, records and results. Local or remote.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of data sets; tfds: keeps its own there, folder: is relative to it."
)
_INIT_FROM = flags.DEFINE_string(
    "init_from",
    None,
    "Workdir (or embedded:NAME) whose network to start from.",
)
_TEACHER = flags.DEFINE_string(
    "teacher", None, "Workdir of a fine-tuned run, or a SavedModel, whose logits to imitate."
)
_SOURCE = flags.DEFINE_string(
    "source", None, "What to read: a published checkpoint (convert), folder:PATH or such (embed), vectors (neighbors)."
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Where to write: vectors.npz, .parquet or .tfrecord (embed), a picture (neighbors), a page (report).",
)
_QUERY = flags.DEFINE_multi_string(
    "query", [], "Image file, or a name in --source, to find neighbours of; may be repeated."
)
_STRATEGY = flags.DEFINE_string("strategy", "auto", "auto, one_device, mirrored, multi_worker or tpu.")
_TPU = flags.DEFINE_string("tpu", "", "'local' on a TPU VM, or a TPU's name or grpc address.")
_VIRTUAL_DEVICES = flags.DEFINE_integer(
    "virtual_devices", 0, "Split the CPU into so many devices, to try distribution."
)
_GIN_FILE = flags.DEFINE_multi_string(
    "gin_file",
    [],
    "Recipe or other gin file, on top of the mode's own; may be repeated (STAGE:FILE in all).",
)
_GIN_PARAM = flags.DEFINE_multi_string(
    "gin_param",
    [],
    "One gin binding, such as EPOCHS=20; may be repeated (STAGE:BINDING in all).",
)
_STAGE = flags.DEFINE_string(
    "stage", None, "With --mode=preview, plan or export_step: the training mode whose recipe is meant."
)
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "The TPU to plan for: v3-8, v4-32, v5e-16, or its grid as in v4:2x2x4; or several with commas."
)
_PRICE = flags.DEFINE_float("price", None, "What one chip costs for an hour, for --mode=plan.")
_SEARCH = flags.DEFINE_bool(
    "search", None, "With --mode=plan: search the largest batch that fits (on unless --nosearch is given)."
)
_PLAN_ENV = flags.DEFINE_string(
    "plan_env", None, "Environment that has the TPU compiler; .venv-plan of the clone without."
)
_MAKE_PLAN_ENV = flags.DEFINE_bool(
    "make_plan_env", None, "Let --mode=plan install the TPU compiler where it is missing."
)
_BATCHES = flags.DEFINE_integer("batches", None, "How many real batches --mode=export_step writes; 4 without.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Build everything, say what would be done, and stop.")


_COMMON_FLAGS = (
    *("mode", "workdir", "init_from", "teacher", "data_dir", "gin_file", "gin_param"),
    *("strategy", "virtual_devices", "dry_run"),
)

# What a mode looks at or writes to where no --workdir is given.
_WITHOUT_WORKDIR = {
    "demo": "runs/demo",
    "embed": embedded_networks.DEFAULT,
    "neighbors": embedded_networks.DEFAULT,
}


def _described(flag: str) -> str:
    """A flag's help, without what absl adds to it."""
    return flags.FLAGS[flag].help.split(";\n")[0]


def _help(full: bool) -> str:
    """What --help prints; with `full` every flag there is."""
    modes = [f"  {mode:<12} {operation.summary}" for mode, operation in OPERATIONS.items()]
    if full:
        shown = ["All flags:", flags.FLAGS.get_help()]
    else:
        common = [f"  --{flag:<16} {_described(flag)}" for flag in _COMMON_FLAGS]
        shown = ["Flags:", *common, "  --helpfull         Shows all flags."]
    return "\n".join(
        [
            "SimCLRv2: learn what images show without labels, fine-tune on a few, distill into a small network.",
            "",
            "Usage: simclr --mode=MODE --workdir=FOLDER [flags]",
            "",
            "Modes:",
            *modes,
            "",
            *shown,
        ]
    )


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        raise UsageError(f"--{error.flagname} is unknown{_suggest(error.flagname, list(flags.FLAGS), '--')}") from None
    except flags.Error as error:
        raise UsageError(str(error).splitlines()[0]) from None


def _suggest(word: str, known: list[str], prefix: str = "") -> str:
    import difflib

    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"; did you mean {prefix}{close[0]}?"
    return "; see simclr --help" if prefix else f"; choose one of {', '.join(known)}"


def _check_usage(argv: list[str]) -> Operation:
    if len(argv) > 1:
        raise UsageError(f"what is {argv[1]!r} for? every value belongs to a flag, as in --mode=pretrain")
    mode = _MODE.value
    if mode is None:
        raise UsageError(f"--mode is missing; choose one of {', '.join(OPERATIONS)}")
    if mode not in OPERATIONS:
        raise UsageError(f"--mode={mode} is unknown{_suggest(mode, list(OPERATIONS))}")
    if _WORKDIR.value is None and mode in _WITHOUT_WORKDIR:
        flags.FLAGS.set_default("workdir", _WITHOUT_WORKDIR[mode])
    if not _WORKDIR.value:
        raise UsageError(f"--workdir is missing; --mode={mode} needs a folder")
    if _STAGE.value is not None and not OPERATIONS[mode].shows_recipe:
        raise UsageError(f"--mode={mode} takes no --stage; only preview, plan and export_step can use it")
    for flag in ABOUT_OTHERS:
        given = flags.FLAGS[flag].value not in (None, [])
        if given and flag not in OPERATIONS[mode].takes + OPERATIONS[mode].needs:
            takers = [name for name, operation in OPERATIONS.items() if flag in operation.takes + operation.needs]
            raise UsageError(f"--mode={mode} takes no --{flag}; only {', '.join(takers)} can use it")
        if flag in OPERATIONS[mode].needs and not given:
            raise UsageError(f"--{flag} is missing, which --mode={mode} needs: {_described(flag)}")
    _resolve_embedded(OPERATIONS[mode])
    return OPERATIONS[mode]


def _resolve_embedded(operation: Operation) -> None:
    """Puts folders in the place of networks that come with the package; nothing is ever written into them."""
    if embedded_networks.is_embedded(_WORKDIR.value):
        lookers = [name for name, other in OPERATIONS.items() if "output" in other.takes + other.needs]
        if _MODE.value not in lookers:
            raise UsageError(
                f"--workdir={_WORKDIR.value} comes with the package, and --mode={_MODE.value} writes into its workdir; "
                f"only {', '.join(lookers)} can look at it (others start from it by --init_from or --teacher)"
            )
        if not _OUTPUT.value:
            raise UsageError(
                f"--output is missing: --workdir={_WORKDIR.value} comes with the package and nothing is written there"
            )
    for flag in ("workdir", "init_from", "teacher"):
        value = flags.FLAGS[flag].value
        if value:
            wrong = next((sign for sign in "[\\" if sign in value), None)
            if wrong is not None:
                raise UserError(
                    f"--{flag}={value} has a {wrong} in it, and TensorFlow finds no checkpoint in such a folder again; "
                    "give a folder without"
                )
            flags.FLAGS[flag].value = embedded_networks.resolve(value, f"--{flag}")


def _check_writable(workdir: str) -> None:
    """Makes the workdir; fails before hours of work rather than after."""
    from simclr_tf.stack import tf

    probe = os.path.join(workdir, f".writable.{os.getpid()}")
    try:
        tf.io.gfile.makedirs(workdir)
        with tf.io.gfile.GFile(probe, "w") as file:
            file.write("")
        tf.io.gfile.remove(probe)
    except (OSError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--workdir={workdir} cannot be written to ({reason}); choose another folder") from None


def _save_config(workdir: str) -> None:
    """Writes `config.gin`, but never over one that is the user's own."""
    from simclr_tf import config, identity
    from simclr_tf.stack import tf

    path = os.path.join(workdir, config.CONFIG)
    if tf.io.gfile.exists(path) and not tf.io.gfile.exists(os.path.join(workdir, identity.RUN)):
        with tf.io.gfile.GFile(path) as file:
            if file.read() != config.config_text():
                raise UserError(
                    f"{path} is there, but no run; it would be written over: move it, or use a new --workdir"
                )
    config.save(workdir)


def _inherited(operation: Operation) -> list[str]:
    """Bindings that follow from the run that is started from, imitated or looked at: its network and its data."""
    from simclr_tf import checkpoint, records
    from simclr_tf.stack import tf

    if operation.kind in (Kind.COMPARE, Kind.MAKE):
        return []
    from_others = operation.kind is Kind.TRAIN or operation.shows_recipe
    source, flag = (_INIT_FROM.value, "--init_from") if from_others else (_WORKDIR.value, "--workdir")
    sections = {}
    if source:
        description = checkpoint.read_architecture(source, flag)
        sections["Data"] = dict(description["data"])
        if operation.kind in (Kind.TRAIN, Kind.PLAN):
            # Which labels to use is a matter of the new run.
            for name in ("label_fraction", "labels_per_class", "label_list", "subset_seed"):
                sections["Data"].pop(name, None)
            sections["ResNet"] = description["network"]["encoder"]
            head = description["network"]["head"]
            if head:
                sections["ProjectionHead"] = {name: head[name] for name in ("num_layers", "output_dim")}
            else:
                sections["Supervised"] = {"head_layer": 0}
    elif _TEACHER.value and tf.io.gfile.exists(os.path.join(_TEACHER.value, records.ARCHITECTURE)):
        sections["Data"] = checkpoint.read_architecture(_TEACHER.value, "--teacher")["data"]
    return [f"{section}.{name} = {value!r}" for section, values in sections.items() for name, value in values.items()]


def _shown_mode() -> str:
    """The training mode whose recipe is shown: --stage, else where the recipe lies, else pretraining."""
    if _STAGE.value is not None:
        if _STAGE.value not in TRAINING_MODES:
            raise UsageError(f"--stage={_STAGE.value} is unknown{_suggest(_STAGE.value, list(TRAINING_MODES))}")
        return _STAGE.value
    folders = [part for name in _GIN_FILE.value for part in name.replace(os.sep, "/").split("/")[:-1]]
    return next((folder for folder in reversed(folders) if folder in TRAINING_MODES), "pretrain")


def _run_sequence() -> None:
    from simclr_tf import demo, sequence

    others = [f"--{name}={value}" for name in ("data_dir", "strategy", "tpu") if (value := flags.FLAGS[name].value)]
    if _VIRTUAL_DEVICES.value:
        others.append(f"--virtual_devices={_VIRTUAL_DEVICES.value}")
    if _DRY_RUN.value:
        raise UsageError(f"--mode={_MODE.value} has no --dry_run; each of its stages has")
    if _MODE.value == "demo":
        if _GIN_FILE.value or _GIN_PARAM.value:
            raise UsageError(
                "--mode=demo takes no gin files or parameters; --mode=all does the same with your settings"
            )
        demo.run(_WORKDIR.value, others=others)
        return
    sequence.run_all(_WORKDIR.value, gin_files=_GIN_FILE.value, gin_params=_GIN_PARAM.value, others=others)


def _run_plan(operation: Operation) -> None:
    """Builds runs for machines elsewhere: the same configuration, with what a planner varies on top."""
    from simclr_tf import config, configurables
    from simclr_tf.place import Place
    from simclr_tf.plan import chips, environment, planner

    shown = _shown_mode()
    # TPUs compute in bfloat16 unless they are told otherwise; one for this machine takes what it is good at.
    usual = ["train.precision = 'bfloat16'"] if _MODE.value == "plan" else []

    def build(program, bindings: list[str]):
        config.parse(shown, _GIN_FILE.value, [*_GIN_PARAM.value, *bindings], inherited=[*usual, *_inherited(operation)])
        place = Place(
            workdir=_WORKDIR.value,
            strategy=program,
            data_dir=_DATA_DIR.value,
            init_from=_INIT_FROM.value,
            teacher=_TEACHER.value,
            built=config.lint,
            instead=lambda built: built,
        )
        return configurables.configured(operation.configurable)(place)

    if _DRY_RUN.value:
        raise UsageError(f"--mode={_MODE.value} has no --dry_run: it trains nothing")
    if _MODE.value == "export_step":
        _check_writable(_WORKDIR.value)
        batches = 4 if _BATCHES.value is None else _BATCHES.value
        planner.export_step(build, workdir=_WORKDIR.value, batches=batches, init_from=_INIT_FROM.value)
        return
    topologies = [chips.parse_topology(name) for name in _TOPOLOGY.value.split(",")]
    _check_writable(_WORKDIR.value)
    planner.plan(
        build,
        topologies,
        workdir=_WORKDIR.value,
        compiler_folder=_PLAN_ENV.value or environment.default_folder(),
        make_environment=bool(_MAKE_PLAN_ENV.value),
        price=_PRICE.value,
        search=_SEARCH.value is not False,
    )


def _run(argv: list[str]) -> None:
    operation = _check_usage(argv)
    if operation.kind is Kind.SEQUENCE:
        _run_sequence()
        return
    if operation.kind is Kind.PLAN:
        _run_plan(operation)
        return
    from simclr_tf import cluster, config, configurables
    from simclr_tf.place import Place

    config.parse(
        _MODE.value,
        _GIN_FILE.value,
        _GIN_PARAM.value,
        inherited=_inherited(operation),
        shown=_shown_mode() if operation.shows_recipe else None,
    )
    strategy = cluster.make_strategy(_STRATEGY.value, tpu=_TPU.value, virtual_devices=_VIRTUAL_DEVICES.value)
    looks_only = operation.leaves_workdir or bool(_OUTPUT.value)
    if not _DRY_RUN.value and not looks_only and cluster.role(strategy).is_chief:
        _check_writable(_WORKDIR.value)

    place = Place(
        workdir=_WORKDIR.value,
        strategy=strategy,
        data_dir=_DATA_DIR.value,
        init_from=_INIT_FROM.value,
        teacher=_TEACHER.value,
        source=_SOURCE.value,
        output=_OUTPUT.value,
        queries=tuple(_QUERY.value),
        dry_run=_DRY_RUN.value,
        # Most of a recipe is of no interest to what only shows it.
        built=config.lint if not operation.shows_recipe else lambda: None,
        accepted=lambda: _save_config(_WORKDIR.value),
        stepped=lambda: config.save_operative(_WORKDIR.value),
        settings=config.settings,
    )
    if flags.FLAGS["workdir"].using_default_value:
        place.say(f"no --workdir was given: {_WITHOUT_WORKDIR[_MODE.value]}, which comes with the package, is taken")
    with cluster.lost_hosts_start_again(strategy):
        configurables.configured(operation.configurable)(place)


def _guarded(run: Callable[[], None]) -> int:
    """Runs, and turns what a user can put right into one clear line and an exit code."""
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
        refused = _refused_by_the_file_system(error)
        if refused is None:
            raise
        sys.stdout.flush()
        print(f"simclr: {refused}; give a path that can be used from here", file=sys.stderr)
        return 1


def _refused_by_the_file_system(error: Exception) -> str | None:
    """What the file system says of a path that this machine or user may not use; None for any other error."""
    from simclr_tf.stack import tf

    unknown = isinstance(error, tf.errors.UnimplementedError) and "File system scheme" in str(error)
    if unknown or isinstance(error, (tf.errors.PermissionDeniedError, PermissionError)):
        return first_line(error)
    return None


def _concerns_users(record: LogRecord) -> bool:
    """Leaves out TensorFlow's advice for whoever wrote a function: several networks are several graphs."""
    return "triggered tf.function retracing" not in record.getMessage()


def main(argv: list[str] | None = None) -> None:
    """Runs the command line, the process's own unless `argv` is given (the program's name first), and exits."""
    argv = sys.argv if argv is None else argv
    # A graph is many objects that stay: to look for garbage among them as often as usual takes a tenth of the start.
    gc.set_threshold(100_000)
    # Until a run watches for itself there is nothing to save.
    signal.signal(signal.SIGTERM, preemption.leave)
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    getLogger("tensorflow").addFilter(_concerns_users)
    asked = {argument.lstrip("-") for argument in argv[1:] if argument.startswith("-")}
    if asked & {"help", "h", "helpshort", "helpfull"}:
        print(_help(full="helpfull" in asked))
        sys.exit(0)
    sys.exit(_guarded(lambda: _run(_parse_flags(argv))))


if __name__ == "__main__":
    main()
