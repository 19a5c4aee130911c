"""Draws a prompt from a bundle with onnxruntime and numpy: python draw.py BUNDLE PROMPT SEED STEPS PICTURE.png"""

import json
import sys
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession
from PIL import Image
from tokenizers import Tokenizer

folder, (prompt, seed, steps, out) = Path(sys.argv[1]), sys.argv[2:]
manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
schedule, latent, prediction = manifest["schedule"], manifest["latent"], manifest["prediction"]
scale, T, N = manifest["defaults"]["guidance_scale"], schedule["num_timesteps"], int(steps)


def run(name, **inputs):
    session = InferenceSession(folder / name)
    return session.run(None, {given.name: inputs[given.name] for given in session.get_inputs()})[0].astype(np.float64)


if schedule["name"] == "flow":
    t = np.linspace(T, 0, N + 1)
    alpha, sigma = 1 - t / T, t / T
else:
    first, last, power = schedule["beta_start"], schedule["beta_end"], 1 if schedule["name"] == "linear" else 2
    betas = np.linspace(first ** (1 / power), last ** (1 / power), T) ** power
    if schedule["name"] == "cosine":
        bar = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
    alphas = np.sqrt(np.cumprod(1 - betas))
    if schedule["zero_terminal_snr"]:
        alphas = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
    t = np.round(T - np.arange(N) * (T / N)) - 1
    alpha = np.append(alphas[t.astype(int)], 1)
    sigma = np.sqrt(1 - alpha**2)

tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
tokenizer.encode_special_tokens = True  # a prompt that spells one is text
tokens = tokenizer.encode_batch([prompt, ""])
ids, mask = (np.array([getattr(each, key) for each in tokens]) for key in ("ids", "attention_mask"))
context = run("text_encoder.onnx", ids=ids, mask=mask).astype(np.float32)
shape = 1, latent["channels"], latent["height"], latent["width"]
x = np.random.Generator(np.random.PCG64(int(seed))).standard_normal(shape)
for i, (a, s) in enumerate(zip(alpha[:-1], sigma[:-1], strict=True)):
    pair = {"x_t": np.float32([x[0], x[0]]), "t": np.float32([t[i], t[i]])}
    towards, away = run("unet_t2i.onnx", context=context, context_mask=mask, **pair)
    output = scale * towards + (1 - scale) * away
    match prediction:
        case "eps":
            x0 = (x - s * output) / a
        case "x0":
            x0 = output[None]
        case "v":
            x0 = (a * x - s * output) / (a**2 + s**2)
        case "flow":
            x0 = (x - s * output) / (a + s)
    x = alpha[i + 1] * x0 + sigma[i + 1] * (x - a * x0) / s  # DDIM, Song et al. 2021, eq. 12
pixels = run("vae_decoder.onnx", latents=x.astype(np.float32))[0].transpose(1, 2, 0)
Image.fromarray(np.rint((pixels.clip(-1, 1) + 1) * 127.5).astype(np.uint8)).save(out)
