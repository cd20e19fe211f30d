"""`python -m serving.engine -- <engine arguments>`: the process of an engine pod.

Environment: FLOTILLA_SETTINGS_FILE (an `EngineSettings` document), FLOTILLA_MODEL_CACHE_DIR, FLOTILLA_POD_IP; AWS_ENDPOINT_URL
where AWS is emulated. The engine listens on the pod's address, port 8000, and this process on 8001.

Order at start: settings, then the ops port, so that probes are answered from the first second, then the supervisor. The ops port
is the last to close: a draining pod says that it is not ready until it is gone.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import uvicorn

from serving.engine.adapters import EngineAdapter, VllmAdapter
from serving.engine.metrics import Metrics
from serving.engine.ops import OPS_PORT, make_app
from serving.engine.process import adopt_orphans
from serving.engine.source import ReleaseSource
from serving.engine.supervisor import Supervisor
from serving.engine.twin_adapter import TwinAdapter
from serving.process import Server, configure_logs, refuse
from serving.settings import EngineSettings, SettingsError, load
from serving.target import aws_client

ADAPTERS: dict[str, type[VllmAdapter]] = {"vllm": VllmAdapter, "twin": TwinAdapter}


async def serve(supervisor: Supervisor) -> int:
    """Runs supervisor and ops port until the supervisor is done; its exit status.

    Raises:
        OSError: the ops port is taken, or the address is not this machine's.
    """
    listener = socket.create_server((supervisor.host, OPS_PORT))
    config = uvicorn.Config(
        make_app(supervisor), log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=2
    )
    server = Server(config)
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, supervisor.leave)
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    try:
        return await supervisor.run()
    finally:
        server.should_exit = True
        await serving


def main(arguments: list[str]) -> int:
    """Entry point: 0 after a drain, 1 after too many failures, 2 when the environment is wrong."""
    configure_logs()
    try:
        names = ("FLOTILLA_SETTINGS_FILE", "FLOTILLA_MODEL_CACHE_DIR", "FLOTILLA_POD_IP")
        missing = [name for name in names if not os.environ.get(name)]
        if missing:
            raise SettingsError(f"{', '.join(missing)} must be set")
        settings_file, cache, host = (os.environ[name] for name in names)
        settings = load(EngineSettings, Path(settings_file))
        Path(cache).mkdir(parents=True, exist_ok=True)
        adopt_orphans()
        adapter: EngineAdapter = ADAPTERS[settings.engine]()
        endpoint_url = os.environ.get("AWS_ENDPOINT_URL", "")
        dynamodb, s3 = (aws_client(service, settings.region, endpoint_url) for service in ("dynamodb", "s3"))
        source = ReleaseSource(settings, dynamodb, s3, Path(cache))  # type: ignore[arg-type]
        engine_args = arguments[1:] if arguments[:1] == ["--"] else arguments
        supervisor = Supervisor(source, adapter, Metrics(settings.model_class), host, tuple(engine_args))
        return asyncio.run(serve(supervisor))
    except SettingsError as error:
        return refuse("serving.engine", str(error))
    except OSError as error:
        return refuse("serving.engine", f"{error.filename or os.environ.get('FLOTILLA_POD_IP')}: {error.strerror or error}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
