"""The process that trains one tuned lens; it knows no database. Start at `__main__`, then `run` and `state`.

May import what a trainer may, and `worker.evaluation.restart`; not `worker.trainer`.
"""
