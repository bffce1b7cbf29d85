r"""Windows paths: recognized, and spelled as WSL spells them."""

from __future__ import annotations

import re

from simclr_tf.core.errors import UserError, visible

_KIND = r"(?:[a-z_]{2,}:)?"  # As in folder:C:\photos.
_PATH = r"(?:[A-Za-z]:[\\/]|\\\\)"
_WHOLE = re.compile(rf"({_KIND})({_PATH}.*)")
# Searched in gin's source text: gin's parser reads the backslash of 'C:\new' as a line break.
_IN_TEXT = re.compile(rf"""(?:^|(?<=[\s'"=,(\[])){_KIND}{_PATH}[^'"#]*""")


def in_wsl(path: str) -> str:
    r"""Returns WSL's spelling of a Windows path; for a network share, with the command that mounts it.

    >>> in_wsl(r"C:\Users\me\photos"), in_wsl("d:/")
    ('/mnt/c/Users/me/photos', '/mnt/d')
    >>> in_wsl(r"\\wsl$\Ubuntu\home\me")
    '/home/me'
    >>> in_wsl(r"\\nas\pictures\2024")
    "/mnt/pictures/2024 after sudo mkdir -p /mnt/pictures && sudo mount -t drvfs '\\\\nas\\pictures' /mnt/pictures"
    """
    parts = [part for part in re.split(r"[\\/]+", path.strip()) if part and part not in "?."]
    if parts[:1] == ["UNC"]:  # The long spelling of a share, \\?\UNC\server\share.
        parts = parts[1:]
    if parts and re.fullmatch(r"[A-Za-z]:", parts[0]):
        return "/".join(["/mnt", parts[0][0].lower(), *parts[1:]])
    host, share, *rest = [*parts, *["share", "share"][len(parts) :]]
    if host.lower() in ("wsl$", "wsl.localhost"):
        return "/" + "/".join(rest)
    folder = f"/mnt/{share}"
    mounted = rf"sudo mkdir -p {folder} && sudo mount -t drvfs '\\{host}\{share}' {folder}"
    return f"{'/'.join([folder, *rest])} after {mounted}"


def refuse(value: str | None, given_as: str) -> None:
    """Raises a UserError for a Windows path, with or without a kind as in `folder:PATH`.

    Args:
      value: The value that the user gave.
      given_as: The flag or setting, for the message.
    """
    shown = visible(value or "")
    match = _WHOLE.fullmatch(shown)
    if match:
        raise UserError(
            f"{given_as} is {shown}, which is how Windows spells a path; in WSL it is {match[1]}{in_wsl(match[2])}"
        )


def refuse_in_gin(text: str, where: str, *, is_file: bool) -> None:
    """Raises a UserError for the first Windows path in the text of a gin file or binding.

    Args:
      text: The text as written, with backslashes not yet interpreted.
      where: The file, or the flag with its value.
      is_file: Whether `where` is a file.
    """
    for number, line in enumerate(text.splitlines(), start=1):
        match = _IN_TEXT.search(line.partition("#")[0])
        if match:
            name = line.partition("=")[0].strip() if "=" in line[: match.start()] else "a file"
            place = f"{where}:{number}" if is_file else where.partition("=")[0]
            refuse(match[0].strip(), f"{place}: {name}")
