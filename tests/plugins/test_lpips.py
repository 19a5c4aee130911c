"""lpips against the `lpips` package itself, on random backbones: nothing is downloaded."""

import urllib.error
import warnings
from pathlib import Path

import ldmkit_lpips
import pytest
import torch
from ldmkit_lpips import LPIPS
from safetensors.torch import save_file

from ldmkit import LdmkitError, Reconstruction

lpips = pytest.importorskip("lpips")


def package_network(backbone: str) -> torch.nn.Module:
    """The package's own LPIPS with a random backbone and its own trained linear layers."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = lpips.LPIPS(net=backbone, pnet_rand=True, pretrained=False, verbose=False)
    weights = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{backbone}.pth"
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True), strict=False)
    return network.eval()


def torchvision_state(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    slices = network.net.state_dict()
    return {f"features.{key.partition('.')[2]}": tensor.clone() for key, tensor in slices.items()}


@pytest.fixture(scope="module")
def squeeze() -> torch.nn.Module:
    return package_network("squeeze")


@pytest.fixture
def weights(squeeze: torch.nn.Module, tmp_path: Path) -> Path:
    path = tmp_path / "squeeze.safetensors"
    save_file(torchvision_state(squeeze), path)
    return path


def pixels(size: int = 64) -> Reconstruction:
    generator = torch.Generator().manual_seed(2)
    target, output = torch.rand(2, 2, 3, size, size, generator=generator) * 2 - 1
    latents = torch.zeros(2, 4, 2, 2)
    return Reconstruction(target, output.requires_grad_(), latents, latents)


@pytest.mark.parametrize("backbone", ["alex", "squeeze"])
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_equals_the_package_from_either_kind_of_file(backbone: str, ending: str, tmp_path: Path) -> None:
    oracle = package_network(backbone)
    path = tmp_path / f"weights{ending}"
    # a file of torchvision also holds the classifier, which is not wanted
    state = torchvision_state(oracle) | {"classifier.1.weight": torch.zeros(2, 2)}
    (torch.save if ending == ".pth" else save_file)(state, path)
    reconstruction = pixels()
    found = LPIPS(backbone=backbone, backbone_weights=str(path))(reconstruction)
    expected = oracle(reconstruction.output, reconstruction.target).mean()
    assert expected > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_keys_of_torchvisions_own_vgg16_fit(tmp_path: Path) -> None:
    from torchvision.models import vgg16

    with torch.device("meta"):
        state = {key: torch.empty_like(tensor, device="cpu") for key, tensor in vgg16().features.state_dict().items()}
    for tensor in state.values():
        torch.nn.init.normal_(tensor, std=0.02)
    path = tmp_path / "vgg.safetensors"
    save_file({f"features.{key}": tensor for key, tensor in state.items()}, path)
    loss = LPIPS(backbone_weights=str(path))
    reconstruction = pixels(32)
    assert loss(reconstruction).item() > 0
    same = Reconstruction(*[reconstruction.target] * 2, reconstruction.mean, reconstruction.logvar)
    assert loss(same).item() == 0
    assert torch.equal(loss.network.net.slice5[1].weight, state["24.weight"])


def test_gradient_reaches_the_output_alone(weights: Path) -> None:
    reconstruction = pixels()
    loss = LPIPS(backbone="squeeze", backbone_weights=str(weights))
    loss(reconstruction).backward()
    assert reconstruction.output.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in loss.network.parameters())
    assert not loss.network.training


def test_fp32_inside_autocast(weights: Path) -> None:
    reconstruction = pixels()
    loss = LPIPS(backbone="squeeze", backbone_weights=str(weights))
    expected = loss(reconstruction)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(reconstruction)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_building_leaves_the_global_random_numbers_alone(weights: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    LPIPS(backbone="squeeze", backbone_weights=str(weights))
    assert torch.equal(torch.rand(3), expected)


def test_cached_weights_are_used(squeeze: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    path.parent.mkdir(parents=True)
    torch.save(torchvision_state(squeeze), path)
    reconstruction = pixels()
    expected = squeeze(reconstruction.output, reconstruction.target).mean()
    torch.testing.assert_close(LPIPS(backbone="squeeze")(reconstruction), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("backbone", "name"), [("vgg", "vgg16-397923af.pth"), ("alex", "alexnet-owt-7be5be79.pth")])
def test_unreachable_weights_tell_the_remedy(
    backbone: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def offline(url: str, path: str, hash_prefix: str) -> None:
        asked.append((url.rsplit("/", 1)[1], hash_prefix))
        raise urllib.error.URLError("no route")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(LdmkitError) as raised:
        LPIPS(backbone=backbone)
    assert asked == [(name, name.removesuffix(".pth").rsplit("-", 1)[1])]
    for words in (name, str(tmp_path), "no route", "backbone_weights"):
        assert words in str(raised.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(LdmkitError, match=r"backbone_weights: no such file: .*gone\.pth"):
        LPIPS(backbone_weights=str(tmp_path / "gone.pth"))


class Trap:
    """Unpickled carelessly, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("content", ["trap", b"", b"no weights", "list"])
def test_file_that_is_no_state_dict_is_refused_and_not_run(tmp_path: Path, content: object) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save([1] if content == "list" else {"features.0.weight": Trap(tmp_path / "sprung")}, path)
    with pytest.raises(LdmkitError, match=r"weights\.pth holds no state dict"):
        LPIPS(backbone="squeeze", backbone_weights=str(path))
    assert not (tmp_path / "sprung").exists()


def test_weights_of_another_backbone_are_named(weights: Path) -> None:
    with pytest.raises(
        LdmkitError, match=r"not those of torchvision's alex backbone: features\.0\.weight must be .*11"
    ):
        LPIPS(backbone="alex", backbone_weights=str(weights))


def test_the_module_offers_it() -> None:
    assert dict(ldmkit_lpips.register_losses()) == {"lpips": LPIPS}
