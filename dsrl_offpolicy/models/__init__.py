"""Networks, the layout of the steered latent, and ways to choose latents."""
