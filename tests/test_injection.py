"""Words of strangers that would steer a terminal, a shell, Markdown or Rich: each is shown or passed on as it is."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ldmkit import shipped
from ldmkit.cli import main
from ldmkit.export.card import escaped, model_card
from ldmkit.report import Reporter, command, printable, tell
from ldmkit.runtime.manifest import read_manifest

TERMINAL = (
    "\x1b[2J\x1b[H",  # clears the screen
    "\x1b]0;title\x07",
    "\x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x1b\\",
    "\x1b]52;c;cm0gLXJmIH4=\x07",  # the clipboard
    "\x1b[31mred",
    "\x9b2J",  # C1: the same in one character
    "\x9d0;title\x9c",
    "done\rerror",
    "a\nsaved",
    "\x08\x08\x08",
    "\x07",
    "\x0c",
    "\x0b",
    "\x7f",
    "a\u202egnp.exe",  # turns the direction of writing
    "\u2066a\u2069",
    "a\u2028b",
    "a\x85b",
    "\u200b",
)
MARKUP = ("[/red]", "[bold]", "[link=http://evil.example]x[/link]", ":cat:")
MARKDOWN = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![x](http://evil.example/x.png)",
    "[x](javascript:alert(1))",
    "<http://evil.example>",
    "[x]: http://evil.example",
    "a [x][y] [ ] [z]",
    "[ ] to do",
    "`code` | *a* _b_ **c** ~~d~~",
    "&lt;b&gt;",
    "- a list",
    "12. a list",
    "# a heading",
    "> a quotation",
    "--- \\",
    "a\n\n# two paragraphs",
)
SHELL = (
    "$(touch canary)",
    "`touch canary`",
    "'; touch canary; '",
    '"; touch canary; "',
    "a & touch canary",
    "a | tee canary",
    "a > canary",
    "* ~ $HOME",
    "-n 5",
    "--out=canary",
    "\\",
    "!!",
)


def test_there_are_forty_kinds() -> None:
    assert len({*TERMINAL, *MARKUP, *MARKDOWN, *SHELL}) >= 40


def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """All that `ldmkit ARGUMENTS...` prints."""
    monkeypatch.setattr(sys, "argv", ["ldmkit", *arguments])
    with pytest.raises(SystemExit):
        main()
    return "".join(capfd.readouterr())


@pytest.mark.parametrize("words", TERMINAL, ids=ascii)
def test_terminal(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a message, a key of a recipe, a value of it, a name of a component, the name of a bundle."""
    monkeypatch.chdir(tmp_path)
    tell(words)
    tell(words, err=True)
    said = "".join(capfd.readouterr())
    text = (Path(str(shipped.recipes_dir())) / "toy-cats.toml").read_text(encoding="utf-8")
    (tmp_path / "a.toml").write_text(f"{json.dumps(words)} = 1\n" + text, encoding="utf-8")
    text = text.replace('path = "data/toy-cats"', f"path = {json.dumps(words + 'x')}")
    (tmp_path / "b.toml").write_text(text, encoding="utf-8")
    for arguments in (
        ("recipe", "check", "a.toml"),
        ("recipe", "check", words),
        ("recipe", "show", "b.toml"),
        ("recipe", "show", "b.toml", "--json"),
        ("plugins", "sampler", words),
        ("generate", words, "--bundle", f"no {words}"),
        ("status", words),
    ):
        said += run(monkeypatch, capfd, *arguments)
    assert all(letter.isprintable() or letter == "\n" for letter in said), ascii(said)
    assert printable(words).splitlines() == [printable(words)]
    assert "Traceback" not in said


def test_what_is_shown_is_what_a_program_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """JSON stays JSON, TOML stays TOML."""
    import tomllib

    monkeypatch.chdir(tmp_path)
    text = (Path(str(shipped.recipes_dir())) / "toy-cats.toml").read_text(encoding="utf-8")
    path = "".join(TERMINAL) + "x"
    changed = text.replace('path = "data/toy-cats"', f"path = {json.dumps(path)}")
    assert changed != text
    (tmp_path / "b.toml").write_text(changed, encoding="utf-8")
    assert json.loads(run(monkeypatch, capfd, "recipe", "show", "b.toml", "--json"))["data"]["path"] == path
    assert tomllib.loads(run(monkeypatch, capfd, "recipe", "show", "b.toml"))["data"]["path"] == path


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_markup_in_the_names_of_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss may be called anything."""
    _, screen = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with os.fdopen(screen, "w") as terminal:
        written: list[str] = []
        monkeypatch.setattr(terminal, "write", written.append)
        monkeypatch.setattr(sys, "stdout", terminal)
        for words in (*MARKUP, *TERMINAL):
            written.clear()
            with Reporter().bar(words, 2) as bar:
                bar.advance(1, {words: 1.0})
                bar.advance(1)
            shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", "".join(written))  # Rich's own colours and movements
            assert printable(words) in shown
            assert all(letter.isprintable() or letter in "\r\n" for letter in shown), ascii(shown)


@pytest.mark.parametrize("words", [*MARKDOWN, *SHELL, *MARKUP], ids=ascii)
def test_markdown(words: str) -> None:
    """Rendered by another's reader of Markdown: the caption's own letters, and no element but the list's."""
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable(["table", "strikethrough"])
    rendered = markdown.render(f"1. {escaped(words)}\n")
    assert set(re.findall(r"<(/?\w+)", rendered)) == {"ol", "li", "/li", "/ol"}
    assert html.unescape(re.sub(r"<[^>]*>", "", rendered)).strip() == " ".join(words.split())


def card(caption: str) -> str:
    manifest = read_manifest(Path(str(shipped.exports_dir())) / "toy-cats")[0]
    return model_card(manifest, [caption, "a cat"])


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_shell(tmp_path: Path) -> None:
    """The card's line is pasted into a shell, and so is a command that a message suggests."""
    lines, expected = ["ldmkit() { printf '%s\\0' \"$@\"; printf '\\1'; }"], []
    for words in (*SHELL, *MARKDOWN):
        (line,) = (line for line in card(words).splitlines() if line.startswith("    ldmkit generate"))
        caption = " ".join(words.split())
        lines += [line, command("train", words)]
        expected += [["generate", "--bundle", "PATH_OF_THIS_FOLDER", *["--"] * words.startswith("-"), caption]]
        expected += [["train", words]]
    done = subprocess.run(["bash"], input="\n".join(lines), cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [called.split("\0")[:-1] for called in done.stdout.split("\1")[:-1]] == expected
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_python() -> None:
    """The card's lines of Python draw from the caption."""
    import ast

    for words in (f"{each} cat" for each in (*SHELL, *MARKDOWN, *TERMINAL, 'a "quoted"')):
        (line,) = (line.strip() for line in card(words).splitlines() if line.startswith("    Bundle.load"))
        call = next(node for node in ast.walk(ast.parse(line)) if isinstance(node, ast.Call) and node.keywords)
        assert ast.literal_eval(call.args[0]) == printable(" ".join(words.split()))


def test_a_message_has_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Recipes of 200 KB that took minutes: one key of many parts, and many keys that are none."""
    monkeypatch.chdir(tmp_path)
    makers: dict[str, Callable[[], str]] = {
        "deep": lambda: ".".join(["a"] * 100_000) + " = 1",
        "deep_table": lambda: "[" + " . ".join(['"a"', "b"] * 20_000) + "]",
        "many": lambda: "\n".join(f"unet.key{k} = 1" for k in range(12_000)),
        "long": lambda: f"{'a' * 200_000} = 1",
    }
    said: dict[str, Any] = {}
    for name, make in makers.items():
        (tmp_path / f"{name}.toml").write_text(make())
        said[name] = run(monkeypatch, capfd, "recipe", "check", f"{name}.toml")
    assert said["deep"] == "error: deep.toml: nested more than 16 tables deep, the most that a recipe may be\n"
    assert said["deep_table"] == said["deep"].replace("deep.toml", "deep_table.toml")
    assert "many.toml: more than 50 mistakes" in said["many"]
    for text in said.values():
        assert text.count("\n") <= 60
        assert max(map(len, text.splitlines())) < 3000
