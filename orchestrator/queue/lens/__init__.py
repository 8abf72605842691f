"""Jobs that train tuned lenses: queued, and their results stored. Claims, leases, retries are those of every job."""

from orchestrator.queue.lens.finishing import finish_lens
from orchestrator.queue.lens.submission import OF_LENSES, LensAsked, train_lens

__all__ = ["OF_LENSES", "LensAsked", "finish_lens", "train_lens"]
