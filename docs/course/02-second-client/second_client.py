"""Two clients. "broken" serves one after the other, as the notes do. "fixed" gives each a thread.

    python3 docs/course/02-second-client/second_client.py broken
"""

import json
import socket
import sys
import threading


def serve_one_after_the_other(listener):
    while True:
        connection, _ = listener.accept()
        echo(connection)


def serve_each_on_a_thread(listener):
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=echo, args=(connection,), daemon=True).start()


def echo(connection):
    with connection:
        while data := connection.recv(1024):
            connection.sendall(data)


def receive(client, seconds):
    """Returns how many bytes come within this time."""
    client.settimeout(seconds)
    try:
        return len(client.recv(1024))
    except TimeoutError:
        return 0


case = sys.argv[1]
listener = socket.create_server(("127.0.0.1", 0))  # port 0: the kernel chooses a free one
serve = serve_one_after_the_other if case == "broken" else serve_each_on_a_thread
threading.Thread(target=serve, args=(listener,), daemon=True).start()

first = socket.create_connection(listener.getsockname())
first.sendall(b"one")
first.recv(1024)
print("The first client has its echo, and stays connected.")

second = socket.create_connection(listener.getsockname())
print("The second client is connected.")
second.sendall(b"two")
early = receive(second, 1)
print(f"The second client sent 3 bytes, and has received {early}.")

first.close()
print("The first client has closed.")
late = 0 if early else receive(second, 10)
print(f"The second client has received {early + late} of its 3 bytes.")

print(json.dumps({"case": case, "while_first_is_connected": early, "in_the_end": early + late}))
