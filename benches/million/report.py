"""Prints the figures of a run of `measure`, and writes them to million.json.

    report.py DIRECTORY
"""

import json
import pathlib
import platform
import sys

PAGE_BYTES = 4096
# Kernel caches with fewer bytes per connection are not listed.
CACHE_BYTES_MIN = 16


class Snapshot:
    """The files of /proc at one point of the run."""

    def __init__(self, directory):
        self.directory = directory

    def read(self, name):
        return (self.directory / name).read_text()

    def uptime_s(self):
        return float(self.read("uptime").split()[0])

    def cpu_s(self, process):
        return sum(int(line.split()[0]) for line in self.read(process + ".schedstat").splitlines()) / 1e9

    def resident_bytes(self, process):
        """Returns the memory of a process, or of several that share a run; pages that they share are counted in each."""
        lines = (line.split() for line in self.read(process + ".smaps_rollup").splitlines())
        return sum(int(fields[1]) for fields in lines if fields[0] == "Rss:") * 1024

    def slab_bytes(self):
        """Returns the size of each kernel cache, in whole pages."""
        caches = (line.split() for line in self.read("slabinfo").splitlines()[2:])
        return {fields[0]: int(fields[14]) * int(fields[5]) * PAGE_BYTES for fields in caches}

    def tcp(self, field):
        line = next(line for line in self.read("sockstat").splitlines() if line.startswith("TCP:"))
        return number_after(field, line)


def number_after(field, text):
    words = text.split()
    return int(words[words.index(field) + 1])


def collect(directory):
    load = json.loads((directory / "load.json").read_text())
    before, held, idle, after = (Snapshot(directory / name) for name in ("before", "held", "idle", "after"))
    count = load["connections"]["held"]

    def per_connection(size):
        return round(size / count) if count else None

    slabs = {name: size - before.slab_bytes().get(name, 0) for name, size in held.slab_bytes().items()}
    listed = sorted((item for item in slabs.items() if item[1] >= CACHE_BYTES_MIN * count), key=lambda item: -item[1])
    return {
        "kernel": (directory / "kernel").read_text().strip(),
        "host": host(),
        "connections": load["connections"],
        "generator_processes": load["run_id"].count("+") + 1,
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
            "per_connection": per_connection(held.resident_bytes("serve") - before.resident_bytes("serve")),
        },
        "generator_bytes_per_connection": per_connection(held.resident_bytes("load")),
        "kernel_bytes": {
            "per_connection": per_connection(sum(slabs.values())),
            "caches_per_connection": {name: per_connection(size) for name, size in listed},
            "after_per_connection": per_connection(sum(after.slab_bytes().values()) - sum(before.slab_bytes().values())),
        },
        "sockstat": {"tcp_inuse": held.tcp("inuse"), "tcp_mem_pages": held.tcp("mem")},
        "close_s": load["phases_s"]["close"],
        "server": json.loads((directory / "serve.json").read_text()),
        "errors": load["errors"],
        "connections_failed": load["verify"]["connections_failed"],
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
    return f"{count / seconds:,.0f} per second" if seconds else "-"


def rows(run):
    connections, messages, idle = run["connections"], run["messages"], run["idle"]
    server, kernel, machine = run["server_bytes"], run["kernel_bytes"], run["host"]
    closed = run["server"]["closed"]
    guest = f", user-mode-linux on one core of {machine['kernel']}" if run["kernel"] != machine["kernel"] else ""
    yield "kernel", run["kernel"] + guest
    yield "machine", f"{machine['cpus']} cores, {machine['cpu']}"
    yield "connections held", f"{connections['held']:,} of {connections['requested']:,}"
    yield "time to connect", f"{run['connect_s']:.1f} s, {rate(connections['established'], run['connect_s'])}"
    addresses = f"{run['sources']} address{'es' if run['sources'] > 1 else ''}"
    processes = f"{run['generator_processes']} processes"
    yield "", f"by {processes} from {addresses}; {connections['verified']:,} verified by their first message"
    yield "CPU while idle", f"server {idle['server_cpu_s']:.3f} s of {idle['seconds']:.1f} s"
    yield "", f"generator {idle['generator_cpu_s']:.3f} s, to find timed-out connections"
    yield "two messages each", f"{messages['verified']:,} verified of {messages['due']:,}, of {run['message_bytes']} bytes"
    pace = f"{run['messages_per_s']:,.0f} per second"
    yield "", f"one after connecting, one at the end at {pace}, with all replies after {run['messages_s']:.1f} s"
    outcomes = ((outcome, count) for outcome, count in run["hold"].items() if isinstance(count, int))
    yield "state at the end", ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes)
    yield "latency", percentiles(run["latency_us"])
    kept = "kept" if run["schedule_kept"] else "NOT kept"
    yield "lateness", f"{percentiles(run['lateness_us'])}; the schedule was {kept}"
    yield "server memory", f"{server['per_connection']} bytes per connection"
    yield "", f"{mebibytes(server['before'])} before, {mebibytes(server['held'])} with all connections"
    yield "generator memory", f"{run['generator_bytes_per_connection']} bytes per connection"
    scope = "for both ends" if guest else "for both ends and all other processes"
    yield "kernel memory", f"{kernel['per_connection']:,} bytes per connection {scope} (slabinfo):"
    caches = [f"{name} {size:,}" for name, size in kernel["caches_per_connection"].items()]
    for first in range(0, len(caches), 4):
        yield "", ", ".join(caches[first:first + 4])
    sockstat = run["sockstat"]
    yield "", f"{sockstat['tcp_inuse']:,} sockets, {sockstat['tcp_mem_pages']:,} pages of socket buffers (sockstat)"
    yield "time to close", f"{run['close_s']:.1f} s, {rate(connections['held'], run['close_s'])}"
    end_of_stream = closed["end_of_stream"]
    others = sum(closed.values()) - end_of_stream
    yield "", f"server: {end_of_stream:,} closed at the end of stream, {others:,} for other reasons"
    yield "memory after close", f"server {mebibytes(server['after'])}"
    yield "", f"kernel {kernel['after_per_connection']:,} bytes per connection more than before"
    errors = ", ".join(f"{error['phase']} {error['error']} {error['count']:,}" for error in run["errors"])
    yield "errors", f"{errors or 'none'}; {run['connections_failed']:,} connections with wrong bytes"


def main():
    directory = pathlib.Path(sys.argv[1])
    run = collect(directory)
    (directory / "million.json").write_text(json.dumps(run, indent=2) + "\n")
    for name, text in rows(run):
        print(f"{name:20}{text}")
    # A schedule that was not kept says nothing about the connections.
    sys.exit(run["verdict"] not in ("pass", "inconclusive"))


main()
