"""Trains with several workers on this machine, to try `--strategy=multi_worker` without several machines.

python -m experiments.launch_local --workers=2 -- --gin_file=digits_hybrid --workdir=runs/two_workers

The options after `--` are passed to `diffstride_hybrid.train`. Only the first worker, the chief, writes files.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from absl import flags

from diffstride_hybrid import command_line

PATIENCE_SECONDS = 60
"""How long workers may go on after one has failed. They notice it themselves once all of them have connected."""

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the options of the command."""
    flags.DEFINE_integer("workers", 2, "How many processes train together.", lower_bound=1)


def start_workers(count: int, arguments: Sequence[str], **options: object) -> list[subprocess.Popen[str]]:
    """Starts the workers of one cluster on loopback.

    Args:
        count: how many workers to start.
        arguments: options of `diffstride_hybrid.train`.
        **options: options of `subprocess.Popen`.

    Returns:
        The processes, the chief first.
    """
    command = [sys.executable, "-m", "diffstride_hybrid.train", "--strategy=multi_worker", *arguments]
    addresses = [f"localhost:{port}" for port in _free_ports(count)]
    environments = [
        {
            **os.environ,
            "TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}),
        }
        for index in range(count)
    ]
    return [subprocess.Popen(command, env=environment, text=True, **options) for environment in environments]


def main(argv: Sequence[str]) -> None:
    """Starts the workers, prints their output with their numbers in front, and exits with the greatest exit code."""
    workers = start_workers(FLAGS.workers, argv[1:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    threads = [threading.Thread(target=_pass_on, args=(index, worker)) for index, worker in enumerate(workers)]
    try:
        for thread in threads:
            thread.start()
        ended_badly_at: float | None = None
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.2)
            if ended_badly_at is None and any(worker.poll() for worker in workers):
                ended_badly_at = time.monotonic()
            if ended_badly_at is not None and time.monotonic() - ended_badly_at > PATIENCE_SECONDS:
                break
    finally:
        for worker in workers:
            worker.terminate()
    sys.exit(max(abs(worker.wait()) for worker in workers))


def _pass_on(index: int, worker: subprocess.Popen[str]) -> None:
    for line in worker.stdout:
        print(f"[{index}] {line}", end="", flush=True)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


if __name__ == "__main__":
    command_line.run(main, define_flags, takes_arguments=True)
