"""A bundle of the seed's size with random weights, and the very same weights for torch.

python -m benchmarks.original.bundle DIR          writes DIR/bundle and DIR/torch; minutes, and 0.7 GB on disk each

Text U-Net and VAE are those of `networks`, converted to ldmkit's names; the text encoder has the size of CLIP
ViT-L/14's, 77 tokens of width 768. 256x256 pixels, linear betas, eps, 20 steps of DDIM, guidance 7.5. What it draws is
noise: it is there to be timed. Nothing is downloaded.
"""

import tempfile
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.command import run
from benchmarks.training.random_text import RandomText

PROMPT = "a cute orange cat with green eyes sitting on a red sofa"
STEPS, GUIDANCE = 20, 7.5
TOKENS, WIDTH = 77, 768


def main(folder: Path) -> None:
    """Writes `folder`/bundle, and `folder`/torch with unet.pth, decoder.pth, clip/ and tokenizer.json."""
    import torch
    from safetensors.torch import load_file
    from transformers import CLIPTextConfig, CLIPTextModel

    import ldmkit
    from benchmarks.original.networks import VAE, PatchGAN, TextUNet
    from ldmkit.components.registry import Registry
    from ldmkit.export import networks as export_networks
    from ldmkit.export.bundle import write_graph
    from ldmkit.models.autoencoder import AutoencoderKL
    from ldmkit.models.convert import SEED_UNET_T2I, SEED_VAE, convert_checkpoint
    from ldmkit.models.unet import UNet
    from ldmkit.runtime import manifest as m

    bundle, plain = folder / "bundle", folder / "torch"
    bundle.mkdir(parents=True)
    plain.mkdir()
    torch.manual_seed(0)
    text_unet, vae = TextUNet(), VAE()
    torch.save(text_unet.state_dict(), plain / "unet.pth")
    torch.save(vae.decoder.state_dict(), plain / "decoder.pth")
    unet, autoencoder = UNet(**SEED_UNET_T2I), AutoencoderKL(**SEED_VAE)
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = Path(temporary) / "checkpoint.pth"
        torch.save({"vae_state_dict": vae.state_dict(), "gan_state_dict": PatchGAN().state_dict()}, checkpoint)
        autoencoder.load_state_dict(load_file(convert_checkpoint(checkpoint, Path(temporary))[0]))
        unet.load_state_dict(load_file(convert_checkpoint(plain / "unet.pth", Path(temporary))[0]))
    size = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "max_position_embeddings": TOKENS}
    config = CLIPTextConfig(**size, num_hidden_layers=12, num_attention_heads=12, vocab_size=49408)
    CLIPTextModel(config).save_pretrained(plain / "clip")
    tokenizer = RandomText().build_tokenizer([PROMPT])  # what the tokens are does not change the time
    tokenizer.save(str(plain / "tokenizer.json"))
    tokenizer.save(str(bundle / m.TOKENIZER))
    clip = Registry.load().build("text_encoder", {"use": "clip", "model": str(plain / "clip")}, where="[text]")

    latent = m.Latent(channels=4, height=32, width=32, mean=(0.0,) * 4, std=(1.0,) * 4, multiple=16)
    schedule = m.Schedule(name="linear", num_timesteps=1000, beta_start=1e-4, beta_end=0.02, zero_terminal_snr=False)
    text = m.Text(max_tokens=TOKENS, context_dim=WIDTH)
    networks = {
        m.VAE_DECODER: export_networks.decoder(autoencoder, latent),
        m.TEXT_ENCODER: export_networks.text_encoder(clip.load_module(tokenizer), tokenizer),
        m.UNET_T2I: export_networks.unet(unet, latent, schedule, text, multiple=16),
    }
    # Random weights put out larger numbers than trained ones, and their rounding is as much larger.
    graphs = {
        name: write_graph(bundle / name, network, precision="fp32", tolerance=1e-2, opset=18)
        for name, network in networks.items()
    }
    made = {"format_version": m.FORMAT_VERSION, "needs": m.NEEDS, "written_by": ldmkit.__version__}
    manifest = m.Manifest(
        **made,
        name="seed-sized",
        created=datetime.now(UTC).replace(microsecond=0),
        schedule=schedule,
        prediction="eps",
        latent=latent,
        picture_size=256,
        defaults=m.Defaults(sampler="ddim", steps=STEPS, guidance_scale=GUIDANCE),
        text=text,
        files={file.name: m.file_entry(file) for file in sorted(bundle.iterdir())},
        graphs=graphs,
        **{"recipe": {}, "fingerprint": "random weights", "notes": {}},
    )
    m.write_manifest(bundle, manifest)


if __name__ == "__main__":
    run(main)
