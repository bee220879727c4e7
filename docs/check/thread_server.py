"""A thread for each client: what one writes after the notes' server.

usage: python3 thread_server.py PORT
"""

import socket
import sys
import threading


def serve(conn):
    try:
        while data := conn.recv(1024):
            conn.sendall(data)
    except ConnectionError:
        pass
    finally:
        conn.close()


sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
sock.bind(("127.0.0.1", int(sys.argv[1])))
sock.listen()
while True:
    conn, _ = sock.accept()
    threading.Thread(target=serve, args=(conn,), daemon=True).start()
