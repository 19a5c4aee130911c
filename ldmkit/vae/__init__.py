"""Stage train-vae: the autoencoder."""
