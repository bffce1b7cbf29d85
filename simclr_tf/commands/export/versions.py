"""Numbered versions in a folder: writes new ones, deletes the oldest, and never deletes files that it did not write."""

from __future__ import annotations

import json
import os
import time
import uuid

from absl import logging

from simclr_tf.core.files import write_json, writing
from simclr_tf.core.tf import tf

# Lists the files that an export wrote. A folder without it was made by something else.
MARKER = "simclr_export.json"
_ASIDE = ".exporting."
_LONG_AGO = 24 * 3600  # Seconds.


def aside(parent: str) -> str:
    """Creates and returns a folder that no reader mistakes for a version; deletes what killed exports left long ago."""
    folder = os.path.join(parent, f"{_ASIDE}{uuid.uuid4().hex[:8]}")
    with writing(parent):
        tf.io.gfile.makedirs(folder)
        for name in (name.rstrip("/") for name in tf.io.gfile.listdir(parent)):
            path = os.path.join(parent, name)
            # Folders in buckets have no modification time.
            if name.startswith(_ASIDE) and "://" not in path and time.time() - os.path.getmtime(path) > _LONG_AGO:
                tf.io.gfile.rmtree(path)
    return folder


def publish(folder: str, parent: str, version: int) -> str:
    """Adds the marker to a finished folder, renames it to its version, and returns its path."""
    write_json(os.path.join(folder, MARKER), {"version": version, "files": _files(folder)})
    final = os.path.join(parent, str(version))
    tf.io.gfile.rename(folder, final)
    return final


def discard(folder: str) -> None:
    """Deletes a folder that `aside` created, unless it has been published."""
    if os.path.basename(folder).startswith(_ASIDE) and tf.io.gfile.exists(folder):
        tf.io.gfile.rmtree(folder)


def prune(parent: str, newest: int, keep: int) -> list[str]:
    """Deletes all but the newest versions.

    Only folders with our marker and a whole number for a name count as versions. Of these, only files that the marker
    lists are deleted; any other files stay.

    Args:
      parent: The folder of the versions.
      newest: The number of the version that was just made. Higher ones, from a longer run, stay and do not count.
      keep: The number of versions to keep, including `newest`.

    Returns:
      The folders that were emptied.
    """
    names = [name.rstrip("/") for name in tf.io.gfile.listdir(parent)]
    ours = {name: _listed(os.path.join(parent, name)) for name in names if name.isdigit() and int(name) <= newest}
    ours = {name: listed for name, listed in ours.items() if listed is not None}
    emptied = []
    for name in sorted(ours, key=int, reverse=True)[keep:]:
        folder, listed = os.path.join(parent, name), ours[name]
        for file in [*listed, MARKER]:  # A marker may be edited or damaged: never follow it outside the folder.
            path = os.path.normpath(os.path.join(folder, file)) if "://" not in folder else os.path.join(folder, file)
            inside = (
                path.startswith(folder.rstrip("/") + "/")
                or "://" not in folder
                and path.startswith(os.path.normpath(folder) + os.sep)
            )
            if inside and ".." not in file.split("/") and tf.io.gfile.exists(path) and not tf.io.gfile.isdir(path):
                tf.io.gfile.remove(path)
        _remove_empty(folder)
        emptied.append(folder)
    return emptied


def _listed(folder: str) -> list[str] | None:
    """Returns the files that a version's marker lists; None if it is missing or unreadable."""
    marker = read_details(folder, MARKER)
    if marker is None:
        return None
    try:
        return [str(file) for file in marker["files"]]
    except (KeyError, TypeError):
        logging.warning("%s/%s cannot be read; this version is left alone", folder, MARKER)
        return None


def _files(folder: str) -> list[str]:
    found = []
    for path, _, files in tf.io.gfile.walk(folder):
        inner = (
            os.path.relpath(path, folder) if "://" not in folder else path[len(folder.rstrip("/")) :].strip("/") or "."
        )
        found += [file if inner == "." else f"{inner}/{file}" for file in files]
    return sorted(found)


def _remove_empty(folder: str) -> None:
    for path, _, _ in sorted(tf.io.gfile.walk(folder), key=lambda entry: -len(entry[0])):
        if not tf.io.gfile.listdir(path):
            tf.io.gfile.rmtree(path)


def read_details(folder: str, name: str) -> dict | None:
    """Returns the content of a version's JSON file; None if it is missing or is not JSON."""
    path = os.path.join(folder, name)
    if not tf.io.gfile.exists(path):
        return None
    try:
        return json.loads(tf.io.gfile.GFile(path).read())
    except ValueError:
        return None
