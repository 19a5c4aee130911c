"""A bundle on disk: its manifest, its checked files and its sessions."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ldmkit.errors import LdmkitError
from ldmkit.runtime.graph import has_external_data
from ldmkit.runtime.manifest import (
    MANIFEST,
    TEXT_ENCODER,
    TOKENIZER,
    UNET,
    UNET_T2I,
    VAE_DECODER,
    Manifest,
    read_manifest,
)
from ldmkit.runtime.providers import Provider, check_provider, open_session

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from tokenizers import Tokenizer


class Bundle:
    """An exported model. `Bundle.load` opens one, `generate` draws from it."""

    def __init__(self, folder: Path, manifest: Manifest, sha256: str, provider: Provider) -> None:
        self.folder = folder
        self.manifest = manifest
        self.sha256 = sha256
        """SHA-256 of manifest.json, which holds the SHA-256 of every other file"""
        self._asked = provider
        self._used: Literal["cpu", "cuda"] | None = None
        self._sessions: dict[str, Any] = {}
        self._tokenizer: Tokenizer | None = None

    @classmethod
    def load(cls, path: Path | str, provider: str = "auto") -> "Bundle":
        """Reads the manifest and looks for its files; graphs are read, checked and opened when first needed.

        `provider`: "auto" (CUDA where a session really gets it, else the CPU), "cpu" or "cuda".
        Raises LdmkitError where the folder is no bundle, or a file is missing, a link, or of another size.
        """
        folder = Path(path)
        manifest, sha256 = read_manifest(folder)
        bundle = cls(folder, manifest, sha256, check_provider(provider))
        for name in (UNET, UNET_T2I, VAE_DECODER, TEXT_ENCODER, TOKENIZER):
            if name in manifest.files:
                bundle._locate(name)
        return bundle

    @property
    def draws_text(self) -> bool:
        """Whether it can follow a prompt."""
        return UNET_T2I in self.manifest.files

    @property
    def draws_unconditionally(self) -> bool:
        """Whether it has a U-Net of its own for no prompt; else the text U-Net draws from the empty caption."""
        return UNET in self.manifest.files

    @property
    def provider(self) -> Literal["cpu", "cuda"]:
        """The provider in use; opens the decoder to find out."""
        if self._used is None:
            self._session(VAE_DECODER)
        assert self._used is not None
        return self._used

    def verify(self) -> None:
        """Checks the SHA-256 of every file that the manifest lists. Raises LdmkitError at the first that differs."""
        for name in self.manifest.files:
            self._read(name)

    def generate(
        self,
        prompts: Sequence[str] | str | None = None,
        *,
        n: int = 1,
        seed: int = 0,
        steps: int | None = None,
        guidance_scale: float | None = None,
        sampler: str | None = None,
        batch_size: int = 8,
        on_step: Callable[[int, int], None] | None = None,
    ) -> "list[Image.Image]":
        """Draws `n` pictures of each prompt, prompt by prompt; `make_plan` and `draw` in generate.py say how.

        None and "" draw unconditionally. Picture k comes from seed + k, whatever the batch.
        `on_step(done, total)` is called along the way. Raises LdmkitError for a value out of range, before any
        graph is opened. Warns with `PromptCutWarning` where a prompt is longer than the text encoder reads.
        """
        from ldmkit.runtime.generate import draw, make_plan

        chosen = make_plan(self, prompts, n=n, seed=seed, steps=steps, guidance_scale=guidance_scale, sampler=sampler)
        return draw(self, chosen, batch_size=batch_size, on_step=on_step)

    @property
    def tokenizer(self) -> "Tokenizer":
        """Pads and cuts to `manifest.text.max_tokens`."""
        if self._tokenizer is None:
            from ldmkit.runtime.tokenizer import read_tokenizer

            assert self.manifest.text is not None  # a bundle that draws text has it
            try:
                self._tokenizer = read_tokenizer(self._read(TOKENIZER), self.manifest.text.max_tokens)
            except ValueError as error:
                raise LdmkitError(f"{self.folder / TOKENIZER} is not a tokenizer: {error}") from error
            self._tokenizer.encode_special_tokens = True  # a prompt that spells one is text
        return self._tokenizer

    def run(self, name: str, **inputs: "np.ndarray") -> "np.ndarray":
        """The only output of graph `name`. Raises LdmkitError where the graph and the manifest disagree on shapes."""
        session = self._session(name)
        # An exporter may drop an input that the network ignores, such as the mask of a model trained without one.
        known = {given.name for given in session.get_inputs()}
        try:
            output: np.ndarray = session.run(None, {key: value for key, value in inputs.items() if key in known})[0]
        except Exception as error:  # onnxruntime's exceptions share no base class below Exception
            raise LdmkitError(f"{self.folder / name} failed on {self._used}: {error}") from error
        return output

    def _session(self, name: str) -> Any:
        if name not in self._sessions:
            graph = self._read(name)
            try:
                external = has_external_data(graph)
            except ValueError as error:
                raise LdmkitError(f"{self.folder / name} is not an ONNX graph ({error}): export it again.") from None
            if external:  # weights in files that no hash covers
                raise LdmkitError(f"{self.folder / name} refers to a file outside itself: export it again.")
            session, used = open_session(graph, name=str(self.folder / name), provider=self._asked)
            self._sessions[name] = session
            self._used = "cpu" if "cpu" in (used, self._used) else "cuda"
        return self._sessions[name]

    def _locate(self, name: str) -> Path:
        """The path of a file of the manifest, a plain file of the size that it says."""
        path, entry = self.folder / name, self.manifest.files[name]
        if path.is_symlink() or not path.is_file():
            raise LdmkitError(f"{self.folder} is not a whole bundle: {name} is in {MANIFEST}, but not a file there.")
        if path.stat().st_size != entry.size:
            raise LdmkitError(
                f"{path} has {path.stat().st_size} bytes where {MANIFEST} says {entry.size}: it is damaged or was "
                "changed. Export the bundle again, or fetch it anew."
            )
        return path

    def _read(self, name: str) -> bytes:
        """The bytes of a file of the manifest, hashed: what is checked is what is used."""
        data = self._locate(name).read_bytes()
        if hashlib.sha256(data).hexdigest() != self.manifest.files[name].sha256:
            raise LdmkitError(
                f"{self.folder / name} does not match its SHA-256 in {MANIFEST}: it is damaged or was changed. "
                "Export the bundle again, or fetch it anew."
            )
        return data
