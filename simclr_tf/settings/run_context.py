"""Where and how a command runs: what the flags say, and what becomes of its settings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from simclr_tf.core.errors import visible
from simclr_tf.core.tf import tf
from simclr_tf.distribute import cluster


class Settings:
    """What a command was configured with; this base class stands for calls from Python, which configure nothing.

    `simclr_tf.settings.gin_config` has the subclass for gin.
    """

    def check_read(self) -> None:
        """Raises a UserError where nothing has read a setting; called when everything is constructed."""

    def save(self, workdir: str, *, is_new: bool) -> None:
        """Writes what was asked for, once the run owns its workdir; `is_new` where no run was there before."""

    def save_operative(self, workdir: str) -> None:
        """Writes all values in use, after the first step."""

    def values(self) -> dict[str, str]:
        """Returns all values in use, name -> text, defaults included."""
        return {}


class RunContext(NamedTuple):
    """Where and how a command runs.

    Attributes:
      workdir: folder of the run.
      strategy: its devices.
      data_dir: where data sets lie, or None.
      init_from: workdir to take weights from, or None.
      teacher: workdir or SavedModel to imitate, or None.
      source: what to read, or None.
      output: where to write, or None for a file or folder in the workdir.
      queries: images to find neighbours of.
      dry_run: build and report only.
      settings: what was configured.
    """

    workdir: str
    strategy: tf.distribute.Strategy
    data_dir: str | None = None
    init_from: str | None = None
    teacher: str | None = None
    source: str | None = None
    output: str | None = None
    queries: tuple[str, ...] = ()
    dry_run: bool = False
    settings: Settings = Settings()

    @property
    def is_chief(self) -> bool:
        """Whether this is the one process of the run that prints and writes."""
        return cluster.role(self.strategy).is_chief

    def remark(self, remarks: Iterable[str]) -> None:
        """Prints a source's remarks, a line each; see `Source.remarks`."""
        for line in remarks:
            self.say(f"  {line}")

    def say(self, text: str) -> None:
        """Prints a line, in the one process of the run that does."""
        if self.is_chief:
            print(visible(text), flush=True)
