"""llama.cpp's own OpenAI-compatible server with a small language model, in a process of its own.

`python -m tests.support.llama_server MODEL.gguf` prints its address and serves until it is killed.
"""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KEY = "open sesame"


@contextmanager
def llama_server(model: Path) -> Iterator[str]:
    """The address, with "/v1", of a server that wants `KEY`."""
    command = [sys.executable, "-m", "tests.support.llama_server", str(model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            address = next(line for line in process.stdout if line.startswith("http")).strip()
            yield f"{address}/v1"
        finally:
            process.kill()


def _serve(model: str) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx = 4096
    params.n_parallel = 2
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [KEY]
    params.warmup = False
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    _serve(sys.argv[1])
