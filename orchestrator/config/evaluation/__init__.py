"""WHAT is measured of an SAE: one frozen config per evaluation job, and one file of options per metric family."""
