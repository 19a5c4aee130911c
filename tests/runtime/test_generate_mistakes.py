"""`ldmkit generate` as its user meets it: the code it leaves with, one line, and nothing written."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ldmkit import shipped
from ldmkit.cli import main

MakeBundle = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `ldmkit generate ARGUMENTS...`; the last argument is the exit code it must have."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, code: int) -> str:
        monkeypatch.setattr(sys, "argv", ["ldmkit", "generate", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        assert end.value.code == code, err
        assert (err == "") == (code == 0)
        return out + err

    return call


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--sampler", "eluer"], 'did you mean "euler"'),
        (["--out", "manifest.json"], "error: --out manifest.json is a file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_out_of_range(arguments: list[str], expected: str, make_bundle: MakeBundle, run: Callable[..., str]) -> None:
    bundle = make_bundle()
    (bundle.parents[1] / "manifest.json").write_text("{}")
    message = run("red cat", *arguments, code=1)
    assert expected in message
    assert message.count("\n") == 1
    assert not Path("outputs").exists()


def test_an_empty_prompt_is_no_prompt(make_bundle: MakeBundle, run: Callable[..., str]) -> None:
    make_bundle()
    drawn = [json.loads(run(*prompt, "--json", "--provider", "cpu", code=0)) for prompt in ([], [""], ["  "])]
    pictures = [Path(each["pictures"][0]["path"]).read_bytes() for each in drawn]
    assert [each["prompt"] for each in drawn] == [""] * 3
    assert pictures[0] == pictures[1] == pictures[2]


def test_what_is_no_bundle(run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is not a bundle" in run("cat", "--bundle", str(tmp_path), code=1)
    assert run("cat", "--bundle", "nowhere", code=1).startswith("error: nowhere")
    monkeypatch.setattr(shipped, "exports_dir", lambda: None)
    assert run("cat", code=1).startswith("error: there is no bundle in exports: `ldmkit export onnx` writes one")
