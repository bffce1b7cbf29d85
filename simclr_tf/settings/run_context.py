"""Where and how a command runs: what the flags say, and how its settings are checked and saved."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from simclr_tf.core.errors import visible
from simclr_tf.core.tf import tf
from simclr_tf.distribute import cluster


class Settings:
    """The settings of a command. These are for calls from Python, which have no configuration to check or save.

    The module `simclr_tf.settings.gin_config` has functions of the same names for gin.
    """

    def check_read(self) -> None:
        """Raises a UserError for settings that nothing has read; called once everything is constructed."""

    def save(self, workdir: str, *, is_new: bool) -> None:
        """Writes what was asked for, once the run owns its workdir; `is_new` says that no run was there before."""

    def save_operative(self, workdir: str) -> None:
        """Writes all values in use, after the first step."""

    def values(self) -> dict[str, str]:
        """Returns all values in use, defaults included: name -> text."""
        return {}


class RunContext(NamedTuple):
    """Where and how a command runs.

    Attributes:
      workdir: The run's folder.
      strategy: The distribution strategy, which holds the devices.
      data_dir: The folder of data sets, or None.
      init_from: The workdir to take weights from, or None.
      teacher: The workdir or SavedModel to imitate, or None.
      source: The checkpoint, images or vectors to read, or None.
      output: The file or folder to write; None for one in the workdir.
      queries: Images whose neighbors to find.
      dry_run: Whether to build and report only.
      settings: The command's settings.
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
        """Whether this process is the chief, the only one of the run that prints and writes."""
        return cluster.role(self.strategy).is_chief

    def remark(self, remarks: Iterable[str]) -> None:
        """Prints a source's remarks, one a line; see `Source.remarks`."""
        for line in remarks:
            self.say(f"  {line}")

    def say(self, text: str) -> None:
        """Prints a line, in the chief process only."""
        if self.is_chief:
            print(visible(text), flush=True)
