"""Files as strangers make them: pictures, archives, checkpoints, recipes, captions, bundles, and what must happen."""
