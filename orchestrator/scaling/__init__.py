"""Scaling laws: measured SAEs in; coefficients, forecasts and figures out. Pure: it knows no database."""
