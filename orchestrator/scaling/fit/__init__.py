"""From finished jobs to fitted laws: eligible jobs, samples, robust fit, choice of a form. Start at `fitting`."""
