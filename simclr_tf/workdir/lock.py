"""One run a workdir.

On a local folder the operating system's file lock does it, which ends with its process however that ends. Elsewhere
(a bucket) the run keeps a lease: a file that it rewrites every few seconds. Whoever finds one watches it: a lease that
changes has a living owner, one that stays the same for long enough has not. No clocks are compared.
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
    """The folder's path for the operating system, None where it lies elsewhere."""
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
    """Keeps a workdir for this process while it is entered."""

    def __init__(self, workdir: str, *, beat_seconds: float = 15.0, stale_seconds: float = 60.0):
        """Prepares the lock.

        Args:
          workdir: the folder, made if it is not there.
          beat_seconds: time between two signs of life, where the file system has no locks.
          stale_seconds: a lease without a sign of life for so long is given up.
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
        """Takes the workdir.

        Raises:
          UserError: where another run has it, or it cannot be written to.
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
        """Gives it up. The file of a file lock stays: removing it would let two runs lock two files of one name."""
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
                pass  # The bucket is gone; the lease is given up all the same, once it is stale.

    def check(self) -> None:
        """To be called before what another owner must not see overwritten.

        Raises:
          UserError: where another run took the workdir over, because no sign of life reached it for too long.
        """
        if self._thread is not None:
            with contextlib.suppress(tf.errors.OpError):  # A bucket that is away for a while.
                self._notice(self._read_lease())
        if self._lost is not None:
            raise UserError(self._lost)

    @property
    def lost(self) -> bool:
        """Whether another run was found to have taken the workdir over."""
        return self._lost is not None

    def _take_file_lock(self) -> bool:
        """Returns False where the file system has no locks (some network ones)."""
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
        os.set_inheritable(file, False)
        self._file = file
        try:
            os.ftruncate(file, 0)
            os.write(file, json.dumps(_owner()).encode())
        except OSError:
            pass  # A full disk. The lock holds without a name in it; who holds it is for messages only.
        return True

    def _read_lease(self) -> dict:
        try:
            with tf.io.gfile.GFile(self._path) as file:
                # Not all of "the file": how long that is may be some seconds old, and the lease has grown since.
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
                f"--workdir={self._workdir} was taken by process {found.get('pid')} on {found.get('host')}; watching "
                f"for {self._stale_seconds:g}s whether it is alive",
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
        # Of several that write at the same moment the last one stays.
        time.sleep(min(1.0, self._beat_seconds / 4))
        now = self._read_lease()
        if now.get("token") != self._token:
            raise _in_use(self._workdir, now)
        self._thread = threading.Thread(target=self._beat, daemon=True, name="workdir lease")
        self._thread.start()

    @staticmethod
    def _is_dead(owner: dict) -> bool:
        """Whether the owner was a process of this machine that is no more; False where this cannot be known."""
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
        """Remembers whose lease this is where it is another's."""
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
                continue  # A bucket may be away for a while; whoever waits for it gives up later than this.
