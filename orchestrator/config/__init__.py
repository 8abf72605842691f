"""What is trained: JobConfig, its validation, and synthetic subjects. Pure; pydantic is loaded by `job` alone."""
