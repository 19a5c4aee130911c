"""Stages train-unet and train-t2i: the networks that draw."""
