"""SAEs in the formats of other programs, one file per format: how each is known, read and written.

A format's file has `reasons(path)`, what speaks for it; `read(path, named)`; and, where it is written, `fill(sae)`,
which refuses what the format cannot hold and returns what writes the files into a folder. Start at `formats.registry`.
"""
