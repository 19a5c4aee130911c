"""The page: what it shows, and what its events do."""

import html
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ldmkit.errors import LdmkitError
from ldmkit.plugins import Registry
from ldmkit.runtime.bundle import Bundle
from ldmkit.runtime.manifest import Defaults
from ldmkit.ui import asked as limits
from ldmkit.ui.asked import check_asked
from ldmkit.ui.card import card_html
from ldmkit.ui.drawing import Progress, draw
from ldmkit.ui.live import live_html, settings_html
from ldmkit.ui.sessions import Sessions

MAX_WAITING = 8
"""drawings in the queue; one more is refused"""
MAX_EXAMPLES = 4

Updates = dict[Any, Any]
"""component -> its new value"""


class Page:
    """A Gradio app that draws with `bundles`, and keeps its pictures in `folder`."""

    def __init__(self, bundles: Mapping[str, Bundle], folder: Path) -> None:
        self.bundles = dict(bundles)
        self.folder = folder
        self.samplers = Registry.load().names("sampler")
        self.sessions = Sessions()
        self._alone = threading.Lock()
        self._in_memory: str | None = None
        """name of the bundle whose graphs are open"""
        self.app = self._build()

    def _build(self) -> gr.Blocks:
        first = next(iter(self.bundles.values()))
        defaults = first.manifest.defaults
        with gr.Blocks(title=f"ldmkit: {first.manifest.name}", analytics_enabled=False, delete_cache=None) as app:
            with gr.Row(elem_id="top"):
                self.header = gr.HTML(elem_id="header")
                self.bundle = gr.Dropdown(
                    list(self.bundles),
                    value=next(iter(self.bundles)),
                    label="Bundle",
                    elem_id="bundle",
                    visible=len(self.bundles) > 1,
                )
            with gr.Row(elem_id="columns"):
                with gr.Column(elem_id="controls", min_width=300):
                    with gr.Column(elem_id="ask"):
                        self._build_ask()
                    with gr.Column(elem_id="more"):
                        self._build_settings(defaults)
                with gr.Column(elem_id="pictures", min_width=320):
                    self.live = gr.HTML(live_html(), elem_id="live")
                    self.gallery = gr.Gallery(
                        label="Pictures",
                        show_label=False,
                        format="png",
                        columns=4,
                        height="auto",
                        object_fit="contain",
                        interactive=False,
                        buttons=["download", "fullscreen"],
                        elem_id="gallery",
                    )
                    with gr.Column(elem_id="chosen", visible=False) as self.chosen:
                        self.details = gr.HTML(elem_id="details")
                        with gr.Row():
                            self.again_button = gr.Button("Use these again", size="md", scale=0, elem_id="again")
                            self.download = gr.DownloadButton("Download PNG", size="md", scale=0, elem_id="download")
            with gr.Accordion("About this bundle", open=False, elem_id="about"):
                self.card = gr.HTML(elem_id="card")
            self._connect(app)
        return app

    def _build_ask(self) -> None:
        self.prompt = gr.Textbox(
            label="Prompt",
            placeholder="Empty: whatever comes to its mind",
            lines=1,  # with one line Enter submits, and the field still grows with its text
            max_lines=6,
            max_length=limits.MAX_PROMPT,
            autofocus=True,
            elem_id="prompt",
        )
        with gr.Row(elem_id="examples"):
            self.examples = [gr.Button(size="sm", elem_classes="example", visible=False) for _ in range(MAX_EXAMPLES)]
        with gr.Row(elem_id="actions"):
            self.draw_button = gr.Button("Draw", variant="primary", elem_id="draw", scale=3)
            self.stop_button = gr.Button("Stop", interactive=False, elem_id="stop", scale=1, min_width=80)

    def _build_settings(self, defaults: Defaults) -> None:
        with gr.Row(elem_id="seed-row"):
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=limits.MAX_SEED, elem_id="seed")
            self.dice = gr.Button("Random seed", elem_id="dice", scale=0)
        self.count = gr.Slider(1, limits.MAX_PICTURES, 4, step=1, precision=0, label="Pictures", elem_id="count")
        with gr.Accordion("More settings", open=False, elem_id="settings"):
            self.negative = gr.Textbox(
                label="Negative prompt",
                info="What to keep away from.",
                lines=1,
                max_lines=4,
                max_length=limits.MAX_PROMPT,
                elem_id="negative",
            )
            self.steps = gr.Slider(
                1, limits.MAX_STEPS, defaults.steps, step=1, precision=0, label="Steps", elem_id="steps"
            )
            self.guidance = gr.Slider(
                0,
                limits.MAX_GUIDANCE,
                defaults.guidance_scale,
                step=0.1,
                label="Guidance",
                info="How closely to follow the prompt; 1 is off.",
                elem_id="guidance",
            )
            self.sampler = gr.Dropdown(self.samplers, value=defaults.sampler, label="Sampler", elem_id="sampler")

    def _connect(self, app: gr.Blocks) -> None:
        """Events. Values reach `draw` as they were sent: it checks them itself, types as well."""
        settings = [
            self.bundle,
            self.prompt,
            self.negative,
            self.seed,
            self.steps,
            self.guidance,
            self.sampler,
            self.count,
        ]
        quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        gr.on(
            [self.draw_button.click, self.prompt.submit, self.negative.submit, self.seed.submit],
            self.draw,
            settings,
            [self.live, self.gallery, self.stop_button],
            preprocess=False,
            concurrency_limit=1,
            trigger_mode="once",
            show_progress="hidden",
            api_visibility="private",
        )
        self.stop_button.click(self.stop, None, self.stop_button, **quick)
        self.gallery.select(self.select, None, [self.chosen, self.details, self.download], **quick)
        self.dice.click(None, None, self.seed, js="() => Math.floor(Math.random() * 4294967296)")
        for example in self.examples:
            example.click(None, example, self.prompt, js="(text) => text")
        shown = [self.header, self.card, self.prompt, self.negative, *self.examples]
        chosen = [self.bundle, self.prompt, self.negative, self.seed, self.steps, self.guidance, self.sampler]
        self.again_button.click(self.again, None, [*dict.fromkeys([*chosen, self.count, *shown])], **quick)
        self.bundle.input(
            self.choose, self.bundle, [*shown, self.steps, self.guidance, self.sampler], preprocess=False, **quick
        )
        app.load(lambda: self._shown(next(iter(self.bundles))), None, shown, **quick)
        app.unload(self.leave)

    def draw(
        self,
        bundle: Any,
        prompt: Any,
        negative: Any,
        seed: Any,
        steps: Any,
        guidance: Any,
        sampler: Any,
        count: Any,
        request: gr.Request,
    ) -> Iterator[Updates]:
        """Previews and pictures as they come."""
        session = self.sessions.get(request.session_hash)
        session.stop = stop = threading.Event()
        try:
            asked = check_asked(
                {
                    "prompt": prompt,
                    "negative_prompt": negative,
                    "seed": seed,
                    "steps": steps,
                    "guidance_scale": guidance,
                    "sampler": sampler,
                    "count": count,
                },
                self.samplers,
            )
            opened = self._open(bundle)
            yield {self.live: live_html(Progress(0, 0, in_work=asked.count)), self.stop_button: _enabled(True)}
            drawn: list[Path] = []
            notes: list[str] = []
            for progress in draw(opened, asked, folder=self.folder, stop=stop, alone=self._alone):
                left = min(asked.count - len(drawn) - len(progress.pictures), progress.in_work or asked.count)
                updates: Updates = {self.live: live_html(progress, left=left)}
                notes += progress.warnings
                if progress.pictures:
                    drawn += [self._into_cache(path) for path in progress.pictures]
                    self.sessions.add(session, drawn)
                    updates[self.gallery] = session.pictures
                yield updates
            if len(drawn) < asked.count:
                notes.append(f"Stopped: {len(drawn)} of {asked.count} pictures were finished.")
            yield {self.live: live_html(notes=notes), self.stop_button: _enabled(False)}
        except LdmkitError as error:
            yield {self.live: live_html(), self.stop_button: _enabled(False)}
            raise self._refused(error) from None
        finally:
            stop.set()

    def stop(self, request: gr.Request) -> Any:
        """Ends this page's drawing after the step in work."""
        self.sessions.get(request.session_hash).stop.set()
        return _enabled(False)

    def leave(self, request: gr.Request) -> None:
        """The page was closed."""
        self.sessions.get(request.session_hash).stop.set()

    def select(self, event: gr.SelectData, request: gr.Request) -> Updates:
        """Shows the settings of a picture, as its file holds them."""
        session = self.sessions.get(request.session_hash)
        if not isinstance(event.index, int) or not 0 <= event.index < len(session.pictures):
            raise gr.Error("This picture is not here any more.", print_exception=False)
        session.selected = session.pictures[event.index]
        return {
            self.chosen: gr.update(visible=True),
            self.details: settings_html(read_settings(session.selected)),
            self.download: session.selected,
        }

    def again(self, request: gr.Request) -> Updates:
        """The selected picture's settings, back in the controls."""
        session = self.sessions.get(request.session_hash)
        if session.selected is None or not session.selected.is_file():
            raise gr.Error("Select a picture first.", print_exception=False)
        found = read_settings(session.selected)
        updates: Updates = self._shown(found["bundle"])
        return updates | {
            self.bundle: found["bundle"],
            self.prompt: gr.update(value=found["prompt"]),
            self.negative: gr.update(value=found.get("negative_prompt", "")),
            self.seed: int(found["seed"]),
            self.steps: int(found["steps"]),
            self.guidance: float(found["guidance"]),
            self.sampler: found["sampler"],
            self.count: 1,
        }

    def choose(self, name: Any) -> Updates:
        """Another bundle, with its defaults."""
        try:
            shown = self._shown(name)
        except LdmkitError as error:
            raise self._refused(error) from None
        defaults = self.bundles[name].manifest.defaults
        return shown | {
            self.steps: defaults.steps,
            self.guidance: defaults.guidance_scale,
            self.sampler: defaults.sampler,
        }

    def _shown(self, name: Any) -> Updates:
        """What the page says of a bundle."""
        bundle = self._named(name)
        manifest = bundle.manifest
        examples = manifest.examples if bundle.draws_text else ()
        chips = {
            button: gr.update(value=text or "", visible=text is not None)
            for button, text in zip(self.examples, [*examples, *[None] * MAX_EXAMPLES], strict=False)
        }
        size = f"{manifest.picture_size} × {manifest.picture_size} pixels"
        return {
            self.header: f"<h1>{html.escape(manifest.name)}</h1><p>{size}, drawn on this machine</p>",
            self.card: card_html(bundle),
            self.prompt: gr.update(visible=bundle.draws_text),
            self.negative: gr.update(visible=bundle.draws_text),
            **chips,
        }

    def _named(self, name: Any) -> Bundle:
        if not isinstance(name, str) or name not in self.bundles:
            raise LdmkitError("There is no such bundle.")
        return self.bundles[name]

    def _open(self, name: Any) -> Bundle:
        """The bundle to draw with; the graphs of the one before are let go."""
        bundle = self._named(name)
        with self._alone:
            if self._in_memory not in (None, name):
                last = self.bundles[self._in_memory]
                self.bundles[self._in_memory] = Bundle.load(last.folder, provider=last._asked)
            self._in_memory = name
        return bundle

    def _into_cache(self, path: Path) -> Path:
        """Moves a picture to where Gradio serves files from: it would copy it there."""
        cached = self.gallery.move_resource_to_block_cache(path)
        path.unlink()
        return Path(cached)

    def _refused(self, error: LdmkitError) -> gr.Error:
        """For the page: without the folders of this machine."""
        message = str(error)
        for name, bundle in self.bundles.items():
            message = message.replace(str(bundle.folder), name)
        return gr.Error(message, title="Not drawn", print_exception=False)


def read_settings(path: Path) -> dict[str, str]:
    """The text metadata of a PNG that this server wrote."""
    with Image.open(path) as image:
        return {key: str(value) for key, value in image.text.items()}  # type: ignore[attr-defined]


def _enabled(enabled: bool) -> Any:
    return gr.update(interactive=enabled)
