"""The scaling laws: a file per kind, each with the entries of its laws; `registry` lists them."""
