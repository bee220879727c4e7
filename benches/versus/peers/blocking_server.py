"""docs/blocking_server.py without its output, and with the socket options of the other peers.

It serves one client at a time: the next one waits until the first disconnects.

usage: python3 blocking_server.py PORT BUFFER_SIZE
"""

import socket
import sys

if __name__ == "__main__":
    port, buffer_size = int(sys.argv[1]), int(sys.argv[2])
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    sock.listen(4096)

    while True:
        conn, _ = sock.accept()
        try:
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := conn.recv(buffer_size):
                conn.sendall(data)
        except ConnectionError:
            pass
        finally:
            conn.close()
