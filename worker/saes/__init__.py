"""Work on SAEs as things of their own: bring in, verify, export. A process of its own, which knows the database."""
