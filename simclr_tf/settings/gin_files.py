"""Where the shipped gin files lie, and which file a name on the command line or in an include means."""

from __future__ import annotations

import difflib
import os
import re

from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# In an installation the files lie inside the package, in a clone beside it. In site-packages, `gin` beside the package
# is gin-config's own folder, which has no `stages`.
_CANDIDATES = (os.path.join(_PACKAGE, "gin_files"), os.path.join(os.path.dirname(_PACKAGE), "gin"))
# Earlier versions had a recipe for each network, such as `imagenet_r101_2x`.
_OLD_NAME = re.compile(r"((?:.*/)?imagenet)_(r\d+(?:_\dx)?(?:_sk)?)(_memory|_self)?(\.gin)?")


def shipped_folder() -> str:
    """Returns the folder of the gin files that come with the package.

    Raises:
      UserError: where they are missing because the installation is broken.
    """
    for folder in _CANDIDATES:
        if os.path.isdir(os.path.join(folder, "stages")):
            return folder
    raise UserError(f"the gin files that belong to the package are not in {' or '.join(_CANDIDATES)}; install it again")


def shipped_files() -> list[str]:
    """Returns the sorted names of all shipped gin files, relative to their folder."""
    root = shipped_folder()
    return sorted(
        os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/")
        for folder, _, names in os.walk(root)
        for name in names
        if name.endswith(".gin")
    )


def is_shipped(path: str) -> bool:
    """Whether a path, however it is written, is one of the shipped files."""
    return os.path.realpath(path).startswith(os.path.realpath(shipped_folder()) + os.sep)


def stage_file(mode: str) -> str:
    """Returns the path of a mode's own gin file."""
    return os.path.join(shipped_folder(), "stages", f"{mode}.gin")


def default_recipe(mode: str) -> str | None:
    """Returns the path of a mode's recipe without --gin_file, `recipes/MODE/embedded_small.gin`, or None."""
    path = os.path.join(shipped_folder(), "recipes", mode, "embedded_small.gin")
    return path if os.path.isfile(path) else None


def find(name: str, *, folders: list[str], asked_by: str) -> str:
    """Finds a gin file.

    Args:
      name: A path or a shipped file's name, with or without ".gin".
      folders: Folders to search for a relative name, in this order; "" is the working directory.
      asked_by: The flag or include that names it, for the message.

    Raises:
      UserError: where there is no such file; suggests the most similar shipped names.
    """
    names = [name] if name.endswith(".gin") else [name, f"{name}.gin"]
    candidates = [os.path.join(folder, candidate) for folder in folders for candidate in names]
    # `gin/NAME`, as in a clone, works in every working directory.
    candidates += [os.path.join(shipped_folder(), name[4:]) for name in names if name.startswith("gin/")]
    for path in candidates:
        if tf.io.gfile.exists(path) and not tf.io.gfile.isdir(path):
            return path
    old = _OLD_NAME.fullmatch(name)
    split = old and f"models/{old[2]}.gin" in shipped_files()
    advice = _two_files(old, asked_by) if split else _nearest(name)
    raise UserError(f"{asked_by} names no file: {name!r} is not in {_places(folders)}{advice}")


def _two_files(old: re.Match, asked_by: str) -> str:
    """Says what to write for the old name of a recipe of one network."""
    names = (f"{old[1]}{old[3] or ''}", f"models/{old[2]}")
    flag = asked_by.startswith("--gin_file")
    written = [f"--gin_file={name}" if flag else f"include '{name}.gin'" for name in names]
    return f"; recipe and network are two files now: write {(' ' if flag else ' and ').join(written)}"


def _places(folders: list[str]) -> str:
    root = shipped_folder()
    named = []
    for folder in folders:
        inside = os.path.abspath(folder or ".") == root or folder.startswith(root + os.sep)
        place = "the working directory" if not folder else "the shipped gin files" if inside else folder
        if place not in named:
            named.append(place)
    return " or ".join(named)


def _nearest(name: str) -> str:
    wanted = name[:-4] if name.endswith(".gin") else name
    wanted = wanted[4:] if wanted.startswith("gin/") else wanted
    known = [file[:-4] for file in shipped_files()]
    # Users may remember only the last part of a name.
    lasts: dict[str, list[str]] = {}
    for file in known:
        lasts.setdefault(file.rsplit("/", 1)[-1], []).append(file)
    close = difflib.get_close_matches(wanted, known, n=2, cutoff=0.7)
    for last in difflib.get_close_matches(wanted.rsplit("/", 1)[-1], lasts, n=2, cutoff=0.6):
        close += [file for file in lasts[last] if file not in close]
    return f"; did you mean {' or '.join(close[:3])}?" if close else "; give the path of a gin file"
