"""The diffusion process: schedules, predictions, weights of the loss, drawing with torch."""
