"""From a file and `--set` to a recipe, or to one message with all that is wrong."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from ldmkit.components.registry import Registry
from ldmkit.errors import LdmkitError
from ldmkit.recipe import RecipeFile, find_recipe, load_recipe
from ldmkit.recipe.template import to_toml


def test_all_mistakes_come_at_once(full_recipe: Path, registry: Registry) -> None:
    table = tomllib.loads(full_recipe.read_text())
    table["data"]["size"] = "64"
    table["data"]["crop"] = "centre"
    table["vae"]["losses"]["kl"]["wieght"] = 1
    table["sampler"]["eta"] = 0.5
    table["export"] = {"seed": 1}
    with pytest.raises(LdmkitError) as error:
        RecipeFile(Path("some/cat.toml"), {"name": "cat", **table}).validate(registry)
    assert str(error.value).splitlines() == [
        "some/cat.toml: 5 mistakes",
        '  [data] size = "64" is not allowed: it takes integer >= 8, <= 2048 or list of integer >= 8, <= 2048, 2 items '
        "(pixels that pictures are brought to: one number for width and height alike, or [width, height])",
        '  [data] crop = "centre" is not allowed (did you mean "center"?): it takes one of "center", "squash" '
        "(`center` keeps the aspect ratio and cuts the longer side, `squash` distorts)",
        '  [export] has the unknown key "seed" (it belongs to the top, before the first [section])',
        '  [sampler] has the unknown key "eta"; its keys are use, steps, guidance_scale, variance',
        '  [vae.losses.kl] has the unknown key "wieght" (did you mean "weight"?)',
    ]


def test_one_mistake_is_one_line(full_recipe: Path) -> None:
    """A list with one wrong entry is too short as well, for whoever counts the right ones alone."""
    with pytest.raises(LdmkitError) as error:
        RecipeFile.read(full_recipe, ["vae.channels=[64, 0]"]).validate()
    assert str(error.value) == (
        f"{full_recipe}: [vae] channels[1] = 0 is not allowed: it takes list of integer > 0, at least 2 items "
        "(channels of the first convolution, then of each level; a level halves the size) "
        "(from --set vae.channels=[64, 0])"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[vae\n", "not valid TOML: "),
        ("a = 1\na = 2\n", "not valid TOML: "),
        ("[data]\npath = \u201cdata/photos\u201d", "quotes are ' or \""),
        ('[data]\npath = "C:\\Users\\me"', "put a path of Windows in single quotes"),
        ("[data]\nflip = True", "write true or false"),
        ("data:\n  path: pics", "this looks like YAML"),
        pytest.param("seed = " + "1" * 5000, "not valid TOML: ", id="long number"),
        pytest.param("seed = " + "[" * 5000, "not valid TOML: ", id="deep list"),
        ("", "the section [vae] is missing"),
        ("vae = 3", "vae = 3 is not allowed: it takes table"),
        ("[data]\npath = 2020-01-01", "[data] path = 2020-01-01 is a date"),
        ("[data]\nheld_out = nan", "[data] held_out = NaN is not allowed"),
        ("[data]\nheld_out = inf", "[data] held_out = Infinity is not allowed"),
        ("name = 0", "name = 0 is not allowed"),
        (f"name = '{'x' * 101}'", "at most 100 characters"),
        ("name = '../up'", 'name = "../up" is not allowed'),
        ("plugins = 'x.py'", 'plugins = "x.py" is not allowed'),
        ("plugins = [3]", "plugins[0] = 3 is not allowed"),
        ("[vae]\nsteps = 1\nepochs = 1", "[vae] needs exactly one of the keys steps and epochs"),
        ("[unet]\nbatch_size = 3", "[unet] needs exactly one of the keys steps and epochs"),
        ("[vae]\nlosses = 'l1'", '[vae] losses = "l1" is not allowed: it takes table'),
        ("[vae]\nsteps=1\nlosses = { l1 = 'l1' }", '[vae.losses] l1 = "l1" is not allowed: it takes a table'),
        ("[vae.losses.l1]\nweight = 1", '[vae.losses.l1] lacks the key "use"'),
        ("[diffusion]\nprediction = 'eps'", '[diffusion] prediction = "eps" is undefined where the signal is zero'),
        ("[text]\nuse = 3", "[text] use = 3 is not allowed"),
        ("[text]\ndropout = nan", "[text] dropout = NaN is not allowed"),
    ],
)
def test_texts_that_are_no_recipe(text: str, expected: str, registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(LdmkitError, match=re.escape(expected)) as error:
        RecipeFile.read(path).validate(registry)
    assert str(error.value).startswith(f"{path}: ")


def test_a_recipe_saved_by_a_windows_editor(full_recipe: Path, tmp_path: Path) -> None:
    path = tmp_path / full_recipe.name
    path.write_bytes(b"\xef\xbb\xbf" + full_recipe.read_bytes().replace(b"\n", b"\r\n"))
    assert load_recipe(path) == load_recipe(full_recipe)
    path.write_bytes("# für".encode("latin-1"))
    with pytest.raises(LdmkitError, match=r"not UTF-8 text \(byte 3\)"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("seed=7", "seed", 7),
        (" seed = 7 ", "seed", 7),
        ("vae.learning_rate=3e-4", "vae.learning_rate", 3e-4),
        ("vae.learning_rate=1", "vae.learning_rate", 1.0),
        ("data.flip=false", "data.flip", False),
        ("data.path=my/pictures", "data.path", "my/pictures"),
        ("data.path=my own pictures", "data.path", "my own pictures"),
        ("data.path='quoted'", "data.path", "quoted"),
        ("data.path=2024", "data.path", "2024"),
        ("data.path=2024-05-01", "data.path", "2024-05-01"),
        ("data.path=true", "data.path", "true"),
        ("data.path=a=b#c", "data.path", "a=b#c"),
        (r"data.path=C:\cats", "data.path", r"C:\cats"),
        ("data.path=ünï/猫", "data.path", "ünï/猫"),
        ("data.crop=squash", "data.crop", "squash"),
        ("vae.channels=[32, 64, 128, 64]", "vae.channels", (32, 64, 128, 64)),
        ("vae.attention_levels=[]", "vae.attention_levels", ()),
        ("vae.betas=[0.5, 0.9]", "vae.betas", (0.5, 0.9)),
        ("vae.losses.kl.weight=1e-5", "vae.losses.kl.weight", 1e-5),
        ("vae.guard.plateau_psnr=0.2", "vae.guard.plateau_psnr", 0.2),
        ("vae.losses.extra.use=mse", "vae.losses.extra.use", "mse"),
        ("latents.draw=mean", "latents.draw", "mean"),
        ("vae.steps=9", "vae.epochs", None),
        ("vae.epochs=9", "vae.steps", None),
    ],
)
def test_set(override: str, place: str, value: Any, registry: Registry, full_recipe: Path) -> None:
    pretrained = {"photos-64.toml", "photos-128.toml", "photos-256.toml", "cats.toml"}  # [vae] has few keys there
    for path in (path for path in full_recipe.parent.glob("*.toml") if path.name not in pretrained):
        found: Any = RecipeFile.read(path, [override]).validate(registry)
        for part in place.split("."):
            found = found[part] if isinstance(found, dict) else getattr(found, part)
        assert found == value
        assert type(found) is type(value)


def test_set_replaces_what_it_makes_meaningless(full_recipe: Path, registry: Registry) -> None:
    """The data set's captions need other options; one line on the command line is enough."""
    assert load_recipe(full_recipe).caption.table().keys() > {"use", "task", "num_beams"}
    recipe = RecipeFile.read(full_recipe, ["caption.use=filename"]).validate(registry)
    assert recipe.caption.table() == {"use": "filename"}
    for both in (
        ["caption.use=filename", "caption.strip_digits=false"],
        ["caption.strip_digits=false", "caption.use=filename"],
    ):
        options = RecipeFile.read(full_recipe, both).validate(registry).caption.table()
        assert options == {"use": "filename", "strip_digits": False}
    kept = RecipeFile.read(full_recipe, ["caption.use=florence2"]).validate(registry)
    assert kept == load_recipe(full_recipe)
    sampler = RecipeFile.read(full_recipe, ["sampler.use=ddim"]).validate(registry).sampler
    assert (sampler.use, sampler.steps) == ("ddim", 1000)
    # A network's as well; what both have stays.
    for both in (["t2i.use=dit", "t2i.depth=4"], ["t2i.depth=4", "t2i.use=dit"]):
        t2i = RecipeFile.read(full_recipe, both).validate(registry).t2i
        assert t2i.network().keys() == {"patch_size", "width", "depth", "num_heads", "dropout", "mask_padding"}
        assert (t2i.network()["depth"], t2i.steps) == (4, load_recipe(full_recipe).t2i.steps)
    kept = RecipeFile.read(full_recipe, ["t2i.use=unet"]).validate(registry)
    assert kept == load_recipe(full_recipe)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["vae.steps"], "--set vae.steps: write it as section.key=value"),
        (["=3"], "--set =3: write it as"),
        (["vae..steps=3"], "--set vae..steps=3: write it as"),
        (["vae.channels=[3"], "--set vae.channels=[3: not valid TOML"),
        (["data.path='a"], "--set data.path='a: not valid TOML"),
        (["seed.x=1"], "--set seed.x=1: seed is a key, not a section"),
        (["data.path=\udcff"], "not UTF-8"),
        (["data.path="], '[data] path = "" is not allowed'),
        (["data.flip=False"], '[data] flip = "False" is not allowed: it takes true or false'),
        (["data.flip=1"], "[data] flip = 1 is not allowed"),
        (["vae.batch_size=x"], "(from --set vae.batch_size=x)"),
        (["vae.batch_size=8\nseed=3"], '[vae] batch_size = "8\\nseed=3" is not allowed'),
        (["vae.btach_size=8"], '[vae] has the unknown key "btach_size" (did you mean "batch_size"?)'),
        (["vea.steps=8"], 'the recipe has the unknown key "vea" (did you mean "vae"?) (from --set vea.steps=8)'),
        (["vae.steps=3", "vae.epochs=3"], "[vae] needs exactly one of the keys steps and epochs"),
        (["vae=3"], "vae = 3 is not allowed: it takes table"),
        (["unet=3"], "unet = 3 is not allowed: it takes table"),
        (["unet.use=dot"], '[unet] use = "dot" is not allowed (did you mean "dit"?): it takes one of "unet", "dit"'),
        (["t2i.use=[1]"], "[t2i] use = [1] is not allowed: it takes one of"),
        (["unet.width=256"], '[unet] has the unknown key "width" (it belongs to [unet] with use = "dit") (from --set'),
        (["t2i.use=dit", "t2i.time_dim=8"], '[t2i] has the unknown key "time_dim" (it belongs to [t2i] with use = "u'),
        (["unet.use=dit", "unet.widht=256"], '[unet] has the unknown key "widht" (did you mean "width"?)'),
        (["unet.use=dit", "unet.width=250"], "[unet] width = 250 is not allowed: it takes integer > 0, <= 4096, a mul"),
        (["vae.losses.kl.wight=3"], '[vae.losses.kl] has the unknown key "wight" (did you mean "weight"?)'),
        (["vae.guard.plateau_pnsr=1"], '[vae.guard] has the unknown key "plateau_pnsr" (did you mean "plateau_psnr"?)'),
        (["vae.gaurd.plateau_psnr=1"], '[vae] has the unknown key "gaurd" (did you mean "guard"?)'),
        (["vae.plateau_psnr=1"], '[vae] has the unknown key "plateau_psnr" (it belongs to [vae.guard])'),
        (["vae.guard.eval_every=1"], '"eval_every" (it belongs to [vae], [unet], [t2i])'),
        (["vae.guard.weight_factor=1"], "[vae.guard] weight_factor = 1 is not allowed: it takes float >= 0, < 1"),
        (
            ["vae.losses.gan.channels=[8, 0]"],
            '[vae.losses.gan] channels[1] = 0 is not allowed: the loss "patchgan" takes list of integer > 0',
        ),
        (["vae.losses.gan.channels=[8, 0]"], "(from --set vae.losses.gan.channels=[8, 0])"),
        (["vae.guard=3"], "[vae] guard = 3 is not allowed: it takes table"),
        (["sampler.use=dimm"], 'no sampler is called "dimm" (did you mean "ddim"?)'),
        (["text={use='transformer', heads=3}"], "width = 128 is not a multiple of heads = 3"),
    ],
)
def test_set_refuses(overrides: list[str], expected: str, full_recipe: Path, registry: Registry) -> None:
    with pytest.raises(LdmkitError) as error:
        RecipeFile.read(full_recipe, overrides).validate(registry)
    assert expected in str(error.value)


def test_recipes_are_found_by_path_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe("cats") == find_recipe("recipes/cats.toml") == find_recipe("cats.toml")
    mine = tmp_path / "cats.toml"
    mine.write_text("")
    assert find_recipe("cats.toml") == Path("cats.toml")
    shipped = "the recipes that come with ldmkit are cats, cats-seed, photos-128, photos-256, photos-64, toy-cats"
    for name, expected in {
        "nothing": f"nothing: no such recipe; {shipped}",
        "toy-cat": f'toy-cat: no such recipe (did you mean "toy-cats"?); {shipped}',
        "recipes/photo-64.toml": f'recipes/photo-64.toml: no such recipe (did you mean "photos-64"?); {shipped}',
        "elsewhere/cats.toml": f'elsewhere/cats.toml: no such recipe (did you mean "cats"?); {shipped}',
        "cat.toml": f'cat.toml: no such recipe (did you mean "cats.toml"?); {shipped}',
        str(tmp_path): f"{tmp_path}: is a folder; a recipe is a TOML file, or one of cats, cats-seed",
    }.items():
        with pytest.raises(LdmkitError, match=re.escape(expected)):
            find_recipe(name)


def test_plugin_files_lie_beside_the_recipe(full_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    text = "plugins = ['./jump.py']\n" + full_recipe.read_text().replace('"ddpm"\nvariance = "beta"', '"jump"')
    assert '"jump"' in text
    (folder / "mine.toml").write_text(text)
    (folder / "jump.py").write_text(
        "from ldmkit import hookimpl\n\n\n"
        "class Jump:\n"
        "    def __init__(self, *, steps: int = 1, far: bool = False) -> None: ...\n\n\n"
        "@hookimpl\n"
        "def register_samplers():\n    return {'jump': Jump}\n"
    )
    file = RecipeFile.read(Path("mine/mine.toml"), ["sampler.far=true"])
    assert file.plugin_files() == [folder / "jump.py"]
    recipe = file.validate(Registry.load(file.plugin_files()))
    assert recipe.sampler.table() == {"use": "jump", "steps": 1000, "far": True}
    # Shown, it goes elsewhere; the plugin stays.
    assert tomllib.loads(to_toml(recipe))["plugins"] == [str(folder / "jump.py")]
    named = RecipeFile.read(Path("mine/mine.toml"), ["plugins=['other.py']"])
    assert named.plugin_files() == [Path("other.py")]


@pytest.mark.parametrize("plugin", ["../x.py", "FOLDER/x.py", "a/../../x.py", "link.py"])
def test_plugins_outside_the_recipes_folder_are_refused(plugin: str, tmp_path: Path) -> None:
    """A stranger's recipe has no file of the user's run; named on the command line it is the user's wish."""
    (tmp_path / "x.py").write_text("raise AssertionError('it was run')")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "link.py").symlink_to(tmp_path / "x.py")
    path = tmp_path / "mine" / "mine.toml"
    path.write_text(f"plugins = ['{plugin.replace('FOLDER', str(tmp_path))}']")
    with pytest.raises(LdmkitError, match="lies outside the recipe's folder"):
        RecipeFile.read(path)
    path.write_text("")
    assert RecipeFile.read(path, [f"plugins=['{tmp_path}/x.py']"]).plugin_files() == [tmp_path / "x.py"]


def test_a_home_that_is_nobodys(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("plugins = ['~nosuchuser/x.py']")  # no expansion: a folder of this name beside the recipe
    with pytest.raises(LdmkitError, match=r"~nosuchuser/x\.py: no such plugin file"):
        Registry.load(RecipeFile.read(path).plugin_files())
    path.write_text("")
    with pytest.raises(LdmkitError, match=r"~nosuchuser/x\.py: no such plugin file"):
        Registry.load(RecipeFile.read(path, ["plugins=['~nosuchuser/x.py']"]).plugin_files())
