"""Loss curves: points, convergence, divergence, expected stop. Pure. Start at `convergence`."""
