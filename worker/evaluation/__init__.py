"""Metrics of a trained autoencoder on the held-out set; one file per metric family. Uses sae; pure."""
