"""Text to tokens: documents in, one packed token file out."""
