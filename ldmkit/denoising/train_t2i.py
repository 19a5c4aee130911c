"""Stage `train-t2i`: `latents/` and `text/` -> `t2i/`, the text-to-image U-Net."""

import torch

from ldmkit.atomic import write_atomic, write_json
from ldmkit.caches.sets import LatentSet, TextSet
from ldmkit.components.protocols import StartsFromCaptions, TextEncoder
from ldmkit.denoising.conditioning import Captions
from ldmkit.denoising.task import DenoisingTask
from ldmkit.diffusion.process import make_schedule
from ldmkit.errors import LdmkitError
from ldmkit.models.build import build_text_to_image
from ldmkit.run.networks import load_autoencoder, load_tokenizer
from ldmkit.run.workspace import Workspace
from ldmkit.training.engine import Engine
from ldmkit.training.loop import train
from ldmkit.training.task import Metrics
from ldmkit.training.warm_start import load_start


def train_t2i(workspace: Workspace) -> Metrics:
    """Trains the text U-Net, and the text encoder where it is trained along; returns the last held-out metrics."""
    recipe, section, folder = workspace.recipe, workspace.recipe.t2i, workspace.folder("t2i")
    assert section is not None
    texts = TextSet(workspace.folder("text"))
    latents = LatentSet(workspace.folder("latents"), recipe.latents, recipe.seed)
    split = [part[texts.index[part] >= 0] for part in workspace.split()]
    if not len(split[0]):
        raise LdmkitError(f"{recipe.data.path}: no picture has a caption; see [caption]")
    engine = Engine(
        "t2i",
        section,
        num_samples=len(split[0]),
        seed=recipe.seed,
        buckets=latents.buckets[split[0]],
        num_tokens=section.num_tokens(*latents.shape_of(0)[-2:]),
    )
    # A compiled network wants every batch of one shape.
    texts.cut_padding = section.mask_padding and not engine.compiles
    autoencoder = load_autoencoder(recipe, workspace.folder("vae"))
    torch.manual_seed(engine.seed)  # the networks' first weights
    encoder: TextEncoder = workspace.registry.build("text_encoder", recipe.text.table(), where="[text]")
    tokenizer = load_tokenizer(workspace.folder("text"))
    text_module = encoder.load_module(tokenizer) if encoder.trainable else None
    if isinstance(encoder, StartsFromCaptions) and text_module is not None:
        encoder.start_module(text_module, texts.token_counts(split[0], tokenizer.get_vocab_size()))
    network = build_text_to_image(recipe, autoencoder.latent_channels, encoder, text_module)
    schedule = make_schedule(**recipe.diffusion.schedule_options())
    write_json(folder / "config.json", {**section.network(), "text": recipe.text.table()})
    load_start(workspace, "t2i", network)
    captions = Captions(texts, engine, dropout=section.caption_dropout)
    task = DenoisingTask(
        workspace, engine, network, captions, latents, *split, schedule=schedule, autoencoder=autoencoder
    )
    prompts = "".join(f"{texts.captions[i]}\n" for i in texts.index[task.previewed])
    write_atomic(folder / "samples" / "prompts.txt", prompts.encode())
    return train(workspace, engine, task)
