"""From fitted laws to forecasts and to the jobs to run next. Start at `forecast`."""
