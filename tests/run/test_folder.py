"""Parts and their records, the lock, the metrics log, and what appears whole or not at all."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ldmkit.atomic import new_folder, sweep, write_atomic
from ldmkit.errors import LdmkitError
from ldmkit.run.files import check, fingerprint
from ldmkit.run.folder import Part, Status
from ldmkit.run.lock import locked
from ldmkit.run.metrics import MetricsLog, read_metrics

INPUTS = {"pictures": "a" * 64, "vae": {"steps": 10, "channels": (4, 8), "rate": 0.1}}


def test_fingerprint() -> None:
    # The very bytes are part of the format: another hash would make every run stale.
    assert fingerprint({"b": [1, 0.5], "a": "é"}) == hashlib.sha256(b'{"a":"\\u00e9","b":[1,0.5]}').hexdigest()


def test_life_of_a_part(tmp_path: Path) -> None:
    part = Part(tmp_path / "vae", "vae", INPUTS)
    assert part.status().state == "missing"
    with pytest.raises(LdmkitError, match="vae: not finished"):
        part.record()
    part.begin()
    assert part.status().state == "interrupted"
    (part.folder / "weights").write_text("1")
    part.begin()  # goes on with what is there
    part.finish(2.04, facts={"psnr": 20.0})
    assert (part.folder / "weights").read_text() == "1"
    again = Part(tmp_path / "vae", "vae", json.loads(json.dumps(INPUTS)))  # a tuple is the list it is read back as
    assert again.status().state == "done"
    assert again.record()["facts"] == {"psnr": 20.0}
    assert again.record()["seconds"] == 2.0


def test_stale_part_is_set_aside_with_the_reason(tmp_path: Path) -> None:
    for round_, rate in enumerate((0.1, 0.2, 0.3)):
        vae = {"steps": 10, "channels": [4, 8], "rate": rate}
        part = Part(tmp_path / "vae", "vae", {"pictures": str(round_) * 64, "vae": vae})
        if round_:
            status = part.status()
            assert status.state == "stale"
            assert status.reason == f"pictures changed; vae.rate: {rate - 0.1:g} -> {rate}"
        part.begin()
        (part.folder / "weights").write_text(str(rate))
        part.finish(1)
    assert (tmp_path / "vae" / "weights").read_text() == "0.3"
    assert [(tmp_path / "stale" / f"vae-{i}" / "weights").read_text() for i in (1, 2)] == ["0.1", "0.2"]


@pytest.mark.parametrize("record", ["", "{", "[]", '{"inputs": {}}', "\ud800".encode("utf-8", "surrogatepass")])
def test_damaged_record(record: str | bytes, tmp_path: Path) -> None:
    part = Part(tmp_path / "vae", "vae", INPUTS)
    part.folder.mkdir()
    (part.folder / "record.json").write_bytes(record.encode() if isinstance(record, str) else record)
    assert part.status() == Status("damaged", "record.json is damaged", whole=False)
    with pytest.raises(LdmkitError, match=r"vae/record\.json is damaged; `ldmkit train-vae RECIPE`"):
        check(part.folder / "model.safetensors")
    part.begin()
    assert part.status().state == "interrupted"


def test_folder_of_unknown_origin_is_set_aside(tmp_path: Path) -> None:
    """Nothing is resumed from checkpoints that no record vouches for."""
    (tmp_path / "vae" / "checkpoints").mkdir(parents=True)
    part = Part(tmp_path / "vae", "vae", INPUTS)
    part.begin()
    assert [path.name for path in part.folder.iterdir()] == ["record.json"]
    assert (tmp_path / "stale" / "vae-1" / "checkpoints").is_dir()


def hold(folder: Path, rest: str) -> "subprocess.Popen[str]":
    """A process that locks the folder and runs these lines."""
    head = f"import os, time, pathlib, ldmkit.run.lock\nwith ldmkit.run.lock.locked(pathlib.Path({str(folder)!r})):\n"
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-c", head + "".join(f"    {line}\n" for line in rest.splitlines())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )


def test_lock(tmp_path: Path) -> None:
    with hold(tmp_path / "run", "print('mine', flush=True)\ntime.sleep(60)") as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "mine\n"
        with pytest.raises(LdmkitError, match=rf"run: in use by process {holder.pid};"), locked(tmp_path / "run"):
            pass
        holder.kill()
    with locked(tmp_path / "run"):  # a killed process holds nothing
        assert (tmp_path / "run" / ".lock").read_text() == str(os.getpid())
        with pytest.raises(LdmkitError, match=f"in use by process {os.getpid()}"), locked(tmp_path / "run"):
            pass
    with locked(tmp_path / "run"):
        pass


def test_lock_ends_with_its_holder_and_not_with_the_holders_children(tmp_path: Path) -> None:
    # The child lives until the test closes its end of the pipe, so it does for as long as the lock is tried.
    child = "    print('born', flush=True); os.read(0, 1); os._exit(0)"
    with hold(tmp_path / "run", f"if os.fork() == 0:\n{child}\ntime.sleep(60)") as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "born\n"
        holder.kill()
        holder.wait()
        with locked(tmp_path / "run"):
            pass


def test_lock_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LdmkitError, match=r"runs: cannot be written"), locked(tmp_path / "file" / "runs"):
        pass


def test_metrics_log_is_cut_back(tmp_path: Path) -> None:
    path = tmp_path / "vae" / "metrics.jsonl"
    log = MetricsLog(path, 0)
    values = [0.1, 1 / 3, 2**-1074, 1e300]
    for step, value in enumerate(values, 1):
        log.write(step, {"loss": value})
    with path.open("a") as file:
        file.write('{"step": 5, "lo')  # killed in the middle of a line
    assert [row["loss"].hex() for row in read_metrics(path)] == [value.hex() for value in values]
    MetricsLog(path, 2).write(3, {"loss": 0.5})
    assert read_metrics(path) == [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 1 / 3}, {"step": 3, "loss": 0.5}]
    MetricsLog(path, 0)
    assert path.read_text() == ""


@pytest.mark.parametrize("bad", [b'{"step": 2, "lo', b"", b"\xff\xfe", b"[" * 100_000])
def test_a_line_of_metrics_that_is_damaged_is_named_unless_a_kill_cut_it(bad: bytes, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first, last = b'{"step": 1, "loss": 0.5}', b'{"step": 3, "loss": 0.25}'
    path.write_bytes(b"\n".join([first, bad]))
    assert read_metrics(path) == [json.loads(first)]
    path.write_bytes(b"\n".join([first, bad, last, b""]))
    with pytest.raises(LdmkitError, match=r"metrics\.jsonl, line 2: no JSON of numbers with a step; correct or remove"):
        read_metrics(path)


def test_new_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "set"

    def stopped() -> None:
        with new_folder(target) as folder:
            (folder / "a").write_text("1")
            assert not target.exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert list(tmp_path.iterdir()) == []
    for durable in (False, True):
        target = tmp_path / f"set-{durable}"
        target.mkdir()  # an empty folder is no obstacle
        with new_folder(target, durable=durable) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / "a").write_text("1")
        assert (target / "sub" / "a").read_text() == "1"
        assert target.stat().st_mode & 0o777 == 0o755
        with pytest.raises(LdmkitError, match="already exists"), new_folder(target):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set-False", "set-True"]


def test_new_folder_names_the_file_that_failed(tmp_path: Path) -> None:
    gone = tmp_path / "gone.png"
    with (
        pytest.raises(LdmkitError, match=rf"set cannot be written: {gone}: No such file"),
        new_folder(tmp_path / "set"),
    ):
        gone.read_bytes()
    assert list(tmp_path.iterdir()) == []


def test_durable_folder_reaches_the_disk_before_it_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, synced = tmp_path / "set", []

    def fsync(handle: int) -> None:
        synced.append((Path(f"/proc/self/fd/{handle}").readlink().name, target.exists()))

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fsync", fsync)
    with new_folder(target, durable=True) as folder:
        (folder / "a").write_text("1")
        (folder / "b").write_text("1")
        temporary = folder.name
    assert sorted(synced[:-1]) == sorted([("a", False), ("b", False), (temporary, False)])
    assert synced[-1] == (tmp_path.name, True)


def test_write_atomic_keeps_the_old_file_where_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sub" / "file"
    write_atomic(path, b"old")

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert [p.name for p in path.parent.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_sweep(tmp_path: Path) -> None:
    (tmp_path / ".step_1.abc.partial").mkdir()
    (tmp_path / ".step_1.abc.partial" / "a").write_text("")
    (tmp_path / ".file.12.partial").write_text("")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / ".file.12.partial").write_text("")
    (tmp_path / "kept.partial").write_text("")
    (tmp_path / ".kept").write_text("")
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".kept", "kept.partial", "sub"]
