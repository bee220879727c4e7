"""Two clients and one loop. "broken" waits for the connections in poll, and for the next client in accept. "fixed" waits for
everything in poll.

    python3 docs/course/06-one-wait/one_wait.py broken
"""

import json
import select
import socket
import sys
import threading
import time


def wait_in_two_places(listener):
    connections, accepted, waits = {}, 0, 0
    while accepted < 2 or connections:
        if accepted < 2:
            connection, _ = listener.accept()  # waits for a client, and for nothing else
            connections[connection.fileno()] = connection
            accepted, waits = accepted + 1, waits + 1
        poll = select.poll()
        for descriptor in connections:
            poll.register(descriptor, select.POLLIN)
        serve(connections, poll.poll(0))
    return waits


def wait_in_one_place(listener):
    connections, accepted, waits = {}, 0, 0
    while accepted < 2 or connections:
        poll = select.poll()
        for descriptor in [listener.fileno(), *connections]:
            poll.register(descriptor, select.POLLIN)
        ready = poll.poll()
        waits += 1
        serve(connections, ready)
        if listener.fileno() in dict(ready):
            connection, _ = listener.accept()
            connections[connection.fileno()] = connection
            accepted += 1
    return waits


def serve(connections, ready):
    """Reads once from each connection that is ready, and drops those that have ended."""
    for descriptor, _ in ready:
        if connection := connections.get(descriptor):
            data = connection.recv(1024)
            connection.sendall(data)
            if not data:
                connections.pop(descriptor).close()


def act_as_clients(address):
    global early
    first = socket.create_connection(address)
    time.sleep(0.2)
    first.sendall(b"hola")
    first.settimeout(1)
    try:
        early = len(first.recv(4))
    except TimeoutError:
        early = 0
    print(f"The first client sent 4 bytes, and has received {early}.")
    socket.create_connection(address).close()
    print("A second client has connected.")
    first.settimeout(None)
    late = 0 if early else len(first.recv(4))
    print(f"The first client has received {early + late} bytes.")
    first.close()


case = sys.argv[1]
early = 0
listener = socket.create_server(("127.0.0.1", 0))
clients = threading.Thread(target=act_as_clients, args=(listener.getsockname(),))
clients.start()
waits = wait_in_two_places(listener) if case == "broken" else wait_in_one_place(listener)
clients.join()
print(json.dumps({"case": case, "before_second_client": early, "waits": waits}))
