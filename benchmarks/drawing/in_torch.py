"""From a prompt to a PNG by torch and transformers: DDIM with guidance, on the networks of `original.bundle`.

`cold` times it: python -m benchmarks.drawing.in_torch FOLDER PROMPT OUT STEPS GUIDANCE
"""

import sys

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import CLIPTextModel

from benchmarks.original.networks import TextUNet
from benchmarks.original.networks import decoder as seed_decoder

folder, prompt, out = sys.argv[1:4]
steps, guidance = int(sys.argv[4]), float(sys.argv[5])
tokenizer = Tokenizer.from_file(folder + "/tokenizer.json")
text_encoder = CLIPTextModel.from_pretrained(folder + "/clip").eval()
unet, decoder = TextUNet().eval(), seed_decoder().eval()
unet.load_state_dict(torch.load(folder + "/unet.pth", weights_only=True))
decoder.load_state_dict(torch.load(folder + "/decoder.pth", weights_only=True))
alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
with torch.inference_mode():
    encodings = tokenizer.encode_batch([prompt, ""])
    ids = torch.tensor([e.ids for e in encodings])
    mask = torch.tensor([e.attention_mask for e in encodings])
    context = text_encoder(ids, attention_mask=mask).last_hidden_state
    noise = np.random.Generator(np.random.PCG64(0)).standard_normal((1, 4, 32, 32))
    x = torch.from_numpy(noise.astype(np.float32))
    times = [round(1000 - i * 1000 / steps) - 1 for i in range(steps)]
    for i, t in enumerate(times):
        cond, uncond = unet(torch.cat([x, x]), torch.full((2,), float(t)), context).chunk(2)
        eps = uncond + guidance * (cond - uncond)
        a = float(alphas_cumprod[t])
        b = float(alphas_cumprod[times[i + 1]]) if i + 1 < steps else 1.0
        x0 = (x - (1 - a) ** 0.5 * eps) / a**0.5
        x = b**0.5 * x0 + (1 - b) ** 0.5 * eps
    pixels = decoder(x)[0].clamp(-1, 1)
Image.fromarray(((pixels + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).save(out)
