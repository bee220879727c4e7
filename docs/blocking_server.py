"""The echo server of the notes: every call blocks, so it serves one client at a time.

usage: python3 blocking_server.py [PORT]     (5000; 0 takes a free one)
"""

import socket
import sys

SOCK_BUFFER = 1024

if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.bind(("0.0.0.0", port))
    server_address = sock.getsockname()
    print(f"Iniciando servidor en IP {server_address[0]}, con puerto {server_address[1]}")
    sock.listen(5)

    while True:
        print("Esperando conexiones...")
        conn, client_address = sock.accept()
        print(f"Conexion desde: {client_address[0]}:{client_address[1]}")
        try:
            while True:
                data = conn.recv(SOCK_BUFFER)
                if data:
                    print(f"Recibido {data.decode('utf-8')}")
                    conn.sendall(data)
                else:
                    print("No hay mas datos")
                    break
        except ConnectionResetError:
            print("El cliente ha cerrado la conexion de forma abrupta")
        finally:
            print("El cliente ha cerrado la conexion")
            conn.close()
