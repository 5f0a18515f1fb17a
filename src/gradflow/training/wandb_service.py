"""W&B's service process and its login, for which W&B has no public way: by its private names, as of wandb 0.31.

`wandb_setup.singleton()._connection._proc._process` is the service: killing it ends a call that hangs.
`wandb.sdk.lib.wbauth` says without a prompt whether a login would succeed. Should they go: `service` may return None,
and calls that hang are then waited for; `no_key` can look for WANDB_API_KEY and ~/.netrc.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


def service() -> subprocess.Popen[bytes] | None:
    """Return W&B's service; None before the first run, and where it is one that processes share."""
    from wandb.sdk import wandb_setup

    connection = wandb_setup.singleton()._connection
    return connection._proc._process if connection is not None and connection._proc is not None else None


@contextmanager
def time_limit(seconds: float, known: subprocess.Popen[bytes] | None) -> Iterator[None]:
    """End W&B's service when a call takes longer: the call then fails, instead of waiting for ever. A service that is
    `known` is ended though W&B may have forgotten it, which it does before the service's end."""

    def end() -> None:
        if (hung := known or service()) is not None:
            hung.kill()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def end_service() -> None:
    """Wait until the service has written its files and end it; the next run of this process starts another."""
    import wandb

    ending = service()
    with suppress(ConnectionError, SystemExit):  # for one that was killed, W&B would end this process too
        wandb.teardown()
    if ending is not None:
        ending.kill()  # where W&B could not tell it to end
        ending.wait()


def no_key() -> str | None:
    """Return why W&B could not log in by what is configured; None where it can."""
    import wandb
    from wandb.sdk.lib import wbauth

    try:
        host = wandb.setup().settings.base_url
        key = wbauth.authenticate_session(host=host, source="", prompt=False, update_session=False)
    except wandb.Error as error:
        return str(error)
    return None if key else "no W&B key is configured; run  wandb login  or set WANDB_API_KEY"
