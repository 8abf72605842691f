"""One autoencoder divided over several devices, by latents."""
