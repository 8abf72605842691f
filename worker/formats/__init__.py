"""Trained autoencoders as files, one file per format; our own is `native`. Uses sae and checked_folder."""
