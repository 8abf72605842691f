"""A larger budget for a config that has trained: what follows the budget stays as it came to at the first one."""

from orchestrator.config.job import JobConfig


def extended(config: JobConfig, max_tokens: int, *, lr: float | None, d_model: int | None) -> JobConfig:
    """Return the config with another budget.

    `lr` and `d_model`: of the training that goes on; None where nothing has been trained. `optimizer.lr: auto` and
    `training.dead_after_tokens: auto` follow the budget. In the middle of a curve neither may change, so that they
    become what they came to.
    """
    settled = {} if d_model is None else {"dead_after_tokens": config.dead_after_tokens(d_model)}
    training = config.training.model_copy(update={"max_tokens": max_tokens} | settled)
    optimizer = config.optimizer.model_copy(update={} if lr is None else {"lr": lr})
    return config.model_copy(update={"training": training, "optimizer": optimizer})


def is_extension(config: JobConfig, earlier: JobConfig) -> bool:
    """Say whether a config is an earlier one, or that with a larger budget."""
    lr = config.optimizer.lr if earlier.optimizer.lr == "auto" else earlier.optimizer.lr
    window = earlier.training.dead_after_tokens
    window = config.training.dead_after_tokens if window == "auto" else window
    new = {"max_tokens": config.training.max_tokens, "dead_after_tokens": window}
    training = earlier.training.model_copy(update=new)
    optimizer = earlier.optimizer.model_copy(update={"lr": lr})
    same = earlier.model_copy(update={"training": training, "optimizer": optimizer}) == config
    return same and earlier.training.max_tokens <= config.training.max_tokens
