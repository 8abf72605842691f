"""Wake-ups for Celery workers, sent by task name; lost ones are sent again, and expired leases released."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Engine

from orchestrator.errors import ConfigError
from orchestrator.masking import mask
from orchestrator.settings import Settings

if TYPE_CHECKING:
    from celery import Celery

TASK_NAME = "orch.wake"
QUEUE_NAME = "orch"
EXPIRES_SECONDS = 120
MAX_MESSAGES = 64
NOT_WOKEN = "the broker does not answer, so no worker was woken."
_VISIBILITY_SECONDS = 3600


class Reconciled(NamedTuple):
    """What one call of `reconcile` did."""

    released: list[int]
    """Jobs whose lease had run out."""
    woken: int
    """Wake-ups sent for jobs that may run."""


def celery_settings(settings: Settings) -> dict[str, Any]:
    """Return the Celery settings that sender and worker share.

    Raises:
        ConfigError: the broker is no Redis.
    """
    if not settings.broker_url.startswith(("redis://", "rediss://")):
        raise ConfigError(
            f"broker_url {mask(settings.broker_url)!r} is not a Redis URL", hint="Such as redis://host:6379/0"
        )
    transport = {
        "visibility_timeout": _VISIBILITY_SECONDS,
        "socket_timeout": 10,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 25,
        "global_keyprefix": "orch:",
    }
    return {
        "broker_url": settings.broker_url,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": transport,
        "visibility_timeout": _VISIBILITY_SECONDS,
        "task_default_queue": QUEUE_NAME,
        "task_acks_late": False,
        "task_reject_on_worker_lost": False,
        "task_ignore_result": True,
        "task_store_errors_even_if_ignored": False,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_publish_retry": True,
        "task_publish_retry_policy": {"max_retries": 2, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.2},
        "worker_pool": "threads",
        "worker_concurrency": 1,
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        "worker_send_task_events": False,
        "worker_eta_task_limit": 10,
    }


def wake(settings: Settings, job_ids: Sequence[int]) -> bool:
    """Tell Celery workers to look at the queue; return False when the broker did not take the message.

    Without a broker workers look by themselves, and there is nothing to tell. A lost message delays a job and never
    loses it.

    Raises:
        ConfigError: the broker is no Redis.
    """
    if not settings.broker_url or not job_ids:
        return True
    return _send(settings, list(job_ids)[:MAX_MESSAGES]) is not None


def reconcile(engine: Engine, settings: Settings, *, release: bool = True) -> Reconciled:
    """Release expired leases and send the wake-ups that are missing; any number of processes may do so at once.

    With `release` off no lease is released: after an outage of the database every lease looks expired, and its worker
    must have the time to renew it.

    Raises:
        StorageError: the database did not answer. A broker that does not answer is no error here.
    """
    from orchestrator.queue import release_expired, waiting

    released = release_expired(engine, grace_seconds=settings.grace_seconds) if release else []
    due = waiting(engine, limit=MAX_MESSAGES if settings.broker_url else 1)  # also says whether the database answers
    if not settings.broker_url:
        return Reconciled(released, 0)
    return Reconciled(released, _send(settings, due, top_up=True) or 0)


def _send(settings: Settings, job_ids: list[int], *, top_up: bool = False) -> int | None:
    """Send one message per job, with `top_up` less those that lie there already; None when the broker is away."""
    from kombu.exceptions import KombuError
    from redis.exceptions import RedisError

    if not job_ids:
        return 0
    app = _sender(settings)
    try:
        with app.connection_for_write() as connection:
            if top_up:
                job_ids = job_ids[connection.default_channel.queue_declare(QUEUE_NAME).message_count :]
            for job_id in job_ids:
                app.send_task(TASK_NAME, (job_id,), connection=connection, expires=EXPIRES_SECONDS)
    except (KombuError, RedisError, OSError):
        return None
    finally:
        app.close()
    return len(job_ids)


def _sender(settings: Settings) -> "Celery":
    from celery.app.base import Celery  # of the package itself: its lazy names are not there for a second thread

    app = Celery("orch-sender", set_as_current=False)
    app.conf.update(celery_settings(settings))
    # A command waits for it: it gives up after about two seconds.
    app.conf.broker_transport_options |= {"socket_timeout": 0.5, "socket_connect_timeout": 0.5, "max_retries": 1}
    return app
