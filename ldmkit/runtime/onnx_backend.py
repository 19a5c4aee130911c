"""A bundle on disk under onnxruntime: its manifest, its checked files and its sessions."""

import hashlib
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ldmkit.errors import LdmkitError
from ldmkit.runtime.graph import external_files
from ldmkit.runtime.manifest import (
    GRAPHS,
    MANIFEST,
    TEXT_ENCODER,
    TOKENIZER,
    UNET,
    UNET_T2I,
    VAE_DECODER,
    VAE_ENCODER,
    WEIGHTS,
    Manifest,
    read_manifest,
)
from ldmkit.runtime.providers import Provider, Used, check_provider, gpu_may_exist, open_session

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class OnnxBackend:
    """The networks of a bundle; `Bundle` draws with them."""

    def __init__(self, folder: Path, manifest: Manifest, sha256: str, provider: Provider) -> None:
        self.folder = folder
        self.manifest = manifest
        self.sha256 = sha256
        """SHA-256 of manifest.json, which holds the SHA-256 of every other file"""
        self._asked = provider
        self._sessions: dict[str, Any] = {}
        self._used: dict[str, Used] = {}
        self._locks = {name: Lock() for name in GRAPHS}
        self._tokenizer: Tokenizer | None = None

    @classmethod
    def load(cls, path: Path | str, provider: str = "auto") -> Self:
        """Reads the manifest and looks for its files; graphs are read, checked and opened when first needed.

        `provider`: "auto" (CUDA where a session really gets it, else the CPU, with a `ProviderWarning` where an NVIDIA
        driver is here), "cpu", "cuda", "tensorrt", "coreml" or "directml". One by name that a graph doesn't get is an
        LdmkitError when that graph is opened.
        Raises LdmkitError where the folder is no bundle, or a file is missing, a link, or of another size.
        """
        folder = Path(path)
        manifest, sha256 = read_manifest(folder)
        bundle = cls(folder, manifest, sha256, check_provider(provider))
        for name in (*GRAPHS, *WEIGHTS.values(), TOKENIZER):
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
    def provider(self) -> Used:
        """The provider in use, "cpu" where any graph fell back to it; opens the decoder to find out."""
        if not self._used:
            self._session(VAE_DECODER)
        return "cpu" if "cpu" in self._used.values() else next(iter(self._used.values()))

    @property
    def identity(self) -> dict[str, str]:
        """What a picture's metadata say of the bundle."""
        return {"bundle": self.manifest.name, "bundle_sha256": self.sha256}

    def verify(self) -> None:
        """Checks the SHA-256 of every file that the manifest lists. Raises LdmkitError at the first that differs."""
        for name in self.manifest.files:
            self._check(name)

    def check_encodes(self) -> None:
        """Raises LdmkitError where the bundle has no graph that turns a picture into latents."""
        if VAE_ENCODER not in self.manifest.files:
            raise LdmkitError(
                f"bundle {self.folder} has no {VAE_ENCODER}, so it cannot start from a picture: export it again with "
                "`ldmkit export onnx --with-encoder`"
            )

    @property
    def tokenizer(self) -> "Tokenizer":
        """Pads and cuts to `manifest.text.max_tokens`."""
        if self._tokenizer is None:
            from ldmkit.runtime.tokenizer import read_tokenizer

            assert self.manifest.text is not None  # a bundle that draws text has it
            try:
                self._tokenizer = read_tokenizer(self.read(TOKENIZER), self.manifest.text.max_tokens)
            except ValueError as error:
                raise LdmkitError(f"{self.folder / TOKENIZER} is not a tokenizer: {error}") from error
            self._tokenizer.encode_special_tokens = True  # a prompt that spells one is text
        return self._tokenizer

    def run(self, name: str, **inputs: np.ndarray) -> np.ndarray:
        """The only output of graph `name`. Raises LdmkitError where the graph and the manifest disagree on shapes."""
        session = self._session(name)
        # An exporter may drop an input that the network ignores, such as the mask of a model trained without one.
        known = {given.name for given in session.get_inputs()}
        with self._naming(name):
            output = session.run(None, {key: value for key, value in inputs.items() if key in known})[0]
        return self._fitting(name, inputs, output)

    def bind(self, name: str, **fixed: np.ndarray) -> Callable[..., np.ndarray]:
        """Graph `name` with inputs that stay the same from call to call; the result holds until the next call."""
        with self._naming(name):
            session = self._session(name)
            # The others take their inputs from, and leave their output in, the machine's memory.
            device = "cuda" if self._used[name] in ("cuda", "tensorrt") else "cpu"
            binding = Binding(session, device, fixed)

        def call(**inputs: np.ndarray) -> np.ndarray:
            with self._naming(name):
                output = binding(**inputs)
            return self._fitting(name, inputs, output)

        return call

    def _fitting(self, name: str, inputs: Mapping[str, np.ndarray], output: Any) -> np.ndarray:
        """The output of graph `name` for these inputs. Raises LdmkitError where it is none that the graph may have."""
        text, latent = self.manifest.text, self.manifest.latent
        factor = self.manifest.factor
        shape: tuple[int, ...]
        if name in (UNET, UNET_T2I):
            shape = inputs["x_t"].shape
        elif name == TEXT_ENCODER:
            assert text is not None  # a bundle that draws text has it
            shape = (*inputs["ids"].shape, text.context_dim)
        else:
            (given,) = inputs.values()
            height, width = given.shape[2:]  # (B, C, H, W)
            decodes = name == VAE_DECODER
            sides = (height * factor, width * factor) if decodes else (height // factor, width // factor)
            shape = (len(given), 3 if decodes else latent.channels, *sides)
        if not isinstance(output, np.ndarray) or output.dtype.kind != "f" or output.shape != shape:
            found = f"{output.dtype} {output.shape}" if isinstance(output, np.ndarray) else type(output).__name__
            raise LdmkitError(f"{self.folder / name} returns {found} where floats {shape} belong: export it again")
        return output

    def close(self) -> None:
        """Lets its graphs go; they are opened again when needed."""
        self._sessions.clear()

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """Turns onnxruntime's errors into one that names the graph."""
        try:
            yield
        except LdmkitError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no base class below Exception
            told = str(error)
            if "allocate memory" in told or "bad_alloc" in told or "bad allocation" in told:
                told = "not enough memory; choose a smaller --size, or fewer pictures at once"
            raise LdmkitError(f"{self.folder / name} failed on {self._used.get(name)}: {told}") from error

    def prepare(self, prompts: Sequence[str], negative_prompt: str = "") -> None:
        """Begins to open, in the background, the graphs that these prompts need, the largest first.

        Whoever needs one waits for it, and gets its error. Only where the CPU draws: which of several sessions gets
        the GPU first, and warns, is not left to chance.
        """
        if self._asked != "cpu" and (self._asked != "auto" or gpu_may_exist()):
            return
        unconditional = not negative_prompt.strip() and self.draws_unconditionally
        names = [UNET if unconditional and not prompt.strip() else UNET_T2I for prompt in prompts]
        names += [TEXT_ENCODER] * (UNET_T2I in names) + [VAE_DECODER]
        import onnxruntime  # noqa: F401 - once here, and not by all threads at once

        for name in dict.fromkeys(names):
            if name in self.manifest.files and name not in self._sessions:
                Thread(target=self._try, args=(name,), name=f"open {name}").start()

    def _try(self, name: str) -> None:
        with suppress(Exception):  # whatever it is, it is raised again where the graph is needed
            self._session(name)

    def _session(self, name: str) -> Any:
        with self._locks[name]:
            if name not in self._sessions:
                self._sessions[name], self._used[name] = self._open(name)
                if self._asked == "auto" and self._used[name] == "cpu":
                    self._asked = "cpu"  # what one graph could not have, the next ones need not try
        return self._sessions[name]

    def _open(self, name: str) -> tuple[Any, Used]:
        path = self.folder / name
        parts = [part for part in (name, WEIGHTS[name]) if part in self.manifest.files]
        checked = {part: self._check(part) for part in parts}
        try:
            external = _external_files(path)
        except ValueError as error:
            raise LdmkitError(f"{path} is not an ONNX graph ({error}): export it again") from None
        if external - {part.encode() for part in parts[1:]}:  # weights in files that no hash covers
            raise LdmkitError(f"{path} refers to a file outside itself: export it again")
        # By its path: a large graph's bytes in memory, and onnxruntime's copy of them, would be twice its size. The
        # text encoder is called once a batch.
        opened = open_session(path, name=str(path), provider=self._asked, prepack=name != TEXT_ENCODER)
        for part, before in checked.items():
            if _identity(self.folder / part) != before:
                raise LdmkitError(f"{self.folder / part} was changed while it was opened: try again")
        return opened

    def _locate(self, name: str) -> Path:
        """The path of a file of the manifest, a plain file of the size that it says."""
        path, entry = self.folder / name, self.manifest.files[name]
        if path.is_symlink() or not path.is_file():
            raise LdmkitError(f"{self.folder} is not a whole bundle: {name} is in {MANIFEST}, but not a file there")
        if path.stat().st_size != entry.size:
            raise LdmkitError(
                f"{path} has {path.stat().st_size} bytes where {MANIFEST} says {entry.size}: it is damaged or was "
                "changed. Export the bundle again, or fetch it anew"
            )
        return path

    def read(self, name: str) -> bytes:
        """The bytes of a small file of the manifest, hashed: what is checked is what is used."""
        data = self._locate(name).read_bytes()
        self._compare(name, hashlib.sha256(data).hexdigest())
        return data

    def _check(self, name: str) -> tuple[int, ...]:
        """Hashes a file of the manifest, a block at a time, and gives what tells whether it is the same later on."""
        path = self._locate(name)
        before = _identity(path)
        with path.open("rb") as file:
            self._compare(name, hashlib.file_digest(file, "sha256").hexdigest())
        return before

    def _compare(self, name: str, sha256: str) -> None:
        if sha256 != self.manifest.files[name].sha256:
            raise LdmkitError(
                f"{self.folder / name} does not match its SHA-256 in {MANIFEST}: it is damaged or was changed. "
                "Export the bundle again, or fetch it anew"
            )


def _identity(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _external_files(graph: Path) -> set[bytes]:
    """Of a graph in a file, of which it reads what stands between the weights. Raises ValueError."""
    if not graph.stat().st_size:
        raise ValueError("it is empty")  # and cannot be mapped
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return external_files(content)


class Binding:
    """A session with some of its inputs fixed; call it with the others.

    On a GPU the fixed inputs are copied there once, and a call copies no more than its own inputs and the output: they
    are latents, a few kilobytes. Buffers are made anew only where a shape changes.
    """

    def __init__(self, session: Any, device: str, fixed: Mapping[str, np.ndarray]) -> None:
        self._session = session
        self._device = device
        self._binding = session.io_binding()
        self._known = {given.name for given in session.get_inputs()}
        self._output_name = session.get_outputs()[0].name
        self._inputs: dict[str, Any] = {}
        self._output: Any = None
        self._fill(fixed)

    def __call__(self, **inputs: np.ndarray) -> np.ndarray:
        """The graph's only output; it holds until the next call."""
        if self._fill(inputs):
            self._binding.bind_output(self._output_name, self._device)  # onnxruntime makes a buffer of the right shape
            self._output = None
        self._session.run_with_iobinding(self._binding)
        if self._output is None:
            self._output = self._binding.get_outputs()[0]
            self._binding.bind_ortvalue_output(self._output_name, self._output)
        output: np.ndarray = self._output.numpy()
        return output

    def _fill(self, inputs: Mapping[str, np.ndarray]) -> bool:
        """Copies inputs into their buffers; whether one had to be made, by which the output's shape may change."""
        from onnxruntime import OrtValue

        made = False
        for name, value in inputs.items():
            if name not in self._known:  # an exporter may drop what the network ignores, as a mask
                continue
            buffer = self._inputs.get(name)
            if buffer is not None and buffer.shape() == list(value.shape):
                buffer.update_inplace(np.ascontiguousarray(value))
                continue
            self._inputs[name] = OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value), self._device, 0)
            self._binding.bind_ortvalue_input(name, self._inputs[name])
            made = True
        return made
