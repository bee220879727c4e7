"""An echo server on one epoll loop, with one fault of level 5 or 8.

usage: python3 faulty.py FAULT     prints its port
"""

import errno
import select
import signal
import socket
import sys

FAULT = sys.argv[1]  # none, dies, spins, forgets, closes-nothing, ends-at-once, ignores-sigterm
SIZE = 1024

listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen(128)
listener.setblocking(False)
poll = select.epoll()
poll.register(listener, select.EPOLLIN)
print(listener.getsockname()[1], flush=True)
clients = {}  # descriptor: (socket, bytes that could not be sent)
lost = []
is_over = False


def stop(*_):
    global is_over
    is_over = True


if FAULT == "ignores-sigterm":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
elif FAULT != "ends-at-once":
    signal.signal(signal.SIGTERM, stop)


def accept():
    try:
        client, _ = listener.accept()
    except BlockingIOError:
        return True
    except OSError as error:
        if FAULT == "dies" or error.errno != errno.EMFILE:
            raise
        if FAULT != "spins":
            poll.unregister(listener)  # until a client leaves, or for a while
        return FAULT == "spins"
    client.setblocking(False)
    clients[client.fileno()] = (client, b"")
    poll.register(client, select.EPOLLIN)
    return True


def close(descriptor):
    client, _ = clients.pop(descriptor)
    poll.unregister(descriptor)
    if FAULT == "closes-nothing":
        lost.append(client)
    else:
        client.close()


def serve(descriptor):
    client, pending = clients[descriptor]
    try:
        data = pending or client.recv(SIZE)
        if not data:
            return close(descriptor)
        sent = client.send(data)
    except BlockingIOError:
        sent = 0
    except OSError:
        return close(descriptor)
    clients[descriptor] = (client, data[sent:])
    poll.modify(descriptor, select.EPOLLOUT if data[sent:] else select.EPOLLIN)


is_accepting = True
while not is_over or clients:
    events = poll.poll(0.1)
    for descriptor, _ in events:
        if descriptor == listener.fileno():
            is_accepting = accept()
        else:
            serve(descriptor)
    if not is_accepting and not events and FAULT != "forgets":
        poll.register(listener, select.EPOLLIN)
        is_accepting = True
    if is_over and not events:
        break
