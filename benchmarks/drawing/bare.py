"""What `ldmkit generate` does at the least: draws one picture of a bundle that it knows by heart.

It reads no manifest, checks no hash and parses no options: `cold` times it, and hands it the numbers.
"""

import json
import sys

import numpy as np
import onnxruntime as ort
from PIL import Image
from tokenizers import Tokenizer

folder, prompt, out = sys.argv[1:4]
times, alphas, sigmas, scale, prediction, shape = json.loads(sys.argv[4])


def opened(name):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(folder + "/" + name + ".onnx", options, providers=["CPUExecutionProvider"])


def fitting(session, **inputs):
    """Those of the inputs that the graph has."""
    return {each.name: inputs[each.name] for each in session.get_inputs() if each.name in inputs}


encodings = Tokenizer.from_file(folder + "/tokenizer.json").encode_batch([prompt, ""])
ids = np.array([e.ids for e in encodings], np.int64)
mask = np.array([e.attention_mask for e in encodings], np.int64)
text_encoder, unet = opened("text_encoder"), opened("unet_t2i")
context = text_encoder.run(None, fitting(text_encoder, ids=ids, mask=mask))[0]
fixed = fitting(unet, context=context, context_mask=mask)
x = np.random.Generator(np.random.PCG64(0)).standard_normal(shape)[None]
for i, t in enumerate(times):
    both = np.concatenate([x, x]).astype(np.float32)
    output = unet.run(None, {"x_t": both, "t": np.full(2, t, np.float32), **fixed})[0]
    output = scale * output[:1] + (1 - scale) * output[1:]
    a, s = alphas[i], sigmas[i]
    x0 = {
        "eps": lambda x, output, a, s: (x - s * output) / a,
        "x0": lambda x, output, a, s: output,
        "v": lambda x, output, a, s: (a * x - s * output) / (a * a + s * s),
        "flow": lambda x, output, a, s: (x - s * output) / (a + s),
    }[prediction](x, output, a, s)
    kept = sigmas[i + 1] / s
    x = kept * x + (alphas[i + 1] - kept * a) * x0
pixels = opened("vae_decoder").run(None, {"latents": x.astype(np.float32)})[0]
levels = np.rint((np.clip(pixels[0], -1, 1) + 1) * 127.5).astype(np.uint8)
Image.fromarray(levels.transpose(1, 2, 0)).save(out)
