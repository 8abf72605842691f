"""Programs of ours and of others, started as processes by this Python. Imports settings and errors alone."""
