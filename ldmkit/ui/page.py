"""The page: what it shows, and what its events do."""

import json
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ldmkit.components.registry import Registry
from ldmkit.errors import LdmkitError
from ldmkit.runtime.bundle import Bundle
from ldmkit.ui.drawing import Progress, draw
from ldmkit.ui.html import live_html, settings_html
from ldmkit.ui.layout import EXAMPLES, Layout, fields_of
from ldmkit.ui.queue import DrawQueue
from ldmkit.ui.sessions import Session, Sessions
from ldmkit.ui.settings import MAX_SEED, request_of, sides_of

SETTINGS = ("bundle", "prompt", "negative", "seed", "steps", "guidance", "sampler", "width", "height", "count")
"""fields of the page in the order in which it sends their values"""
CLOSE_PICTURE = "() => document.querySelector('#gallery button[aria-label=Close]')?.click()"
"""a picture that is shown large would hide the new ones, and an update to no selected picture never leaves Gradio"""

Updates = dict[Any, Any]
"""component -> its new value"""


class Page:
    """A Gradio app that draws with `bundles`, and keeps its pictures in `folder`."""

    def __init__(self, bundles: Mapping[str, Bundle], folder: Path) -> None:
        self.bundles = dict(bundles)
        self.folder = folder
        self.samplers = Registry.load().names("sampler")
        self.fields = {name: fields_of(bundle) for name, bundle in bundles.items()}
        self.sessions = Sessions()
        self.turns = DrawQueue()
        self._in_memory: str | None = None
        """name of the bundle whose graphs are open"""
        name, bundle = next(iter(bundles.items()))
        with gr.Blocks(title=f"{bundle.manifest.name} - ldmkit", analytics_enabled=False, fill_width=True) as self.app:
            self.on = Layout(list(bundles), self.samplers, self.fields[name])
            self._connect()

    def num_inputs(self) -> dict[int, int]:
        """Number of each event that reaches the server -> how many values it takes."""
        return {number: len(event.inputs) for number, event in self.app.fns.items() if event.fn is not None}

    def _connect(self) -> None:
        """Events. Values reach `draw` as they were sent: it checks them itself, types as well."""
        settings = [getattr(self.on, name) for name in SETTINGS]
        shown = [getattr(self.on, name) for name in self.fields[next(iter(self.bundles))]]
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        begin = [self.on.draw_button.click, self.on.prompt.submit, self.on.negative.submit, self.on.seed.submit]
        gr.on(begin, None, js=CLOSE_PICTURE)
        gr.on(
            begin,
            self.draw,
            settings,
            [self.on.live, self.on.gallery, self.on.stop_button],
            preprocess=False,
            concurrency_limit=None,  # they wait in a queue of our own, which tells how long it is and can be left
            trigger_mode="once",
            show_progress="hidden",
            api_visibility="private",
        )
        self.on.stop_button.click(self.stop, None, self.on.stop_button, **quick)
        self.on.gallery.select(self.select, None, [self.on.chosen, self.on.details, self.on.download], **quick)
        self.on.gallery.preview_close(self.close, None, [self.on.chosen], **quick)
        self.on.again_button.click(self.again, None, [*dict.fromkeys([*settings, *shown])], **quick).then(
            None, js="() => document.querySelector('#draw').focus()"
        )
        self.on.bundle.input(self.choose, self.on.bundle, shown, preprocess=False, **quick)
        self.on.dice.click(None, None, self.on.seed, js=f"() => Math.floor(Math.random() * {MAX_SEED + 1})")
        for example in (getattr(self.on, name) for name in EXAMPLES):
            example.click(None, example, self.on.prompt, js="(text) => text")
        self.app.unload(self.leave)

    def draw(self, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """Previews and pictures as they come; `values` are those of SETTINGS, as whoever sent them wrote them."""
        try:
            session = self.sessions.begin(request.session_hash)  # one drawing a page
        except LdmkitError as error:
            raise self._refused(error) from None
        stop = session.stop
        try:
            settings = dict(zip(SETTINGS, values, strict=True))
            bundle = self._named(settings["bundle"])
            wanted = request_of(settings, self.samplers, sides_of(bundle.manifest))
            yield {self.on.live: live_html(Progress(0, 0)), self.on.stop_button: gr.update(interactive=True)}
            drawn: list[Path] = []
            notes: list[str] = []
            for progress in draw(
                bundle,
                wanted,
                folder=self.folder,
                stop=stop,
                turns=self.turns,
                on_turn=lambda: self._keep_open(settings["bundle"]),
            ):
                updates: Updates = {self.on.live: live_html(progress)}
                notes += progress.warnings
                if progress.pictures:
                    drawn += [self._into_cache(path) for path in progress.pictures]
                    self.sessions.add(session, drawn)
                    updates[self.on.gallery] = self._gallery(session)
                yield updates
            if len(drawn) < len(wanted.pictures):
                notes.append(f"Stopped: {len(drawn)} of {len(wanted.pictures)} pictures were finished.")
            yield {self.on.live: live_html(notes=notes), self.on.stop_button: gr.update(interactive=False)}
        except Exception as error:
            yield {self.on.live: live_html(), self.on.stop_button: gr.update(interactive=False)}
            raise (self._refused(error) if isinstance(error, LdmkitError) else error) from None
        finally:
            stop.set()

    def stop(self, request: gr.Request) -> Any:
        """Ends this page's drawing after the step in work."""
        self.sessions.stop(request.session_hash)
        return gr.update(interactive=False)

    def leave(self, request: gr.Request) -> None:
        """The page was closed."""
        self.sessions.stop(request.session_hash)

    def _gallery(self, session: Session) -> Any:
        """The pictures; the one that is shown large stays so, though others come before it."""
        if session.selected not in session.pictures:
            return session.pictures
        return gr.update(value=session.pictures, selected_index=session.pictures.index(session.selected))

    def close(self, request: gr.Request) -> Updates:
        """No picture is shown large any more."""
        if session := self.sessions.find(request.session_hash):
            session.selected = None
        return {self.on.chosen: gr.update(visible=False)}

    def select(self, event: gr.EventData, request: gr.Request) -> Updates:
        """Shows the settings of a picture, as its file holds them."""
        session = self.sessions.find(request.session_hash)
        # By its path, as its number is another once more pictures have come. gr.SelectData would fail where a request
        # leaves something out.
        try:
            chosen = event._data["value"]["image"]["path"]
        except (KeyError, TypeError):
            chosen = None
        if session is None or chosen not in map(str, session.pictures):
            raise gr.Error("this picture is not here any more", print_exception=False)
        session.selected = Path(chosen)
        return {
            self.on.chosen: gr.update(visible=True),
            self.on.details: settings_html(read_settings(session.selected)),
            self.on.download: session.selected,
        }

    def again(self, request: gr.Request) -> Updates:
        """The selected picture's settings, back in the controls."""
        session = self.sessions.find(request.session_hash)
        if session is None or session.selected is None or not session.selected.is_file():
            raise gr.Error("select a picture first", print_exception=False)
        found = read_settings(session.selected)
        width, height = found["size"].split(" x ")
        sampler = found["sampler"]  # or all of its options
        (bundle,) = [name for name, each in self.bundles.items() if each.sha256 == found["bundle_sha256"]][:1]
        values = {
            "bundle": bundle,
            "prompt": found["prompt"],
            "negative": found.get("negative", ""),
            "seed": int(found["seed"]),
            "steps": int(found["steps"]),
            "guidance": float(found["guidance"]),
            "sampler": json.loads(sampler)["use"] if sampler.startswith("{") else sampler,
            "width": int(width),
            "height": int(height),
            "count": 1,
        }
        return self._show(bundle, values)

    def choose(self, name: Any) -> Updates:
        """Another bundle, with its defaults."""
        try:
            self._named(name)
        except LdmkitError as error:
            raise self._refused(error) from None
        return self._show(name, {})

    def _show(self, name: str, values: Mapping[str, Any]) -> Updates:
        """What the page holds of a bundle, with `values` in place of its defaults."""
        given = {field: {"value": value} for field, value in values.items()}
        fields = self.fields[name]
        return {
            getattr(self.on, field): gr.update(**fields.get(field, {}) | given.get(field, {}))
            for field in fields | given
        }

    def _named(self, name: Any) -> Bundle:
        if not isinstance(name, str) or name not in self.bundles:
            raise LdmkitError("there is no such bundle")
        return self.bundles[name]

    def _keep_open(self, name: str) -> None:
        """Lets the graphs of another bundle go, as one alone is kept in memory."""
        if self._in_memory is not None and self._in_memory != name:
            self.bundles[self._in_memory].close()
        self._in_memory = name

    def _into_cache(self, path: Path) -> Path:
        """Moves a picture to where Gradio serves files from: it would copy it there."""
        cached = self.on.gallery.move_resource_to_block_cache(path)
        assert cached is not None
        path.unlink()
        return Path(cached)

    def _refused(self, error: LdmkitError) -> gr.Error:
        """For the page, which takes it for HTML: escaped, and without the folders of this machine."""
        message = str(error)
        for name, bundle in self.bundles.items():
            message = message.replace(str(bundle.folder), name)
        return gr.Error(escape(message), title="Not drawn", print_exception=False)


def read_settings(path: Path) -> dict[str, str]:
    """The text metadata of a PNG that this server wrote, and its size."""
    with Image.open(path) as image:
        text: dict[str, str] = image.text  # type: ignore[attr-defined] # a PNG's alone, and Image has none
        return {**text, "size": f"{image.width} x {image.height}"}
