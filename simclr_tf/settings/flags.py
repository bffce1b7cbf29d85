"""The flags of the command line, and what --help says of them."""

from __future__ import annotations

import difflib

from absl import flags

from simclr_tf.core.errors import UsageError
from simclr_tf.settings.modes import OPERATIONS

MODE = flags.DEFINE_string("mode", None, "What to do: one of the modes above.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, records and results. Local or remote.")
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of data sets; tfds: keeps its own there, folder: is relative to it."
)
INIT_FROM = flags.DEFINE_string(
    "init_from",
    None,
    "Workdir (or embedded:NAME) whose network to start from.",
)
TEACHER = flags.DEFINE_string("teacher", None, "Workdir of a fine-tuned run, or a SavedModel, whose logits to imitate.")
SOURCE = flags.DEFINE_string(
    "source", None, "What to read: a published checkpoint (convert), folder:PATH or such (embed), vectors (neighbors)."
)
OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Where to write: vectors.npz, .parquet or .tfrecord (embed), a folder (export), a picture (neighbors), a page "
    "(report).",
)
QUERY = flags.DEFINE_multi_string(
    "query", [], "Image file, or a name in --source, to find neighbours of; may be repeated."
)
STRATEGY = flags.DEFINE_string("strategy", "auto", "auto, one_device, mirrored, multi_worker or tpu.")
TPU = flags.DEFINE_string("tpu", "", "'local' on a TPU VM, or a TPU's name or grpc address.")
VIRTUAL_DEVICES = flags.DEFINE_integer("virtual_devices", 0, "Split the CPU into so many devices, to try distribution.")
GIN_FILE = flags.DEFINE_multi_string(
    "gin_file",
    [],
    "Recipe or other gin file, on top of the mode's own; may be repeated (STAGE:FILE in all).",
)
GIN_PARAM = flags.DEFINE_multi_string(
    "gin_param",
    [],
    "One gin binding, such as EPOCHS=20; may be repeated (STAGE:BINDING in all).",
)
STAGE = flags.DEFINE_string(
    "stage", None, "With --mode=preview, plan or export_step: the training mode whose recipe is meant."
)
TOPOLOGY = flags.DEFINE_string(
    "topology", None, "The TPU to plan for: v3-8, v4-32, v5e-16, or its grid as in v4:2x2x4; or several with commas."
)
PRICE = flags.DEFINE_float("price", None, "What one chip costs for an hour, for --mode=plan.")
SEARCH = flags.DEFINE_bool(
    "search", None, "With --mode=plan: search the largest batch that fits (on unless --nosearch is given)."
)
PLAN_ENV = flags.DEFINE_string(
    "plan_env", None, "Environment that has the TPU compiler; .venv-plan of the clone without."
)
MAKE_PLAN_ENV = flags.DEFINE_bool(
    "make_plan_env", None, "Let --mode=plan install the TPU compiler where it is missing."
)
BATCHES = flags.DEFINE_integer("batches", None, "How many real batches --mode=export_step writes; 4 without.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Build everything, say what would be done, and stop.")


_COMMON_FLAGS = (
    *("mode", "workdir", "init_from", "teacher", "data_dir", "gin_file", "gin_param"),
    *("strategy", "virtual_devices", "dry_run"),
)


def described(flag: str) -> str:
    """A flag's help, without what absl adds to it."""
    return flags.FLAGS[flag].help.split(";\n")[0]


def help_text(full: bool) -> str:
    """What --help prints; with `full` every flag there is."""
    modes = [f"  {mode:<12} {operation.summary}" for mode, operation in OPERATIONS.items()]
    if full:
        shown = ["All flags:", flags.FLAGS.get_help()]
    else:
        common = [f"  --{flag:<16} {described(flag)}" for flag in _COMMON_FLAGS]
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


def parse_flags(argv: list[str]) -> list[str]:
    """Reads the flags of a command line, the program's name first; returns what belongs to none.

    Raises:
      UsageError: for what is no flag, or no value of one.
    """
    try:
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        raise UsageError(f"--{error.flagname} is unknown{suggest(error.flagname, list(flags.FLAGS), '--')}") from None
    except flags.Error as error:
        raise UsageError(str(error).splitlines()[0]) from None


def suggest(word: str, known: list[str], prefix: str = "") -> str:
    """The end of a message about an unknown word: the known one that was probably meant, else where all are."""
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"; did you mean {prefix}{close[0]}?"
    return "; see simclr --help" if prefix else f"; choose one of {', '.join(known)}"
