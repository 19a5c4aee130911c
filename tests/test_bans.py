"""What the source never does with others' files, read off its syntax; ruff's TID251 bans what a name alone tells."""

import ast
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
SOURCES = [path for folder in ("ldmkit", "plugins") for path in sorted((REPOSITORY / folder).rglob("*.py"))]
# Weights that exist as .pth alone: the original's checkpoints, the backbone of LPIPS with its own linear layers, and
# those that come with EfficientNet-Lite0's package; TAESD's.
MAY_LOAD_PTH = {
    "ldmkit/models/convert.py",
    "ldmkit/models/pretrained.py",
    "plugins/ldmkit_lpips.py",
    "ldmkit/evaluation/features.py",
}
MODULES = {
    "pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "yaml",
    "tarfile",
    "subprocess",
    "pty",
    "xml",
}
# It asks the driver's own program and this very interpreter; no word of either call comes from a file.
# The page's runtime is fetched by npm itself, by names and versions that stand in the source.
MAY_START_PROGRAMS = {"ldmkit/doctor.py", "ldmkit/web/packages.py"}
# It reads headers alone by it, and extracts nothing.
MAY_IMPORT_TARFILE = {"ldmkit/data/archives.py", "ldmkit/data/tar_headers.py"}
BUILTINS = {"eval", "exec", "compile", "__import__", "input"}
METHODS = {"extractall", "unpack_archive", "system", "popen", "fork", "execv", "execve", "spawnl", "spawnv", "mktemp"}
# The registry runs the plugins that the user names, the stages import each other's modules by names of our own.
MAY_EXEC_MODULE = {"ldmkit/components/registry.py"}


def bans(tree: ast.AST, name: str) -> Iterator[tuple[int, str]]:
    """(line, what is wrong) of each use that is banned in the file called `name`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for module in modules:
                if module == "subprocess" and name in MAY_START_PROGRAMS:
                    continue
                if module == "tarfile" and name in MAY_IMPORT_TARFILE:
                    continue
                if module.split(".")[0] in MODULES:
                    yield node.lineno, f"imports {module}"
        if not isinstance(node, ast.Call):
            continue
        called, keywords = ast.unparse(node.func), {word.arg: word.value for word in node.keywords}
        last = called.split(".")[-1]
        if called in BUILTINS:
            yield node.lineno, f"calls {called}"
        if "." in called and last in METHODS and called != "platform.system":  # which only tells
            yield node.lineno, f"calls {called}"
        if called in ("print", "click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write"):
            yield node.lineno, f"{called}: report.tell shows control characters, and survives a closed terminal"
        if last == "exec_module" and name not in MAY_EXEC_MODULE:
            yield node.lineno, f"calls {called}"
        if called == "torch.load":
            if name not in MAY_LOAD_PTH:
                yield node.lineno, "torch.load: safetensors hold weights"
            if not _is(keywords.get("weights_only"), True):
                yield node.lineno, "torch.load without weights_only=True"
        if called in ("torch.jit.load", "torch.hub.load", "torch.package.PackageImporter"):
            yield node.lineno, f"{called} runs code"
        if called in ("np.load", "numpy.load", "np.save", "np.savez") and not _is(keywords.get("allow_pickle"), False):
            yield node.lineno, f"{called} without allow_pickle=False"
        if "trust_remote_code" in keywords and not _is(keywords["trust_remote_code"], False):
            yield node.lineno, "trust_remote_code"
        if called.endswith(".from_pretrained") or any(
            ast.unparse(given).endswith(".from_pretrained") for given in node.args
        ):
            given_class = " ".join([called, *map(ast.unparse, node.args)])
            if "Auto" in given_class and not _is(keywords.get("trust_remote_code"), False):
                yield node.lineno, f"{given_class} may ask to run a repository's code"
            weightless = any(kind in given_class for kind in ("Config", "Tokenizer", "Processor"))
            # `weights` is load_pretrained's, which then reads safetensors alone.
            if not weightless and not any(_is(keywords.get(word), True) for word in ("use_safetensors", "weights")):
                yield node.lineno, f"{given_class} may read a pickle"
        if _is(keywords.get("shell"), True):
            yield node.lineno, "shell=True"


def _is(node: ast.AST | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def test_nothing_that_could_run_a_file_of_data() -> None:
    found = []
    for path in SOURCES:
        name = path.relative_to(REPOSITORY).as_posix()
        found += [f"{name}:{line}: {what}" for line, what in bans(ast.parse(path.read_text(encoding="utf-8")), name)]
    assert found == []
    assert len(SOURCES) > 100


BANNED = (
    "import pickle",
    "from pickle import load",
    "import yaml",
    "import tarfile",
    "from xml.etree import ElementTree",
    "import subprocess",
    "eval('1')",
    "exec('1')",
    "__import__('os')",
    "compile('1', 'x', 'exec')",
    "archive.extractall(folder)",
    "os.system('x')",
    "torch.load(path)",
    "torch.load(path, weights_only=True)",
    "torch.jit.load(path)",
    "np.load(path)",
    "np.load(path, allow_pickle=True)",
    "AutoModel.from_pretrained(x, trust_remote_code=True)",
    "self._load(AutoConfig.from_pretrained)",
    "self._load(CLIPTextModel.from_pretrained, dtype=x)",
    "self._load(Florence2ForConditionalGeneration.from_pretrained, weights=False)",
    "run(x, shell=True)",
    "spec.loader.exec_module(module)",
    "print(name)",
    "click.echo(name)",
    "sys.stderr.write(name)",
)


def test_each_ban_finds_what_it_bans() -> None:
    assert [code for code in BANNED if not list(bans(ast.parse(code), "ldmkit/components/hub.py"))] == []


def test_weights_only_is_asked_for_where_pth_is_read() -> None:
    for name in MAY_LOAD_PTH:
        assert list(bans(ast.parse("torch.load(path)"), name))
        assert not list(bans(ast.parse("torch.load(path, weights_only=True)"), name))
        assert "torch.load" in (REPOSITORY / name).read_text()
