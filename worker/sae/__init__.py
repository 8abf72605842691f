"""The sparse autoencoder: model, losses, initialisation, optimiser, and the state of one training."""
