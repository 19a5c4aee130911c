"""Pictures that show what is rare come more often: the factors, and a training that takes them."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ldmkit_captions import Folder

from ldmkit import CaptionReader
from ldmkit.components.registry import Registry
from ldmkit.denoising.train_t2i import train_t2i
from ldmkit.errors import LdmkitError
from ldmkit.recipe import caption_reader, find_recipe, load_recipe
from ldmkit.run.rare import MAX_FACTOR, factors_of, repeat_factors
from ldmkit.run.workspace import Workspace
from tests.conftest import CAPTIONS, Workshop


def labels_of(use: str, *overrides: str) -> CaptionReader:
    return caption_reader(load_recipe(find_recipe("toy-cats"), [f'caption.use="{use}"', *overrides]), Registry.load())


def test_factors_are_those_of_the_paper() -> None:
    """r(c) = max(1, sqrt(t / f(c))), and an image has the largest of its categories': Gupta et al. 2019."""
    labels = [{"cat"}] * 95 + [{"cat", "lynx"}] * 4 + [{"cat", "lynx", "lion"}]
    found = factors_of(labels, 0.08)  # f: 1, 0.05, 0.01
    assert found == pytest.approx([1.0] * 95 + [1.6**0.5] * 4 + [8**0.5])
    assert factors_of(labels, 0.2) == pytest.approx([1.0] * 95 + [2.0] * 4 + [MAX_FACTOR])  # 20 ** 0.5 without an end
    assert factors_of([set(), {"cat"}], 0.5).tolist() == [1.0, 1.0]  # what names nothing is common


def test_labels_are_counted_once_a_picture() -> None:
    captioner = labels_of("palette", 'caption.subject="cat"')
    captions = ["", "a black cat", "black fur, a cat", "a white cat on a red wall", "a cat with white and black fur"]
    assert captioner.labels(captions) == [set(), {"black"}, {"black"}, {"white", "on red"}, {"black, white"}]
    numbers = np.array([[1, 2, 1], [2, -1, -1], [1, -1, -1], [0, 3, -1]])
    # Black in three of four pictures, white and red in one.
    assert repeat_factors(captioner, captions, numbers, 1.0) == pytest.approx([(4 / 3) ** 0.5] * 3 + [2.0])


def test_class_folders_are_labels() -> None:
    captioner = labels_of("folder")
    assert captioner.labels(["black cat", "", "dog"]) == [{"black cat"}, set(), {"dog"}]


def test_a_captioner_without_labels_is_an_error() -> None:
    with pytest.raises(LdmkitError, match=re.escape('caption.use = "sidecar"') + ".*folder and palette do"):
        labels_of("sidecar")


def test_what_few_captions_name_comes_more_often(trained: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Red cats are rare among these: their share of the batches by the formula of Gupta et al. 2019."""
    shutil.copytree(trained.folder, tmp_path / "rare")
    workshop = Workshop(tmp_path / "rare")
    with pytest.raises(LdmkitError, match=r'repeat_threshold: caption.use = "sidecar" does not tell'):
        workshop.pipeline("t2i.repeat_threshold=1")
    monkeypatch.setattr(
        Folder, "labels", lambda self, texts: [{"red"} if "red" in text else {"other"} for text in texts]
    )
    pipeline = workshop.pipeline('caption.use="folder"', "t2i.repeat_threshold=1")
    shared = (pipeline.recipe, pipeline.registry, pipeline.index, workshop.run, pipeline.parts(), pipeline.reporter)
    workspace = Workspace(*shared)
    monkeypatch.setattr("ldmkit.denoising.train_t2i.train", lambda workspace, engine, task: engine)
    engine: Any = train_t2i(workspace)
    red = np.array(["red" in CAPTIONS[i % len(CAPTIONS)] for i in workspace.split()[0]])
    weights = np.where(red, 1 / red.mean(), 1 / (1 - red.mean())) ** 0.5
    drawn = np.concatenate([engine.positions(step) for step in range(2000)])
    assert red[drawn].mean() == pytest.approx(weights[red].sum() / weights.sum(), abs=0.01)
    assert red[drawn].mean() > red.mean() + 0.1
