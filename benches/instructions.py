#!/usr/bin/env python3
"""User-space instructions a message, of the server as it is released, against the recorded figure.

    benches/instructions.py            fails above 5 % more than was recorded
    benches/instructions.py --record   records what it counts now

Callgrind counts the same whatever else the machine does, so this can stand where a timing cannot. The count is the difference of two runs
with another number of messages, divided by that number: what start and end take falls out. All connections send together, so that the
server meets full batches; with small ones the share of the wait, which is one for each batch, would be left to chance.

It needs valgrind, a C compiler and `cargo build --release`.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benches/instructions.json"
FLOOR = ROOT / "benches/floor"
ALLOWED = 1.05
CONNECTIONS = 500
SIZES_BYTES = (64, 1024)
MESSAGES = (10_000, 30_000)
PATIENCE_SECONDS = 60


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def await_listening(port):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                sys.exit(f"instructions: nothing listens on port {port}")
            time.sleep(0.05)


def instructions(command, size_bytes, messages):
    """All instructions of a server that echoes so many messages."""
    port = free_port()
    server = subprocess.Popen(
        ["taskset", "--cpu-list", "0", "nice", "-n", "19", "valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", *command(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        await_listening(port)
        client = ["taskset", "--cpu-list", "0", FLOOR / "epoll_client", str(port), str(CONNECTIONS), str(size_bytes), str(PATIENCE_SECONDS)]
        environment = os.environ | {"FLOOR_MESSAGES": str(messages), "FLOOR_BURST": "1"}
        subprocess.run(client, env=environment, check=True, stdout=subprocess.DEVNULL)
        server.terminate()
        _, said = server.communicate(timeout=PATIENCE_SECONDS)
    finally:
        server.kill()
        server.wait()
    collected = re.search(r"Collected : (\d+)", said)
    if collected is None:
        sys.exit(f"instructions: callgrind has counted nothing:\n{said}")
    return int(collected[1])


def instructions_a_message(command, size_bytes):
    few, many = MESSAGES
    more = instructions(command, size_bytes, many) - instructions(command, size_bytes, few)
    return round(more / (many - few), 1)


def main():
    if sys.argv[1:] not in ([], ["--record"]):
        sys.exit(__doc__)
    subprocess.run(["make", "--silent", "-C", FLOOR, "epoll_client", "epoll_server"], check=True)
    servers = {
        "ecoloop": lambda port: [ROOT / "target/release/ecoloop", "-q", f"127.0.0.1:{port}"],
        "floor": lambda port: [FLOOR / "epoll_server", str(port)],
    }
    counted = {
        name: {f"{size} B": instructions_a_message(command, size) for size in SIZES_BYTES}
        for name, command in servers.items()
    }
    if sys.argv[1:] == ["--record"]:
        RECORD.write_text(json.dumps(counted, indent=2) + "\n")
    recorded = json.loads(RECORD.read_text())
    failed = False
    for name, figures in counted.items():
        for size, figure in figures.items():
            ratio = figure / recorded[name][size]
            print(f"{name:8} {size:>7}: {figure:6.1f} instructions a message, {ratio:.3f} of the {recorded[name][size]} recorded")
            failed |= name == "ecoloop" and ratio > ALLOWED
    if failed:
        sys.exit("instructions: more than 5 % above what was recorded; on purpose? then `benches/instructions.py --record`")


main()
