"""Watches what the interpreter is asked to do: code, processes, sockets, and files outside of the allowed folders."""

import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Never asked for by whoever only reads data. `compile` and `exec` are judged by where the code comes from.
FORBIDDEN = (
    "subprocess.Popen",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.kill",
    "os.posix_spawn",
    "os.putenv",
    "os.spawn",
    "os.startfile",
    "os.system",
    "pty.spawn",
    "ctypes.",
    "pickle.find_class",
    "socket.",
    "urllib.Request",
    "webbrowser.open",
    "builtins.input",
    "cpython.run_",
    "code.__new__",
    "setopcode",
    "sys.settrace",
    "sys.setprofile",
    "os.link",
    "os.symlink",
)
PATHS = {
    "open": (0,),
    "os.chmod": (0,),
    "os.chown": (0,),
    "os.listdir": (0,),
    "os.mkdir": (0,),
    "os.remove": (0,),
    "os.rename": (0, 1),
    "os.rmdir": (0,),
    "os.scandir": (0,),
    "os.truncate": (0,),
    "os.utime": (0,),
    "shutil.copyfile": (0, 1),
    "shutil.move": (0, 1),
    "shutil.rmtree": (0,),
}
"""event -> which of its arguments are paths"""
FOLDERS = {"os.chmod": 2, "os.mkdir": 2, "os.remove": 1, "os.rmdir": 1}
"""event -> which argument is the open folder that a relative path starts from; -1: the working folder"""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """What a block of code did that it should not have: `executed` and `outside` list it."""

    def __init__(self) -> None:
        self.executed: list[str] = []
        self.outside: list[str] = []
        self.seen = 0
        """events looked at, so that a watch which sees nothing is noticed"""
        self._roots: tuple[str, ...] = ()
        self._active = False
        repository = Path(__file__).parents[2]
        paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
        paths |= {str(repository / name) for name in ("ldmkit", "plugins", "tests", "benchmarks", "fuzz")}
        # Whatever Python's own path leads to is code that was installed; it may be read and imported.
        paths |= {os.path.realpath(path) for path in [*sys.path, *paths] if path}
        self._code = tuple(os.path.realpath(path) + os.sep for path in paths)
        self._read = ("/proc/", "/sys/", "/dev", "/etc/mime.types", "/usr/share/zoneinfo")

    @contextmanager
    def over(self, *roots: Path) -> Iterator["Watch"]:
        """Watches the block, which may read and write below `roots` and read what Python's path leads to."""
        self._roots = tuple(os.path.realpath(root) for root in roots)
        self._active = True
        try:
            yield self
        finally:
            self._active = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._active:
            return
        self._active = False  # what is asked in here is ours
        try:
            self.seen += 1
            self._look(event, arguments)
        finally:
            self._active = True

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("exec", "compile"):
            name = arguments[0].co_filename if event == "exec" else arguments[1]
            name = os.fsdecode(name) if isinstance(name, bytes) else str(name)
            if not self._is_installed(name) and not self._made_by_library():
                self.executed.append(f"{event} {name}")
        elif event.startswith(FORBIDDEN):
            self.executed.append(f"{event} {arguments!r:.200}")
        elif event in PATHS:
            writes = event not in ("open", "os.listdir", "os.scandir") or (event == "open" and _writes(arguments))
            start = arguments[FOLDERS[event]] if event in FOLDERS else -1
            below = os.readlink(f"/proc/self/fd/{start}") if start >= 0 else ""  # noqa: PTH115 - less to be watched
            for named in (arguments[place] for place in PATHS[event]):
                if isinstance(named, str | bytes | os.PathLike):  # else an open file
                    self._touched(os.path.realpath(os.path.join(below, os.fsdecode(named))), writes)  # noqa: PTH118

    def _touched(self, path: str, writes: bool) -> None:
        inside = any(path == root or path.startswith(root + os.sep) for root in self._roots)
        readable = not writes and (self._is_installed(path) or path.startswith(self._read))
        if not inside and not readable:
            self.outside.append(f"{'write' if writes else 'read'} {path}")

    def _is_installed(self, path: str) -> bool:
        if path.startswith("<"):  # no file at all
            return path.startswith("<frozen")
        return (os.path.realpath(path) + os.sep).startswith(self._code)

    @staticmethod
    def _made_by_library() -> bool:
        """Whether one of the modules makes the code that do so from the fields of a class, as dataclasses does, or
        that only parse, as ast.literal_eval does the header of an .npy file."""
        maker = str(sys._getframe(3).f_globals.get("__name__", "")).split(".")[0]
        return maker in ("dataclasses", "collections", "typing", "enum", "functools", "pydantic", "ast")


def _writes(arguments: tuple[Any, ...]) -> bool:
    mode, flags = arguments[1], arguments[2]
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool(isinstance(flags, int) and flags & WRITES)
