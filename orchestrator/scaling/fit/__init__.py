"""Finished jobs to fitted laws: eligible jobs, samples, the robust fit, the choice of a form. Start at `fitting`."""
