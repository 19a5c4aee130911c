"""A bundle of hand-written graphs whose pictures can be worked out on paper; no torch in sight."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx.parser
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from ldmkit.runtime.manifest import file_entry

WORDS = {"[pad]": 0, "[unk]": 1, "red": 2, "cat": 3, "on": 4, "mat": 5}
MAX_TOKENS = 4

HEADER = '<ir_version: 8, opset_import: ["" : 18]> g '
X_T = "float[batch,2,2,2] x_t, float[batch] t"

# The pixels are the latents; the third colour repeats the first.
DECODER = (
    HEADER
    + """(float[batch,2,2,2] latents) => (float[batch,3,2,2] output)
 {
        first = Constant<value = int64[1] {0}>()
        again = Gather<axis = 1>(latents, first)
        output = Concat<axis = 1>(latents, again)
    }"""
)

# The other way round: what the decoder makes of the latents comes back.
ENCODER = (
    HEADER
    + """(float[batch,3,height,width] pixels) => (float[batch,2,height,width] output) {
        first = Constant<value = int64[2] {0, 1}>()
        output = Gather<axis = 1>(pixels, first)
    }"""
)

# context = 0.01 * id
TEXT = (
    HEADER
    + f"""(int64[batch,{MAX_TOKENS}] ids, int64[batch,{MAX_TOKENS}] mask) => (float[batch,{MAX_TOKENS},1] output) {{
        last = Constant<value = int64[1] {{2}}>()
        hundredth = Constant<value = float {{0.01}}>()
        number = Cast<to = 1>(ids)
        scaled = Mul(number, hundredth)
        output = Unsqueeze(scaled, last)
    }}"""
)

# output = 0.1 + the sum of the context where the mask is 1
UNET_T2I = (
    HEADER
    + f"""({X_T}, float[batch,{MAX_TOKENS},1] context, int64[batch,{MAX_TOKENS}] context_mask)
    => (float[batch,2,2,2] output) {{
        last = Constant<value = int64[1] {{2}}>()
        axes = Constant<value = int64[2] {{1, 2}}>()
        shape = Constant<value = int64[4] {{-1, 1, 1, 1}}>()
        zero = Constant<value = float {{0.0}}>()
        tenth = Constant<value = float {{0.1}}>()
        weight2 = Cast<to = 1>(context_mask)
        weight = Unsqueeze(weight2, last)
        kept = Mul(context, weight)
        sum = ReduceSum<keepdims = 0>(kept, axes)
        column = Reshape(sum, shape)
        nothing = Mul(x_t, zero)
        level = Add(column, tenth)
        output = Add(nothing, level)
    }}"""
)


def unet(body: str) -> str:
    """An unconditional U-Net that computes `body` from x_t and t, both (B, 1, 1, 1) or (B, 2, 2, 2)."""
    return (
        HEADER
        + f"""({X_T}) => (float[batch,2,2,2] output) {{
        shape = Constant<value = int64[4] {{-1, 1, 1, 1}}>()
        zero = Constant<value = float {{0.0}}>()
        thousandth = Constant<value = float {{0.001}}>()
        time4 = Reshape(t, shape)
        time = Mul(time4, thousandth)
        nothing = Mul(x_t, zero)
        {body}
    }}"""
    )


ZERO = unet("output = Identity(nothing)")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a command works in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def any_size_unet() -> str:
    """ZERO at any height and width."""
    return _any_size(ZERO)


def _any_size(graph: str) -> str:
    return re.sub(r"float\[batch,(\d),2,2\]", r"float[batch,\1,height,width]", graph)


@pytest.fixture
def unet_text() -> Callable[[str], str]:
    return unet


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    """make_bundle(name, unet=..., **manifest keys) -> folder; `unet=None` or `text=None` leaves that out."""

    def make(
        name: str = "hand-made",
        *,
        unet: str | None = ZERO,
        t2i: bool = True,
        encoder: bool = False,
        any_size: bool = False,
        **changes: Any,
    ) -> Path:
        folder = tmp_path / "exports" / name
        folder.mkdir(parents=True)
        graphs = {"vae_decoder.onnx": _any_size(DECODER) if any_size else DECODER}
        if encoder:
            graphs["vae_encoder.onnx"] = ENCODER
        if unet is not None:
            graphs["unet.onnx"] = unet
        if t2i:
            graphs |= {"unet_t2i.onnx": UNET_T2I, "text_encoder.onnx": TEXT}
            tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="[unk]"))
            tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
            tokenizer.enable_truncation(MAX_TOKENS)
            tokenizer.enable_padding(length=MAX_TOKENS, pad_id=0, pad_token="[pad]")
            tokenizer.save(str(folder / "tokenizer.json"))
        for file, text in graphs.items():
            model = onnx.parser.parse_model(text)
            onnx.checker.check_model(model)
            onnx.save(model, folder / file)
        manifest = {
            "format_version": 2,
            "needs": "0.1.0",
            "written_by": "0.1.0",
            "name": name,
            "created": "2026-01-02T03:04:05Z",
            "schedule": {
                "name": "flow",
                "num_timesteps": 1000,
                "beta_start": 1e-4,
                "beta_end": 0.02,
                "zero_terminal_snr": False,
            },
            "prediction": "x0",
            "latent": {"channels": 2, "height": 2, "width": 2, "mean": [0, 0], "std": [1, 1]},
            "picture_size": 2,
            "defaults": {"sampler": "euler", "steps": 4, "guidance_scale": 1.0},
            "text": {"max_tokens": MAX_TOKENS, "context_dim": 1} if t2i else None,
            "files": {path.name: file_entry(path).model_dump() for path in sorted(folder.iterdir())},
            "graphs": {file: {"max_abs_difference": 0.0, "batch_sizes": [1, 2]} for file in graphs},
            "recipe": {},
            "fingerprint": "hand-made",
            "notes": {},
            **changes,
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    return make
