"""Prints what `measure` has kept in a directory, and writes it there as million.json.

    report.py DIRECTORY
"""

import json
import pathlib
import sys

PAGE_BYTES = 4096
# Caches of the kernel that are told one by one: those with at least so many bytes a connection.
CACHE_BYTES_LEAST = 16


class Look:
    """What /proc said at one point of the run."""

    def __init__(self, directory):
        self.directory = directory
        self.uptime_s = float(self.read("uptime").split()[0])

    def read(self, name):
        return (self.directory / name).read_text()

    def cpu_s(self, process):
        return sum(int(line.split()[0]) for line in self.read(process + ".schedstat").splitlines()) / 1e9

    def resident_bytes(self, process):
        return number_after(self.read(process + ".smaps_rollup"), "Rss:") * 1024

    def slab_bytes(self):
        """Of each cache, the pages that it has."""
        caches = (line.split() for line in self.read("slabinfo").splitlines()[2:])
        return {words[0]: int(words[14]) * int(words[5]) * PAGE_BYTES for words in caches}

    def tcp(self, word):
        line = next(line for line in self.read("sockstat").splitlines() if line.startswith("TCP:"))
        return number_after(line, word)


def number_after(text, word):
    words = text.split()
    return int(words[words.index(word) + 1])


def examine(directory):
    load = json.loads((directory / "load.json").read_text())
    before, held, idle, after = (Look(directory / name) for name in ("before", "held", "idle", "after"))
    count = load["connections"]["held"]
    of_each = lambda now, then: round((now - then) / count) if count else None
    slabs = {name: now - before.slab_bytes().get(name, 0) for name, now in held.slab_bytes().items()}
    phases, latency = load["phases_s"], load["latency_us"]
    return {
        "kernel": (directory / "kernel").read_text().strip(),
        "connections": load["connections"],
        "sources": len(load["config"]["sources"]),
        "connect_s": phases["connect"],
        "idle": {
            "seconds": idle.uptime_s - held.uptime_s,
            "server_cpu_s": idle.cpu_s("serve") - held.cpu_s("serve"),
            "generator_cpu_s": idle.cpu_s("load") - held.cpu_s("load"),
        },
        "messages": load["messages"],
        "messages_per_s": load["config"]["rate"],
        "messages_s": phases["drain"],
        "latency_us": {name: latency[name] for name in ("p50", "p90", "p99", "max", "count")},
        "lateness_us": {name: load["lateness_us"][name] for name in ("p50", "p99", "max")},
        "schedule_kept": load["schedule"]["kept"],
        "server_bytes": {
            "before": before.resident_bytes("serve"),
            "held": held.resident_bytes("serve"),
            "after": after.resident_bytes("serve"),
            "of_connection": of_each(held.resident_bytes("serve"), before.resident_bytes("serve")),
        },
        "generator_bytes_of_connection": of_each(held.resident_bytes("load"), 0),
        "kernel_bytes": {
            "of_connection": of_each(sum(slabs.values()), 0),
            "caches": {name: of_each(bytes, 0) for name, bytes in sorted(slabs.items(), key=lambda item: -item[1])
                       if bytes >= CACHE_BYTES_LEAST * count},
            "left_of_connection": of_each(sum(after.slab_bytes().values()), sum(before.slab_bytes().values())),
        },
        "sockstat": {"tcp_inuse": held.tcp("inuse") - before.tcp("inuse"), "tcp_mem_pages": held.tcp("mem")},
        "close_s": phases["close"],
        "server": json.loads((directory / "serve.json").read_text()),
        "errors": load["errors"],
        "findings": load["verify"]["connections_failed"],
        "exit": load["exit"],
    }


def time(us):
    if us is None:
        return "-"
    return f"{us} us" if us < 1000 else f"{us / 1e3:.3g} ms" if us < 1e6 else f"{us / 1e6:.3g} s"


def mebibytes(size):
    return f"{size / (1 << 20):.1f} MiB"


def rows(seen):
    connections, latency, lateness, idle = (seen[name] for name in ("connections", "latency_us", "lateness_us", "idle"))
    server, kernel, closed = seen["server_bytes"], seen["kernel_bytes"], seen["server"]["closed"]
    rate = lambda count, seconds: f"{count / seconds:,.0f} a second" if seconds else "-"
    yield "kernel", seen["kernel"]
    yield "connections held", (f"{connections['held']:,} of {connections['requested']:,}, from {seen['sources']} addresses; "
                               f"{connections['verified']:,} verified by a first message")
    yield "time to connect", f"{seen['connect_s']:.1f} s, {rate(connections['established'], seen['connect_s'])}, first messages and all"
    yield "CPU while idle", (f"server {idle['server_cpu_s'] * 1e3:.0f} ms, generator {idle['generator_cpu_s'] * 1e3:.0f} ms, "
                             f"in {idle['seconds']:.1f} s")
    yield "a message each", (f"{seen['messages']['verified']:,} verified of {seen['messages']['due']:,}, "
                             f"paced at {seen['messages_per_s']:,.0f} a second, in {seen['messages_s']:.1f} s")
    yield "  latency", f"p50 {time(latency['p50'])}, p90 {time(latency['p90'])}, p99 {time(latency['p99'])}, max {time(latency['max'])}"
    yield "  sent late by", (f"p50 {time(lateness['p50'])}, p99 {time(lateness['p99'])}, max {time(lateness['max'])}; "
                             + ("the schedule was kept" if seen["schedule_kept"] else "the schedule was NOT kept"))
    yield "server's memory", (f"{server['of_connection']} bytes a connection "
                              f"({mebibytes(server['before'])} before, {mebibytes(server['held'])} held)")
    yield "generator's memory", f"{seen['generator_bytes_of_connection']} bytes a connection"
    yield "kernel's memory", f"{kernel['of_connection']:,} bytes a connection, for its two ends (slabinfo)"
    yield "", ", ".join(f"{name} {size}" for name, size in kernel["caches"].items())
    yield "sockets", f"{seen['sockstat']['tcp_inuse']:,} in use, {seen['sockstat']['tcp_mem_pages']} pages of buffers (sockstat)"
    yield "time to close", f"{seen['close_s']:.1f} s, {rate(connections['held'], seen['close_s'])}"
    yield "memory afterwards", (f"server {mebibytes(server['after'])}; "
                                f"kernel {kernel['left_of_connection']:,} bytes a connection above the start")
    yield "server's report", (f"{seen['server']['accepted']:,} accepted, {closed['end_of_stream']:,} closed at the end of stream, "
                              f"{sum(closed.values()) - closed['end_of_stream']:,} otherwise")
    errors = ", ".join(f"{error['phase']} {error['error']} {error['count']:,}" for error in seen["errors"])
    yield "errors", f"{errors or 'none'}; {seen['findings']} findings"


def main():
    directory = pathlib.Path(sys.argv[1])
    seen = examine(directory)
    (directory / "million.json").write_text(json.dumps(seen, indent=2) + "\n")
    for name, text in rows(seen):
        print(f"{name:20}{text}")
    sys.exit(seen["exit"])


main()
