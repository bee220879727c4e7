// The floor: an echo server that does the least a single-threaded,
// edge-triggered epoll server can do per message. It has no configuration,
// timeouts, limits, statistics or graceful shutdown; what a real server costs
// above the floor is the price of those.
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

// Bytes that the socket did not take. Only such a connection has its own memory.
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

// Returns the number of bytes sent, 0 if the socket is full, -1 on an error.
//
// send and recv cost some hundred instructions less than write and read, which
// go through the kernel's file layer.
static ssize_t write_some(int fd, const char *bytes, size_t length)
{
    ssize_t n = send(fd, bytes, length, MSG_NOSIGNAL);
    return n < 0 && errno == EAGAIN ? 0 : n;
}

// Returns true if all is written, false if the socket is full or closed.
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

// The loop has no limit, so it is not fair to other connections: the clients it
// is for wait for the reply before they send again.
static void serve(int fd, uint32_t events)
{
    // The edge is reported once. After a reported end of stream, read until it
    // is reached, because no other event will follow.
    bool until_would_block = events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR);

    if (pending_of(fd) != NULL) {
        if (!flush_pending(fd))
            return;
        // The edges of data that arrived meanwhile are lost.
        until_would_block = true;
    } else if (!until_would_block && !(events & EPOLLIN)) {
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
            // A short write does not imply that an edge follows: only a write
            // that fails with EAGAIN does.
            if (!flush_pending(fd))
                return;
        }
        // A short read means that the socket is drained, which saves the read
        // that would return EAGAIN. Later data is a new edge.
        if ((size_t)n < buffer_size && !until_would_block)
            return;
    }
}

// Returns the timeout of the next wait: 0 if the backlog may have more.
static int accept_burst(int listener)
{
    for (int i = 0; i < ACCEPT_BURST; i++) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EAGAIN)
                return -1;
            if (errno == ECONNABORTED)
                continue;
            // Out of descriptors or memory. Queued connections raise no new edge.
            return ACCEPT_RETRY_MS;
        }
        // Registered once, for all events, so that no message needs an epoll_ctl.
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
    // Accepted sockets inherit TCP_NODELAY.
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
        // After the connections, so that no closed descriptor is reused while
        // this batch may still have an event of it.
        if (accepting)
            timeout = accept_burst(listener);
    }
}
