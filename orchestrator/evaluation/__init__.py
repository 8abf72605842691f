"""Evaluations of SAEs as people ask for and read them: which SAEs, their jobs, their scores. Start at `scores`."""
