"""The manifest's own hash: nothing of it changes unnoticed."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from ldmkit import shipped
from ldmkit.errors import LdmkitError
from ldmkit.runtime.manifest import read_manifest, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The shipped bundle's manifest alone."""
    exports = shipped.exports_dir()
    assert exports is not None
    shutil.copy(exports / "toy-cats" / "manifest.json", tmp_path)
    return tmp_path


def test_its_hash_is_of_what_stands_above_it(folder: Path) -> None:
    """By hashlib over the text, cut by hand."""
    text = (folder / "manifest.json").read_text()
    above, told = text.rsplit(',\n  "sha256": "', 1)
    assert told == hashlib.sha256((above + "\n}\n").encode()).hexdigest() + '"\n}\n'
    manifest, sha256 = read_manifest(folder)
    assert sha256 == hashlib.sha256(text.encode()).hexdigest()
    (folder / "manifest.json").unlink()
    write_manifest(folder, manifest)
    assert (folder / "manifest.json").read_text() == text
    write_manifest(folder, manifest.model_copy(update={"fingerprint": "another"}))
    assert read_manifest(folder)[0].sha256 != manifest.sha256


def test_flipped_bits_are_noticed(folder: Path) -> None:
    """Of every 41st byte one, each of the eight in turn: digits, letters' case, spaces and names alike."""
    path = folder / "manifest.json"
    whole = path.read_bytes()
    for place in range(0, len(whole), 41):
        changed = bytearray(whole)
        changed[place] ^= 1 << (place // 41) % 8
        path.write_bytes(changed)
        with pytest.raises(LdmkitError, match=r"manifest\.json"):
            read_manifest(folder)


def test_the_same_values_in_other_bytes(folder: Path) -> None:
    """Made pretty, or with a number written otherwise: not what was written, and so not taken."""
    path = folder / "manifest.json"
    whole = path.read_text()
    for changed in (json.dumps(json.loads(whole)), whole.replace("e-0", "E-0", 1), whole + "\n"):
        assert json.loads(changed) == json.loads(whole)
        assert changed != whole
        path.write_text(changed)
        with pytest.raises(LdmkitError, match=r"does not match its own SHA-256: it is damaged or was changed"):
            read_manifest(folder)


def test_one_of_an_older_ldmkit_has_none(folder: Path) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    del content["sha256"]
    (folder / "manifest.json").write_text(json.dumps(content))
    assert read_manifest(folder)[0].sha256 is None
    for wrong in ("0" * 64, 7, None):
        (folder / "manifest.json").write_text(json.dumps({**content, "sha256": wrong}, indent=2, ensure_ascii=False))
        with pytest.raises(LdmkitError, match="its own SHA-256"):
            read_manifest(folder)
