"""Prints what `measure` has kept in a directory, and writes it there as million.json.

    report.py DIRECTORY
"""

import json
import pathlib
import platform
import sys

PAGE_BYTES = 4096
# Caches of the kernel that are told one by one: those with at least so many bytes a connection.
CACHE_BYTES_LEAST = 16


class Look:
    """What /proc said at one point of the run."""

    def __init__(self, directory):
        self.directory = directory

    def read(self, name):
        return (self.directory / name).read_text()

    def uptime_s(self):
        return float(self.read("uptime").split()[0])

    def cpu_s(self, process):
        return sum(int(line.split()[0]) for line in self.read(process + ".schedstat").splitlines()) / 1e9

    def resident_bytes(self, process):
        return number_after("Rss:", self.read(process + ".smaps_rollup")) * 1024

    def slabs(self):
        """The bytes of each cache, in pages that it has."""
        caches = (line.split() for line in self.read("slabinfo").splitlines()[2:])
        return {words[0]: int(words[14]) * int(words[5]) * PAGE_BYTES for words in caches}

    def tcp(self, word):
        line = next(line for line in self.read("sockstat").splitlines() if line.startswith("TCP:"))
        return number_after(word, line)


def number_after(word, text):
    words = text.split()
    return int(words[words.index(word) + 1])


def examine(directory):
    load = json.loads((directory / "load.json").read_text())
    before, held, idle, after = (Look(directory / name) for name in ("before", "held", "idle", "after"))
    count = load["connections"]["held"]

    def of_each(size):
        return round(size / count) if count else None

    slabs = {name: size - before.slabs().get(name, 0) for name, size in held.slabs().items()}
    told = sorted((item for item in slabs.items() if item[1] >= CACHE_BYTES_LEAST * count), key=lambda item: -item[1])
    return {
        "kernel": (directory / "kernel").read_text().strip(),
        "host": host(),
        "connections": load["connections"],
        "sources": len(load["config"]["sources"]),
        "connect_s": load["phases_s"]["connect"],
        "idle": {
            "seconds": idle.uptime_s() - held.uptime_s(),
            "server_cpu_s": idle.cpu_s("serve") - held.cpu_s("serve"),
            "generator_cpu_s": idle.cpu_s("load") - held.cpu_s("load"),
        },
        "hold": load["hold"],
        "messages": load["messages"],
        "message_bytes": load["config"]["size"],
        "messages_per_s": load["config"]["rate"],
        "messages_s": load["phases_s"]["drain"],
        "latency_us": without_histogram(load["latency_us"]),
        "lateness_us": without_histogram(load["lateness_us"]),
        "schedule_kept": load["schedule"]["kept"],
        "server_bytes": {
            "before": before.resident_bytes("serve"),
            "held": held.resident_bytes("serve"),
            "after": after.resident_bytes("serve"),
            "of_connection": of_each(held.resident_bytes("serve") - before.resident_bytes("serve")),
        },
        "generator_bytes_of_connection": of_each(held.resident_bytes("load")),
        "kernel_bytes": {
            "of_connection": of_each(sum(slabs.values())),
            "caches": {name: of_each(size) for name, size in told},
            "left_of_connection": of_each(sum(after.slabs().values()) - sum(before.slabs().values())),
        },
        "sockstat": {"tcp_inuse": held.tcp("inuse"), "tcp_mem_pages": held.tcp("mem")},
        "close_s": load["phases_s"]["close"],
        "server": json.loads((directory / "serve.json").read_text()),
        "errors": load["errors"],
        "findings": load["verify"]["connections_failed"],
        "verdict": load["verdict"],
    }


def host():
    cpus = [line.split(":")[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")]
    return {"kernel": f"{platform.system()} {platform.release()}", "cpus": len(cpus), "cpu": cpus[0] if cpus else None}


def without_histogram(latency):
    return {name: value for name, value in latency.items() if name != "hdr_v2"}


def percentiles(latency):
    return ", ".join(f"{name} {time(latency[name])}" for name in ("p50", "p90", "p99", "max"))


def time(us):
    if us is None:
        return "-"
    if us < 1000:
        return f"{us} us"
    return f"{us / 1e3:.3g} ms" if us < 1e6 else f"{us / 1e6:.3g} s"


def mebibytes(size):
    return f"{size / (1 << 20):.1f} MiB"


def rate(count, seconds):
    return f"{count / seconds:,.0f} a second" if seconds else "-"


def rows(seen):
    connections, messages, idle = seen["connections"], seen["messages"], seen["idle"]
    server, kernel, machine = seen["server_bytes"], seen["kernel_bytes"], seen["host"]
    closed = seen["server"]["closed"]
    guest = f", user-mode-linux on one core of {machine['kernel']}" if seen["kernel"] != machine["kernel"] else ""
    yield "kernel", seen["kernel"] + guest
    yield "machine", f"{machine['cpus']} cores, {machine['cpu']}"
    yield "connections held", f"{connections['held']:,} of {connections['requested']:,}"
    yield "time to connect", f"{seen['connect_s']:.1f} s, {rate(connections['established'], seen['connect_s'])}"
    addresses = f"{seen['sources']} address{'es' if seen['sources'] > 1 else ''}"
    yield "", f"from {addresses}; {connections['verified']:,} verified by their first message"
    yield "CPU while idle", f"server {idle['server_cpu_s']:.3f} s, of {idle['seconds']:.1f} s"
    yield "", f"generator {idle['generator_cpu_s']:.3f} s: it looks for connections whose time is over"
    yield "two messages each", f"{messages['verified']:,} verified of {messages['due']:,}, of {seen['message_bytes']} bytes"
    pace = f"{seen['messages_per_s']:,.0f} a second"
    yield "", f"one as it opens, one at the end: those paced at {pace}, all answered after {seen['messages_s']:.1f} s"
    yield "after the silence", ", ".join(f"{count:,} {outcome}" for outcome, count in seen["hold"].items())
    yield "latency of both", percentiles(seen["latency_us"])
    kept = "kept" if seen["schedule_kept"] else "NOT kept"
    yield "sent late by", f"{percentiles(seen['lateness_us'])}: the schedule was {kept}"
    yield "server's memory", f"{server['of_connection']} bytes a connection"
    yield "", f"{mebibytes(server['before'])} before, {mebibytes(server['held'])} with all connections"
    yield "generator's memory", f"{seen['generator_bytes_of_connection']} bytes a connection"
    whose = "of its two ends" if guest else "and of all that others did meanwhile"
    yield "kernel's memory", f"{kernel['of_connection']:,} bytes a connection, {whose} (slabinfo):"
    caches = [f"{name} {size:,}" for name, size in kernel["caches"].items()]
    for first in range(0, len(caches), 4):
        yield "", ", ".join(caches[first:first + 4])
    sockstat = seen["sockstat"]
    yield "", f"{sockstat['tcp_inuse']:,} sockets, {sockstat['tcp_mem_pages']:,} pages of their data (sockstat)"
    yield "time to close", f"{seen['close_s']:.1f} s, {rate(connections['held'], seen['close_s'])}"
    ordered = closed["end_of_stream"]
    yield "", f"server: {ordered:,} at the end of stream, {sum(closed.values()) - ordered:,} otherwise"
    yield "memory afterwards", f"server {mebibytes(server['after'])}"
    yield "", f"kernel {kernel['left_of_connection']:,} bytes a connection more than before"
    errors = ", ".join(f"{error['phase']} {error['error']} {error['count']:,}" for error in seen["errors"])
    yield "errors", f"{errors or 'none'}; {seen['findings']:,} connections with wrong bytes"


def main():
    directory = pathlib.Path(sys.argv[1])
    seen = examine(directory)
    (directory / "million.json").write_text(json.dumps(seen, indent=2) + "\n")
    for name, text in rows(seen):
        print(f"{name:20}{text}")
    sys.exit(seen["verdict"] != "pass")


main()
