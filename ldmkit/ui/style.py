"""How the page looks: Gradio's own widgets, calmer; no font or file from elsewhere."""

import gradio as gr

SANS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]


def theme() -> gr.themes.Base:
    """Light and dark, after the system's setting."""
    return gr.themes.Default(
        primary_hue=gr.themes.colors.orange,
        secondary_hue=gr.themes.colors.orange,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_lg,
        font=SANS,
        font_mono=MONO,
    ).set(
        body_text_color_subdued="*neutral_500",  # Gradio's own is too pale to read on white
        block_info_text_color="*neutral_500",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
    )


# A die, as no emoji is in every system's fonts.
_DIE = (
    "url(\"data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 24 24'%3E%3Cpath "
    "fill-rule='evenodd' d='M6 3h12a3 3 0 0 1 3 3v12a3 3 0 0 1-3 3H6a3 3 0 0 1-3-3V6a3 3 0 0 1 3-3z"
    "m2 3.5a1.5 1.5 0 1 0 0 3 1.5 1.5 0 0 0 "
    "0-3zm8 0a1.5 1.5 0 1 0 0 3 1.5 1.5 0 0 0 0-3zm-4 4a1.5 1.5 0 1 0 0 3 1.5 1.5 0 0 0 0-3zm-4 4a1.5 1.5 0 1 0 0 3 "
    "1.5 1.5 0 0 0 0-3zm8 0a1.5 1.5 0 1 0 0 3 1.5 1.5 0 0 0 0-3z'/%3E%3C/svg%3E\")"
)

CSS = """
.gradio-container { width: 100% !important; max-width: 1180px !important; margin: 0 auto !important; }
.gradio-container .prose { color: var(--body-text-color); }
#header .html-container, #live .html-container, #details .html-container { padding: 0; }
#top { align-items: flex-end; flex-wrap: wrap; }
#header { flex: 1 1 220px; min-width: 220px !important; }
#header h1 { font-size: 1.5rem; margin: 0; }
#header p { color: var(--body-text-color-subdued); margin: 0.15rem 0 0; }
#top .form { flex: 0 1 260px !important; min-width: 220px !important; }

#columns { gap: 24px; }
#columns > *, #controls > * { min-width: 0 !important; }
#controls { flex: 0 0 380px !important; gap: 16px; }
#pictures { flex: 1 1 400px !important; gap: 16px; }
#ask, #more { gap: 12px; }
#ask #prompt textarea { font-size: 1rem; line-height: 1.45; }

#examples { flex-wrap: wrap; gap: 6px; }
.example {
  flex: 0 1 auto !important; min-width: 0 !important; max-width: 100%; display: -webkit-box !important;
  -webkit-box-orient: vertical; -webkit-line-clamp: 2; overflow: hidden; overflow-wrap: anywhere; text-align: left;
  padding: 3px 12px !important; border-radius: 14px !important; font-weight: 400 !important; line-height: 1.35;
  font-size: 0.8rem !important; color: var(--body-text-color-subdued) !important;
  background: transparent !important; border: 1px solid var(--border-color-primary) !important;
}
.example:hover { color: var(--body-text-color) !important; border-color: var(--color-accent) !important; }

.dark #controls input[type=range] { --neutral-200: var(--border-color-primary); }
#seed-row { position: relative; }
#seed input { padding-right: 52px; appearance: textfield; }
#seed input::-webkit-inner-spin-button { display: none; }
#dice {
  position: absolute; right: 14px; bottom: 13px; width: 38px !important; min-width: 38px !important; height: 34px;
  padding: 0; font-size: 0; background: transparent; border-color: transparent; box-shadow: none;
}
#dice::before {
  content: ""; width: 22px; height: 22px; background: var(--body-text-color-subdued);
  mask: DIE center / contain no-repeat;
}
#dice:hover::before, #dice:focus-visible::before { background: var(--color-accent); }

.gradio-container :is(button, summary, a, input[type=range]):focus-visible {
  outline: 2px solid var(--color-accent); outline-offset: 2px;
}

#live:not(:has(.work)):not(:has(.note)) { display: none; }
#live .bar { display: flex; align-items: center; gap: 12px; font-variant-numeric: tabular-nums; }
#live .bar span { color: var(--body-text-color-subdued); min-width: 3.2em; text-align: right; }
#live progress { flex: 1; height: 8px; appearance: none; border: 0; border-radius: 4px; overflow: hidden;
  background: var(--border-color-primary); }
#live progress::-webkit-progress-bar { background: var(--border-color-primary); }
#live progress::-webkit-progress-value { background: var(--color-accent); }
#live progress::-moz-progress-bar { background: var(--color-accent); }
#live progress:indeterminate::-webkit-progress-bar { background: var(--border-color-primary); }
#live .tiles, #gallery .grid-container {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(148px, 44%), 1fr)); gap: 8px;
}
#live .tiles { margin-top: 12px; }
#pictures:has(#live .work) #gallery:has(.empty) { display: none; }
#live .tiles img { width: 100%; aspect-ratio: 1; object-fit: contain; margin: 0; border-radius: var(--radius-lg);
  opacity: 0.85; }
#live .note { margin: 0; padding: 8px 12px; border-radius: var(--radius-lg); color: var(--body-text-color-subdued);
  background: var(--background-fill-secondary); }

#gallery .grid-wrap { max-height: none; overflow: visible; padding: 8px; }
#gallery .gallery-container { min-height: 456px; }
#gallery .preview { background: var(--block-background-fill); backdrop-filter: none; }
#gallery .empty { min-height: 456px; flex-direction: column; gap: 8px; }
#gallery .empty::after { content: "Your pictures appear here."; color: var(--body-text-color-subdued); }

#chosen { gap: 12px; padding: 14px 16px; border: 1px solid var(--border-color-primary);
  border-radius: var(--radius-lg); background: var(--block-background-fill); }
#chosen .row { flex-wrap: nowrap; gap: 10px; }
#chosen button { flex: 0 1 auto; min-width: 0 !important; }
#details dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 16px; margin: 0; font-size: 0.9rem; }
#details dt { color: var(--body-text-color-subdued); }
#details dd { margin: 0; overflow-wrap: anywhere; }

#card { max-width: 780px; }
#card img { max-width: 100%; border-radius: var(--radius-lg); }
#card table { display: block; overflow-x: auto; }
#card pre { overflow-x: auto; }

@media (max-width: 900px) {
  #controls { display: contents; }
  #ask, #pictures, #more { flex: 1 1 100% !important; max-width: 100%; }
  #ask { order: 1; } #pictures { order: 2; } #more { order: 3; }
  #columns { gap: 16px; }
  #chosen button { flex: 1 1 auto; padding: 8px; }
  #gallery .gallery-container, #gallery .empty { min-height: 320px; }
}
@media (prefers-reduced-motion: reduce) { * { animation: none !important; transition: none !important; } }
""".replace("DIE", _DIE)
