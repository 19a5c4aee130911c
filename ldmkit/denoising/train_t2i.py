"""Stage `train-t2i`: `latents/` and `text/` -> `t2i/`, the text-to-image U-Net."""

import numpy as np
import torch
from tokenizers import Tokenizer

from ldmkit.atomic import write_atomic, write_json
from ldmkit.caches.sets import LatentSet, TextSet
from ldmkit.components.protocols import TextEncoder
from ldmkit.denoising.task import NUM_PREVIEWS, DenoisingTask
from ldmkit.diffusion.torch_sampling import Text
from ldmkit.errors import LdmkitError
from ldmkit.models.build import build_text_to_image
from ldmkit.run.workspace import Workspace
from ldmkit.training.loop import Trainer
from ldmkit.training.task import Metrics
from ldmkit.training.warm_start import load_start


def train_t2i(workspace: Workspace) -> Metrics:
    """Trains the text U-Net, and the text encoder where it is trained along; returns the last held-out metrics."""
    recipe = workspace.recipe
    texts = TextSet(workspace.folder("text"))
    train, held_out = (part[texts.index[part] >= 0] for part in workspace.split())
    latents = LatentSet(workspace.folder("latents"), recipe.latents, recipe.seed)
    if not len(train):
        raise LdmkitError(f"{recipe.data.path}: no picture has a caption; see [caption]")
    trainer = Trainer(workspace, workspace.parts["t2i"], recipe.t2i, num_samples=len(train), seed=recipe.seed)
    # A compiled network wants every batch of one shape.
    texts.cut_padding = recipe.t2i.mask_padding and not trainer.compiles
    torch.manual_seed(trainer.seed)  # the networks' first weights
    encoder: TextEncoder = workspace.registry.build("text_encoder", recipe.text.table(), where="[text]")
    tokenizer = Tokenizer.from_file(str(workspace.folder("text") / "tokenizer.json"))
    module = encoder.load_module(tokenizer) if encoder.trainable else None
    network = build_text_to_image(recipe, encoder, module)
    load_start(workspace, "t2i", network)
    task = TextDenoisingTask(workspace, trainer, recipe.t2i, network, latents, train, held_out)
    task.texts = texts
    write_json(workspace.folder("t2i") / "config.json", {**recipe.t2i.network(), "text": recipe.text.table()})
    prompts = "\n".join(texts.captions[i] for i in task.preview_captions())
    write_atomic(workspace.folder("t2i") / "samples" / "prompts.txt", (prompts + "\n").encode())
    return trainer.fit(task)


class TextDenoisingTask(DenoisingTask):
    """Denoising under a caption, which is dropped now and then so that guidance has something to guide from."""

    texts: TextSet

    def text(self, indices: np.ndarray, step: int | None) -> Text:
        captions = self.texts.index[indices]
        if step is not None:
            dropped = self.trainer.uniform("caption-dropout", step) < self.recipe.t2i.caption_dropout
            captions = np.where(dropped, 0, captions)
        return self.texts.batch(captions, self.trainer.device)

    def preview_captions(self) -> np.ndarray:
        """(16,) captions of the sample grids by number: held-out pictures' where there are any."""
        pictures = self.held_out if len(self.held_out) else self.train
        return np.resize(self.texts.index[pictures[:NUM_PREVIEWS]], NUM_PREVIEWS)

    def preview_text(self) -> tuple[Text, Text] | None:
        device = self.trainer.device
        empty = np.zeros(NUM_PREVIEWS, dtype=np.int64)
        return self.texts.batch(self.preview_captions(), device), self.texts.batch(empty, device)
