"""Who may use the page where it is not for this machine alone: names and passwords, by HTTP's Basic scheme."""

import base64
import secrets
from collections.abc import Mapping
from pathlib import Path

from ldmkit.errors import LdmkitError


def read_passwords(file: Path) -> dict[str, str]:
    """Lines `NAME:PASSWORD`. Raises LdmkitError where the file cannot be read, or a line is another."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise LdmkitError(f"--auth {file}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        name, colon, password = line.partition(":")
        if not (name and colon and password) or name in found:
            raise LdmkitError(f"--auth {file}, line {number}: must be NAME:PASSWORD, each name once")
        found[name] = password
    if not found:
        raise LdmkitError(f"--auth {file}: holds no line NAME:PASSWORD, so that nobody could come in")
    return found


def is_known(authorization: str, passwords: Mapping[str, str]) -> bool:
    """Whether the header names one of `passwords`; how long it takes does not tell how much of it is right."""
    scheme, _, given = authorization.partition(" ")
    try:
        name, _, password = base64.b64decode(given, validate=True).decode().partition(":")
    except ValueError:
        return False
    right = secrets.compare_digest(password.encode(), passwords.get(name, "").encode())
    return scheme.lower() == "basic" and name in passwords and right
