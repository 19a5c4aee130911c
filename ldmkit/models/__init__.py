"""The networks: autoencoder, discriminator and U-Net."""
