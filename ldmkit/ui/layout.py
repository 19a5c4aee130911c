"""What stands where on the page. The widgets hold the same limits as the server, which trusts none of them."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from ldmkit.ui import asked as limits
from ldmkit.ui.live import live_html
from ldmkit.ui.shown import Shown


class Layout:
    """The page's components, made inside the `gr.Blocks` at hand."""

    def __init__(self, bundles: Sequence[str], shown: Shown, samplers: Sequence[str]) -> None:
        with gr.Row(elem_id="top"):
            self.header = gr.HTML(shown.header, elem_id="header")
            self.bundle = gr.Dropdown(
                list(bundles),
                value=bundles[0],
                label="Bundle",
                elem_id="bundle",
                visible=len(bundles) > 1,
            )
        with gr.Row(elem_id="columns"):
            with gr.Column(elem_id="controls", min_width=300):
                with gr.Column(elem_id="ask"):
                    self._build_ask(shown)
                with gr.Column(elem_id="more"):
                    self._build_settings(shown, samplers)
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
                    buttons=["fullscreen"],  # the download stands below, beside the settings
                    elem_id="gallery",
                )
                with gr.Column(elem_id="chosen", visible=False) as self.chosen:
                    self.details = gr.HTML(elem_id="details")
                    with gr.Row():
                        self.again_button = gr.Button("Use these again", size="md", scale=0, elem_id="again")
                        self.download = gr.DownloadButton("Download PNG", size="md", scale=0, elem_id="download")
        with gr.Accordion("About this bundle", open=False, elem_id="about"):
            self.card = gr.HTML(shown.card, elem_id="card")

    def _build_ask(self, shown: Shown) -> None:
        self.prompt = gr.Textbox(
            label="Prompt",
            placeholder="Empty: whatever it likes",
            lines=1,  # with one line Enter submits, and the field still grows with its text
            max_lines=6,
            max_length=limits.MAX_PROMPT,
            autofocus=True,
            elem_id="prompt",
            visible=shown.draws_text,
        )
        with gr.Row(elem_id="examples"):
            self.examples = [
                gr.Button(text, size="sm", elem_classes="example", visible=bool(text)) for text in shown.examples
            ]
        with gr.Row(elem_id="actions"):
            self.draw_button = gr.Button("Draw", variant="primary", elem_id="draw", scale=3)
            self.stop_button = gr.Button("Stop", interactive=False, elem_id="stop", scale=1, min_width=80)

    def _build_settings(self, shown: Shown, samplers: Sequence[str]) -> None:
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
                visible=shown.draws_text,
            )
            self.steps = gr.Slider(
                1, limits.MAX_STEPS, shown.defaults.steps, step=1, precision=0, label="Steps", elem_id="steps"
            )
            self.guidance = gr.Slider(
                0,
                limits.MAX_GUIDANCE,
                shown.defaults.guidance_scale,
                step=0.1,
                label="Guidance",
                info="How closely to follow the prompt; 1 is off.",
                elem_id="guidance",
            )
            self.sampler = gr.Dropdown(list(samplers), value=shown.defaults.sampler, label="Sampler", elem_id="sampler")
            with gr.Row():
                self.width, self.height = (
                    gr.Dropdown(label=label, min_width=120, elem_id=label.lower(), **side_of(shown))
                    for label in ("Width", "Height")
                )


def side_of(shown: Shown) -> dict[str, Any]:
    """For the field of a width or a height: what it offers, hidden where the bundle draws one size only."""
    return {
        "choices": list(shown.sides),
        "value": shown.picture_size,
        "info": f"Trained at {shown.picture_size}.",
        "visible": len(shown.sides) > 1,
    }
