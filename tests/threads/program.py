#!/usr/bin/env python3
"""Runs every thread of the program, which is built with ThreadSanitizer, and fails on a report of it or a wrong status.

`tests/tsan` calls it with the program, and the seconds of each load.
"""
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

program, seconds = sys.argv[1], float(sys.argv[2])
# Of the whole script: far more than it takes under the sanitizer on a busy machine.
TIMEOUT = 900 + int(10 * seconds)
running = []


class Run:
    """A process whose output is a file: no pipe delays it."""

    def __init__(self, *arguments, **environment):
        self.output = tempfile.TemporaryFile()
        command = [program, *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=self.output, stderr=subprocess.STDOUT, env=os.environ | environment)
        running.append(self)

    def text(self):
        return os.pread(self.output.fileno(), 1 << 30, 0).decode(errors="replace")

    def find(self, pattern):
        """Waits for a line, and returns what the group of the pattern matches."""
        while not (match := re.search(pattern, self.text())):
            assert self.process.poll() is None, self.text()
            time.sleep(0.1)
        return match[1]

    def metrics(self):
        return self.find(r"(http://\S*/metrics)")

    def expect(self, *statuses):
        status = self.process.wait()
        text = self.text()
        assert status in statuses and "ThreadSanitizer" not in text, f"status {status}\n{text[-20000:]}"


def scrape(url):
    try:
        return urllib.request.urlopen(url, timeout=60).read().decode()
    except OSError:
        return ""  # The load has ended.


def watch(loads, urls, end=None):
    """Scrapes and signals the server until the loads have ended, or until `end`."""
    while any(load.process.poll() is None for load in loads) and (end is None or time.monotonic() < end):
        for url in urls:
            scrape(url)
        for each in (signal.SIGUSR1, signal.SIGHUP):
            server.process.send_signal(each)
        time.sleep(0.02)


def give_up(*_):
    # No OSError, which `scrape` would take for the end of a load.
    raise RuntimeError(f"not finished after {TIMEOUT} s")


def run():
    global server
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(folder + "/notify")
    server = Run("serve", "127.0.0.1:0", f"unix:{folder}/echo", "-vv", "--lang", "en", "--metrics", "127.0.0.1:0", "--trace", folder + "/trace.html",
                 "--report", folder + "/report", "--fault", "delay=1ms..5ms,p=20%", NOTIFY_SOCKET=folder + "/notify", WATCHDOG_USEC="200000")
    target = "127.0.0.1:" + server.find(r"on IP 127.0.0.1, port (\d+)")
    of_server = server.metrics()
    load = ["load", "-c", "20", "--interval", "100ms", "--timeout", "60s", "--connect-timeout", "60s"]

    timed = [*load, "-d", f"{seconds}s"]
    jobs = Run(*timed, "-j", "2", "-r", "1000", "--metrics", "127.0.0.1:0", "--html", folder + "/page", target, f"unix:{folder}/echo")
    watch([jobs], [of_server, jobs.metrics()])
    jobs.expect(0, 3)
    # A free port of an address that nothing else uses: the ranks have to know it before rank 0 listens.
    with socket.create_server(("127.77.0.1", 0)) as free:
        barrier = "127.77.0.1:%d" % free.getsockname()[1]
    ranks = [Run(*timed, "--rank", f"{rank}/2", "--barrier", barrier, target) for rank in (0, 1)]
    watch(ranks, [of_server])
    for rank in ranks:
        rank.expect(0, 3)
    # One ends with its last request, the other by a signal.
    windows = Run(*timed, "--repeat", "--json", "-", target)
    windows.process.communicate(b"{}\n{}\n")
    windows.expect(0, 3)
    graded = Run("check", "--level", "3", target)
    interrupted = Run(*load, "--metrics", "127.0.0.1:0", "--json", folder + "/load", "-d", "1h", target)
    watch([interrupted], [of_server, interrupted.metrics()], time.monotonic() + seconds)
    interrupted.process.send_signal(signal.SIGTERM)
    interrupted.expect(130)
    graded.expect(0)
    # In a drain with open connections.
    last = Run(*load, "--mode", "hold", "-d", "1h", target)
    while 'ecoloop_connections 20' not in scrape(of_server):
        assert last.process.poll() is None, last.text()
        time.sleep(0.1)
    server.process.send_signal(signal.SIGTERM)
    server.expect(0)
    last.expect(1)
    done = re.search(r"Done: (.*)", server.text())
    print(done[1] if done else server.text()[-300:])


signal.signal(signal.SIGALRM, give_up)
with tempfile.TemporaryDirectory() as folder:
    try:
        # One deadline for every wait: the traceback names the one that did not end.
        signal.alarm(TIMEOUT)
        run()
    finally:
        for each in running:
            each.process.kill()
            # What the others report may only follow from it.
            _, warning, report = each.text().partition("WARNING: ThreadSanitizer")
            if warning:
                print(warning + report[:20000], file=sys.stderr)
