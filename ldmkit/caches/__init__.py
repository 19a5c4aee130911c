"""Stages caption and encode: captions, latents and text, computed once."""
