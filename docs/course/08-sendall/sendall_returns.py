"""The server sends 200,000 bytes. "broken" is done when sendall returns. "fixed" waits until the client says that it has them.

    python3 docs/course/08-sendall/sendall_returns.py broken
"""

import json
import socket
import sys
import threading

BYTES = 200_000
read_by_client = 0


def read_and_confirm(client):
    global read_by_client
    while read_by_client < BYTES:
        read_by_client += len(client.recv(4096))
    client.sendall(b"ok")


case = sys.argv[1]
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 212_992)  # else the kernel enlarges it as it likes (tcp(7))
listener.bind(("127.0.0.1", 0))
listener.listen(1)
client = socket.socket()
client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 212_992)
client.connect(listener.getsockname())
connection, _ = listener.accept()

connection.sendall(b"a" * BYTES)
print("sendall has returned.")
at_return = read_by_client
print(f"The client has read {at_return} bytes.")

reader = threading.Thread(target=read_and_confirm, args=(client,))
reader.start()
if case != "broken":
    connection.recv(2)
    print("The client has sent: ok.")
at_end = at_return if case == "broken" else read_by_client
print(f"The server goes on, and the client has read {at_end} bytes.")
reader.join()

print(json.dumps({"case": case, "written": BYTES, "read_at_return": at_return, "read_at_end": at_end}))
