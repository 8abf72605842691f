"""The tables, the engine and its two session scopes, and the schema's version."""
