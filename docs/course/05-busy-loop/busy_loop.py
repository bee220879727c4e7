"""Two clients send two messages each. "broken" asks every socket again and again. "fixed" waits for all of them in poll.

    python3 docs/course/05-busy-loop/busy_loop.py broken
"""

import json
import select
import socket
import sys
import threading
import time


def act_as_clients(address):
    clients = [socket.create_connection(address), socket.create_connection(address)]
    for _ in range(2):
        for client in clients:
            time.sleep(0.05)
            client.sendall(b"hola")
            client.recv(4)


def echo_once(connection):
    """Reads once, and returns whether there was anything."""
    try:
        data = connection.recv(1024)
    except BlockingIOError:
        return False
    connection.sendall(data)
    return True


case = sys.argv[1]
listener = socket.create_server(("127.0.0.1", 0))
clients = threading.Thread(target=act_as_clients, args=(listener.getsockname(),))
clients.start()
connections = [listener.accept()[0], listener.accept()[0]]
poll = select.poll()
for connection in connections:
    connection.setblocking(False)
    poll.register(connection, select.POLLIN)

calls = useful = 0
while useful < 4:
    if case != "broken":
        poll.poll()
        calls += 1
    for connection in connections:
        calls += 1
        useful += echo_once(connection)
clients.join()
print(f"The loop has made {calls} calls. {useful} of them have read a message.")

print(json.dumps({"case": case, "calls": calls, "useful": useful}))
