"""Stage export: a run becomes a bundle, or safetensors."""
