"""The command line: parse, call, print. Files import Click alone at the top, so that help costs nothing."""
