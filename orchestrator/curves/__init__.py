"""Loss curves: points, convergence, divergence, expected stop. Pure; start at `convergence`."""
