"""The page of `ldmkit ui`: a Gradio app around the runtime, served on this machine. Nothing here imports torch."""
