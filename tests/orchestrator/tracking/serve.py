"""Serves MLflow's own server application on loopback; `start` on stdin forks a server, which may be killed.

What `mlflow server` does, less its import time: that is paid once, before the fork.
usage: serve.py STORE_URI ARTIFACTS PORT; prints the server's process id for each `start`.
"""

from __future__ import annotations

import os
import sys


def main(store: str, artifacts: str, port: int) -> None:
    """Import once, then one server per line on stdin."""
    from mlflow.server import constants

    os.environ[constants.BACKEND_STORE_URI_ENV_VAR] = store
    os.environ[constants.ARTIFACT_ROOT_ENV_VAR] = "mlflow-artifacts:/"
    os.environ[constants.ARTIFACTS_DESTINATION_ENV_VAR] = artifacts
    os.environ[constants.SERVE_ARTIFACTS_ENV_VAR] = "true"
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    import uvicorn
    from mlflow.server.fastapi_app import app

    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
            os._exit(0)
        print(child, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
