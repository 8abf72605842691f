"""What is loaded when, and what loading costs. Imports nothing of ours."""
