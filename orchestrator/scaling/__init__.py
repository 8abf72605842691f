"""Scaling laws: jobs in; coefficients, forecasts and figures out. Pure: no database. Start at `law`, then `laws`."""
