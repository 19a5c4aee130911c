"""Draws from an exported bundle with onnxruntime, numpy, tokenizers and pillow: nothing here imports torch."""
