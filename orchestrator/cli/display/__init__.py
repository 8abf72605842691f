"""How the command line shows things: tables, live views, numbers as text."""
