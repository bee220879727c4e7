// The floor: the least a single-threaded, edge-triggered epoll echo server can
// do for a message. No configuration, time-outs, limits, statistics or
// graceful end, so what a real server costs above this is what it adds.
//
//   epoll_server [PORT [BUFFER_SIZE]]

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BACKLOG = 4096, BATCH = 1024, ACCEPT_BURST = 64, ACCEPT_RETRY_MS = 100 };

// What a peer would not take yet. Only such a connection has memory of its own.
struct pending {
    size_t start, end;
    char bytes[];
};

static int epoll;
static char *buffer;
static size_t buffer_size;
static struct pending **pending; // by descriptor
static size_t pending_slots;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static struct pending *pending_of(int fd)
{
    return (size_t)fd < pending_slots ? pending[fd] : NULL;
}

static void drop_pending(int fd)
{
    if (pending_of(fd) != NULL) {
        free(pending[fd]);
        pending[fd] = NULL;
    }
}

static void close_connection(int fd)
{
    drop_pending(fd);
    close(fd);
}

static void keep_pending(int fd, const char *bytes, size_t length)
{
    if ((size_t)fd >= pending_slots) {
        size_t slots = (size_t)fd * 2 + 1;
        struct pending **grown = realloc(pending, slots * sizeof *grown);
        if (grown == NULL)
            die("realloc");
        memset(grown + pending_slots, 0, (slots - pending_slots) * sizeof *grown);
        pending = grown;
        pending_slots = slots;
    }
    struct pending *rest = malloc(sizeof *rest + length);
    if (rest == NULL)
        die("malloc");
    rest->start = 0;
    rest->end = length;
    memcpy(rest->bytes, bytes, length);
    pending[fd] = rest;
}

// send and recv go straight to the socket, which write and read reach through
// the file layer, at a few hundred instructions more.
//
// The number of bytes taken, 0 if the peer takes none now, -1 on an error.
static ssize_t write_some(int fd, const char *bytes, size_t length)
{
    ssize_t n = send(fd, bytes, length, MSG_NOSIGNAL);
    return n < 0 && errno == EAGAIN ? 0 : n;
}

// Whether nothing is left to be written; else the connection waits or is gone.
static bool flush_pending(int fd)
{
    struct pending *rest = pending_of(fd);
    while (rest->start < rest->end) {
        ssize_t n = write_some(fd, rest->bytes + rest->start, rest->end - rest->start);
        if (n < 0)
            close_connection(fd);
        if (n <= 0)
            return false;
        rest->start += (size_t)n;
    }
    drop_pending(fd);
    return true;
}

// There is no bound on the turns of this loop, and so no fairness: the peers
// it is meant for wait for their answer before they send again.
static void serve(int fd, uint32_t events)
{
    // The edge is reported once. A read that follows an end of stream already
    // reported has to reach it, for nothing will tell of it again.
    bool to_the_end = events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR);

    if (pending_of(fd) != NULL) {
        if (!flush_pending(fd))
            return;
        // Edges that came while nothing was read are spent.
        to_the_end = true;
    } else if (!to_the_end && !(events & EPOLLIN)) {
        return;
    }

    for (;;) {
        ssize_t n = recv(fd, buffer, buffer_size, 0);
        if (n <= 0) {
            if (n == 0 || errno != EAGAIN)
                close_connection(fd);
            return;
        }
        ssize_t written = write_some(fd, buffer, (size_t)n);
        if (written < 0) {
            close_connection(fd);
            return;
        }
        if (written < n) {
            keep_pending(fd, buffer + written, (size_t)(n - written));
            // There may have been room again before the write was tried in
            // vain, and a short write need not mean that an edge will follow.
            if (!flush_pending(fd))
                return;
        }
        // Less than was asked for means drained, which saves the read that
        // would only say so; what arrives from now on is a new edge.
        if ((size_t)n < buffer_size && !to_the_end)
            return;
    }
}

// How long the next wait may last: not at all if more may be waiting here.
static int accept_burst(int listener)
{
    for (int i = 0; i < ACCEPT_BURST; i++) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EAGAIN)
                return -1;
            if (errno == ECONNABORTED)
                continue;
            // Out of descriptors or memory: those in the queue raise no new edge.
            return ACCEPT_RETRY_MS;
        }
        // Registered once for everything, so that no message costs an epoll_ctl.
        struct epoll_event event = {
            .events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLET,
            .data.fd = fd,
        };
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0)
            close(fd);
    }
    return 0;
}

static int listen_on(unsigned port)
{
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener < 0)
        die("socket");
    int on = 1;
    // Set here, the accepted sockets inherit it and need no call each.
    if (setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0
        || setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0)
        die("setsockopt");
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons((uint16_t)port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    socklen_t length = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, length) < 0)
        die("bind");
    if (listen(listener, BACKLOG) < 0)
        die("listen");
    if (getsockname(listener, (struct sockaddr *)&address, &length) < 0)
        die("getsockname");
    printf("%u\n", (unsigned)ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

int main(int argc, char **argv)
{
    unsigned long port = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
    buffer_size = argc > 2 ? strtoul(argv[2], NULL, 10) : 1024;
    if (argc > 3 || port > 65535 || buffer_size == 0) {
        fprintf(stderr, "usage: %s [PORT [BUFFER_SIZE]]\n", argv[0]);
        return 2;
    }
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }

    buffer = malloc(buffer_size);
    if (buffer == NULL)
        die("malloc");
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0)
        die("epoll_create1");
    int listener = listen_on((unsigned)port);
    struct epoll_event event = { .events = EPOLLIN | EPOLLET, .data.fd = listener };
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event) < 0)
        die("epoll_ctl");

    static struct epoll_event events[BATCH];
    int timeout = -1;
    for (;;) {
        int n = epoll_wait(epoll, events, BATCH, timeout);
        if (n < 0 && errno != EINTR)
            die("epoll_wait");
        bool accepting = timeout >= 0;
        for (int i = 0; i < n; i++) {
            if (events[i].data.fd == listener)
                accepting = true;
            else
                serve(events[i].data.fd, events[i].events);
        }
        // After the connections: a descriptor that one of them gave back is
        // not taken again while this batch can still speak of it.
        if (accepting)
            timeout = accept_burst(listener);
    }
}
