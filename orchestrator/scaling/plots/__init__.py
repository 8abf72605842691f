"""Figures of jobs and laws, drawn with matplotlib. Start at `all_plots`."""
