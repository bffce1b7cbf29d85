"""The lock on a workdir, so that only one run writes there.

In a local folder the lock is the operating system's file lock, which ends with its process however that ends. Elsewhere
(in a bucket) it is a lease: a file that the run rewrites every few seconds. A process that finds a lease watches it. If
the lease changes, its owner is alive; if it stays the same for long enough, the owner is dead. No clocks are compared.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
import sys
import threading
import time
import uuid

from simclr_tf.core.errors import UserError, first_line
from simclr_tf.core.files import refusal, write_text
from simclr_tf.core.tf import tf

LOCK = "lock.json"


def _local(workdir: str) -> str | None:
    """Returns the folder's path for the operating system, or None if it is not a local folder."""
    if workdir.startswith("file://"):
        return workdir[len("file://") :]
    return None if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", workdir) else workdir


def _in_use(workdir: str, owner: dict) -> UserError:
    who = f"process {owner.get('pid')} on {owner.get('host')}" if owner.get("pid") else "another process"
    return UserError(f"--workdir={workdir} is in use by {who}; wait for it, stop it, or use another --workdir")


def _owner() -> dict:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _parse(text: str) -> dict:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


class WorkdirLock:
    """Context manager that holds a workdir for this process."""

    def __init__(self, workdir: str, *, beat_seconds: float = 15.0, stale_seconds: float = 60.0):
        """Prepares the lock.

        Args:
          workdir: folder of the run; created if it does not exist.
          beat_seconds: seconds between two heartbeats of a lease.
          stale_seconds: seconds without a heartbeat after which a lease counts as abandoned.
        """
        self._workdir = workdir
        self._path = os.path.join(workdir, LOCK)
        self._beat_seconds, self._stale_seconds = beat_seconds, stale_seconds
        self._file = None
        self._token = uuid.uuid4().hex
        self._beats = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._lost: str | None = None

    def __enter__(self) -> WorkdirLock:
        """Takes the lock.

        Raises:
          UserError: if another run has it, or the workdir cannot be written to.
        """
        try:
            tf.io.gfile.makedirs(self._workdir)
            if _local(self._workdir) is None or not self._take_file_lock():
                self._take_lease()
        except (OSError, tf.errors.OpError) as error:
            raise refusal(self._workdir, error)(
                f"--workdir={self._workdir} cannot be written to ({first_line(error)}); choose another folder"
            ) from None
        return self

    def __exit__(self, *exc_info) -> None:
        """Releases the lock. A locked file is not deleted: otherwise two runs could lock two files of the same name."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            self._thread = None
            try:
                if self._read_lease().get("token") == self._token:
                    tf.io.gfile.remove(self._path)
            except tf.errors.OpError:
                pass  # The bucket is unreachable. The lease will be stale soon, which also releases it.

    def check(self) -> None:
        """Checks that the lock still holds; call this before overwriting files that a new owner may have written.

        Raises:
          UserError: if another run took over the workdir, because it saw no heartbeat for too long.
        """
        if self._thread is not None:
            with contextlib.suppress(tf.errors.OpError):  # The bucket may be unreachable for a while.
                self._notice(self._read_lease())
        if self._lost is not None:
            raise UserError(self._lost)

    @property
    def lost(self) -> bool:
        """Whether another run is known to have taken over the workdir."""
        return self._lost is not None

    def _take_file_lock(self) -> bool:
        """Locks the file; returns False if the file system has no locks, as some network ones."""
        path = os.path.join(_local(self._workdir), LOCK)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = _parse(os.read(file, 4096).decode(errors="replace"))
            os.close(file)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise _in_use(self._workdir, owner) from None
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                return False
            raise
        self._file = file
        try:
            os.ftruncate(file, 0)
            os.write(file, json.dumps(_owner()).encode())
        except OSError:
            pass  # The disk is full. The lock holds all the same: the owner's name is only for messages.
        return True

    def _read_lease(self) -> dict:
        try:
            with tf.io.gfile.GFile(self._path) as file:
                # `read()` would stop at a cached file size that may be seconds old, and the lease grows.
                return _parse(file.read(4096))
        except tf.errors.NotFoundError:
            return {}

    def _write_lease(self) -> None:
        self._beats += 1
        write_text(self._path, json.dumps({**_owner(), "token": self._token, "beats": self._beats}))

    def _take_lease(self) -> None:
        found = self._read_lease()
        if found and not self._is_dead(found):
            print(
                f"--workdir={self._workdir} was taken by process {found.get('pid')} on {found.get('host')}; checking "
                f"for {self._stale_seconds:g}s whether that process is alive",
                file=sys.stderr,
                flush=True,
            )
            deadline = time.monotonic() + self._stale_seconds
            while time.monotonic() < deadline:
                time.sleep(min(1.0, self._beat_seconds / 4))
                now = self._read_lease()
                if not now:
                    break
                if now != found:
                    raise _in_use(self._workdir, now)
        self._write_lease()
        # If several processes write at the same moment, the last one has the lease.
        time.sleep(min(1.0, self._beat_seconds / 4))
        now = self._read_lease()
        if now.get("token") != self._token:
            raise _in_use(self._workdir, now)
        self._thread = threading.Thread(target=self._beat, daemon=True, name="workdir lease")
        self._thread.start()

    @staticmethod
    def _is_dead(owner: dict) -> bool:
        """Whether the owner was a process on this machine that has ended; False if this cannot be known."""
        if owner.get("host") != socket.gethostname() or not isinstance(owner.get("pid"), int):
            return False
        try:
            os.kill(owner["pid"], 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False

    def _notice(self, lease: dict) -> None:
        """Notes a lost lock if the lease is another run's."""
        if lease and lease.get("token") != self._token:
            self._lost = str(_in_use(self._workdir, lease))

    def _beat(self) -> None:
        while not self._ended.wait(self._beat_seconds):
            try:
                self._notice(self._read_lease())
                if self.lost:
                    return
                self._write_lease()
            except (UserError, tf.errors.OpError):
                continue  # The bucket may be unreachable for a while; the next heartbeat tries again.
