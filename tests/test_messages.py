"""How messages are written, read off the source."""

import ast
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
RAISED = {"LdmkitError", "UsageError", "BadParameter", "ClickException", "BadOptionUsage", "NoSuchOption"}


def said(call: ast.Call) -> bool:
    """Whether the call's first argument is a message to the user."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return name in RAISED or name == "warn" or (name == "fail" and isinstance(call.func, ast.Attribute))


def endings(node: ast.AST, local: dict[str, list[ast.expr]]) -> Iterator[str]:
    """The literal ends that the message may have; of a local name, those of all that it is set to."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=[*_, last]):
            yield from endings(last, local)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            found = list(endings(right, local))
            yield from found
            if "" in found:  # `+ (more if there is more else "")`
                yield from endings(left, local)
        case ast.IfExp(body=body, orelse=orelse):
            yield from endings(body, local)
            yield from endings(orelse, local)
        case ast.Name(id=name):
            for value in local.get(name, []):
                yield from endings(value, {})


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """(line, end) of each message of LdmkitError, of click's errors and of warnings.warn that stands in the file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for function in [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))]:
        local: dict[str, list[ast.expr]] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                local.setdefault(node.targets[0].id, []).append(node.value)
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and said(node) and node.args:
                yield from ((node.lineno, end) for end in endings(node.args[0], {} if function is tree else local))


def test_no_message_ends_in_a_full_stop() -> None:
    paths = [path for folder in ("ldmkit", "plugins") for path in sorted((REPOSITORY / folder).rglob("*.py"))]
    found = {(path.relative_to(REPOSITORY), line, end) for path in paths for line, end in messages(path)}
    assert len(found) > 250  # or it looks in the wrong place
    stops = [f"{path}:{line}: {end}" for path, line, end in sorted(found) if end.rstrip().endswith(".")]
    assert not stops, "\n".join(stops)
