"""The flags of the command line, and the text of --help."""

from __future__ import annotations

import difflib

from absl import flags

from simclr_tf.core.errors import UsageError
from simclr_tf.settings.modes import OPERATIONS

MODE = flags.DEFINE_string("mode", None, "What to do: one of the modes above.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, records and results. Local or remote.")
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of data sets. tfds: stores its data there; paths after folder: are relative to it."
)
INIT_FROM = flags.DEFINE_string(
    "init_from",
    None,
    "Workdir (or embedded:NAME) whose network to start from.",
)
TEACHER = flags.DEFINE_string("teacher", None, "Workdir of a fine-tuned run, or a SavedModel, whose logits to imitate.")
SOURCE = flags.DEFINE_string(
    "source",
    None,
    "Published checkpoint (convert), images such as folder:PATH (embed) or vectors (neighbors) to read.",
)
OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Where to write: vectors.npz, .parquet or .tfrecord (embed), a folder (export), a picture (neighbors), a page "
    "(report).",
)
QUERY = flags.DEFINE_multi_string(
    "query", [], "Image file, or a name in --source, whose neighbors to find; may be repeated."
)
STRATEGY = flags.DEFINE_string("strategy", "auto", "auto, one_device, mirrored, multi_worker or tpu.")
TPU = flags.DEFINE_string("tpu", "", "'local' on a TPU VM, or a TPU's name or grpc address.")
VIRTUAL_DEVICES = flags.DEFINE_integer(
    "virtual_devices", 0, "Split the CPU into this many devices, to try distribution."
)
GIN_FILE = flags.DEFINE_multi_string(
    "gin_file",
    [],
    "Recipe or other gin file, on top of the mode's own; may be repeated (STAGE:FILE with --mode=all).",
)
GIN_PARAM = flags.DEFINE_multi_string(
    "gin_param",
    [],
    "One gin binding, such as EPOCHS=20; may be repeated (STAGE:BINDING with --mode=all).",
)
STAGE = flags.DEFINE_string(
    "stage", None, "With --mode=preview, plan or export_step: the training mode whose recipe to use."
)
TOPOLOGY = flags.DEFINE_string(
    "topology",
    None,
    "TPU to plan for, such as v3-8 or v5e-16, or its grid, such as v4:2x2x4; several separated by commas.",
)
PRICE = flags.DEFINE_float("price", None, "Price of one chip for an hour, for --mode=plan.")
SEARCH = flags.DEFINE_bool(
    "search", None, "With --mode=plan: search for the largest batch that fits (the default; --nosearch turns it off)."
)
PLAN_ENV = flags.DEFINE_string(
    "plan_env", None, "Python environment with the TPU compiler; by default .venv-plan in the clone."
)
MAKE_PLAN_ENV = flags.DEFINE_bool("make_plan_env", None, "Let --mode=plan install the TPU compiler if it is missing.")
BATCHES = flags.DEFINE_integer("batches", None, "Number of real batches that --mode=export_step writes; 4 by default.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Build everything, report what would be done, and stop.")


_COMMON_FLAGS = (
    *("mode", "workdir", "init_from", "teacher", "data_dir", "gin_file", "gin_param"),
    *("strategy", "virtual_devices", "dry_run"),
)


def described(flag: str) -> str:
    """Returns a flag's help text, without what absl adds to it."""
    return flags.FLAGS[flag].help.split(";\n")[0]


def help_text(full: bool) -> str:
    """Returns what --help prints, with all flags if `full`."""
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
    """Reads the flags of a command line that starts with the program's name; returns the arguments that are no flags.

    Raises:
      UsageError: for an unknown flag or a value that the flag does not take.
    """
    try:
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        raise UsageError(f"--{error.flagname} is unknown{suggest(error.flagname, list(flags.FLAGS), '--')}") from None
    except flags.Error as error:
        raise UsageError(str(error).splitlines()[0]) from None


def suggest(word: str, known: list[str], prefix: str = "") -> str:
    """Returns the end of a message about an unknown word: the known word that was meant, else where all are."""
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"; did you mean {prefix}{close[0]}?"
    return "; see simclr --help" if prefix else f"; choose one of {', '.join(known)}"
