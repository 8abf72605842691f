"""Text to tokens: documents in, one packed token file out. Loads no torch; start at `token_file`."""
