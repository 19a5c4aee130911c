"""What stands where on the page. The widgets hold the same limits as the server, which trusts none of them."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import gradio as gr

from ldmkit.runtime.bundle import Bundle
from ldmkit.ui import settings as limits
from ldmkit.ui.html import card_html, header_html, live_html

EXAMPLES = ("example_1", "example_2", "example_3", "example_4")
"""buttons with prompts to try, hidden where the bundle names fewer"""

Fields = dict[str, dict[str, Any]]
"""attribute of `Layout` -> what depends on the bundle of the component's keywords, and of `gr.update`'s"""


class Layout:
    """The page's components, made inside the `gr.Blocks` at hand."""

    def __init__(self, bundles: Sequence[str], samplers: Sequence[str], fields: Fields) -> None:
        """`fields`: what they hold of the first bundle."""
        with gr.Row(elem_id="top"):
            self.header = gr.HTML(elem_id="header", **fields["header"])
            self.bundle = gr.Dropdown(
                list(bundles), value=bundles[0], label="Bundle", elem_id="bundle", visible=len(bundles) > 1
            )
        with gr.Row(elem_id="columns"):
            with gr.Column(elem_id="controls", min_width=300):
                with gr.Column(elem_id="ask"):
                    self._build_ask(fields)
                with gr.Column(elem_id="more"):
                    self._build_settings(fields, samplers)
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
            self.card = gr.HTML(elem_id="card", **fields["card"])

    def _build_ask(self, fields: Fields) -> None:
        self.prompt = gr.Textbox(
            label="Prompt",
            placeholder="Empty: whatever it likes",
            lines=1,  # with one line Enter submits, and the field still grows with its text
            max_lines=6,
            max_length=limits.MAX_PROMPT,
            autofocus=True,
            elem_id="prompt",
            **fields["prompt"],
        )
        with gr.Row(elem_id="examples"):
            for name in EXAMPLES:
                setattr(self, name, gr.Button(size="sm", elem_classes="example", **fields[name]))
        with gr.Row(elem_id="actions"):
            self.draw_button = gr.Button("Draw", variant="primary", elem_id="draw", scale=3)
            self.stop_button = gr.Button("Stop", interactive=False, elem_id="stop", scale=1, min_width=80)

    def _build_settings(self, fields: Fields, samplers: Sequence[str]) -> None:
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
                **fields["negative"],
            )
            self.steps = gr.Slider(
                1, limits.MAX_STEPS, step=1, precision=0, label="Steps", elem_id="steps", **fields["steps"]
            )
            self.guidance = gr.Slider(
                0,
                limits.MAX_GUIDANCE,
                step=0.1,
                label="Guidance",
                info="How closely to follow the prompt; 1 is off.",
                elem_id="guidance",
                **fields["guidance"],
            )
            self.sampler = gr.Dropdown(list(samplers), label="Sampler", elem_id="sampler", **fields["sampler"])
            with gr.Row():
                self.width, self.height = (
                    gr.Dropdown(label=label, min_width=120, elem_id=label.lower(), **fields[label.lower()])
                    for label in ("Width", "Height")
                )


def fields_of(bundle: Bundle) -> Fields:
    """What the page shows of a bundle. Raises LdmkitError where a file of its card does not match its hash."""
    manifest = bundle.manifest
    text: dict[str, Any] = {"visible": True} if bundle.draws_text else {"visible": False, "value": ""}
    examples = manifest.examples if bundle.draws_text else ()
    trained = ", ".join(f"{width} x {height}" for width, height in manifest.sizes)
    sides = {
        name: {
            "choices": list(each),
            "value": usual,
            "info": f"Trained at {trained or usual}.",
            "visible": len(each) > 1,
        }
        for name, each, usual in zip(limits.SIDES, limits.sides_of(manifest), manifest.size, strict=True)
    }
    return {
        "header": {"value": header_html(bundle)},
        "card": {"value": card_html(bundle)},
        "prompt": text,
        "negative": text,
        "steps": {"value": manifest.defaults.steps},
        "guidance": {"value": manifest.defaults.guidance_scale},
        "sampler": {"value": manifest.defaults.sampler},
        **sides,
        **{
            name: {"value": example, "visible": bool(example)}
            for name, example in zip_longest(EXAMPLES, examples[: len(EXAMPLES)], fillvalue="")
        },
    }
