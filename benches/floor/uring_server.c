// The io_uring floor: an echo server that does the least a single-threaded
// io_uring server can do per message. Accept and receive are multishot, and the
// sockets are slots of the ring's file table, so a message costs one
// submission: its send. One system call submits all sends of a turn and waits
// for completions. As epoll_server.c, it has no configuration, timeouts,
// limits, statistics or graceful shutdown. Requires Linux 6.1.
//
//   uring_server [PORT [BUFFER_SIZE]]

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <liburing.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    NONE = -1,
    BACKLOG = 4096,
    SUBMISSIONS = 1024,
    COMPLETIONS = 4096,
    BUFFERS_MIN = 64, // a power of two, as the maximum
    BUFFERS_MAX = 1024,
    POOL_SIZE = 1 << 20,
    QUEUE_MAX = 4, // chunks per connection; with more, receiving stops
    BUFFER_GROUP = 0,
    SLOTS_MAX = 1 << 20, // the kernel's own limit
    ACCEPT_RETRY_NS = 100000000,
};

// The operation of a completion, in the low bits of its user data.
enum operation { ACCEPT, ACCEPT_RETRY, RECEIVE, SEND, CANCEL, CLOSE, OPERATION_MASK = 7 };

// Bytes to send: in a buffer that the kernel chose, or in the connection's own
// memory once its socket is full.
struct chunk {
    struct chunk *next;
    char *bytes;
    size_t length;
    int buffer; // NONE if the memory is the connection's
};

struct connection {
    int slot;
    bool receiving, cancelling, sending, stalled, ended;
    unsigned queued;
    struct chunk *first, **end; // sent in this order, one at a time
};

static struct io_uring ring;
static struct io_uring_buf_ring *buffer_ring;
static char *buffers;
static size_t buffer_size;
static unsigned buffer_count;
static struct chunk received[BUFFERS_MAX]; // by buffer
static int listener;

static void die(const char *what, int error)
{
    fprintf(stderr, "%s: %s\n", what, strerror(error));
    exit(1);
}

static struct io_uring_sqe *submission(void)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
    while (sqe == NULL) {
        int result = io_uring_submit(&ring);
        if (result < 0 && result != -EBUSY && result != -EINTR)
            die("io_uring_submit", -result);
        sqe = io_uring_get_sqe(&ring);
    }
    return sqe;
}

static void tag(struct io_uring_sqe *sqe, enum operation operation, const void *subject)
{
    io_uring_sqe_set_data64(sqe, (uintptr_t)subject | operation);
}

static void start_accept(void)
{
    struct io_uring_sqe *sqe = submission();
    io_uring_prep_multishot_accept_direct(sqe, listener, NULL, NULL, 0);
    tag(sqe, ACCEPT, NULL);
}

static void start_receive(struct connection *c)
{
    struct io_uring_sqe *sqe = submission();
    io_uring_prep_recv_multishot(sqe, c->slot, NULL, 0, 0);
    sqe->flags |= IOSQE_FIXED_FILE | IOSQE_BUFFER_SELECT;
    sqe->buf_group = BUFFER_GROUP;
    tag(sqe, RECEIVE, c);
    c->receiving = true;
}

// The last completion reports the end of the receive. Until then up to 32 more
// buffers may arrive, which the kernel receives in one pass.
static void stop_receive(struct connection *c)
{
    if (!c->receiving || c->cancelling)
        return;
    c->cancelling = true;
    struct io_uring_sqe *sqe = submission();
    io_uring_prep_cancel64(sqe, (uintptr_t)c | RECEIVE, 0);
    tag(sqe, CANCEL, NULL);
}

// The kernel needs its buffer again soon, so a send from it does not wait; the
// rest is sent from the connection's memory.
static void start_send(struct connection *c)
{
    struct io_uring_sqe *sqe = submission();
    io_uring_prep_send(sqe, c->slot, c->first->bytes, c->first->length,
                       MSG_NOSIGNAL | (c->stalled ? MSG_WAITALL : MSG_DONTWAIT));
    sqe->flags |= IOSQE_FIXED_FILE;
    tag(sqe, SEND, c);
    c->sending = true;
}

static void close_connection(struct connection *c)
{
    struct io_uring_sqe *sqe = submission();
    io_uring_prep_close_direct(sqe, (unsigned)c->slot);
    tag(sqe, CLOSE, NULL);
    free(c);
}

static void recycle_buffer(int buffer)
{
    io_uring_buf_ring_add(buffer_ring, buffers + (size_t)buffer * buffer_size,
                          (unsigned)buffer_size, (unsigned short)buffer,
                          (int)buffer_count - 1, 0);
    io_uring_buf_ring_advance(buffer_ring, 1);
}

static void drop_chunk(struct chunk *chunk)
{
    if (chunk->buffer == NONE)
        free(chunk);
    else
        recycle_buffer(chunk->buffer);
}

static void drop_first(struct connection *c)
{
    struct chunk *chunk = c->first;
    c->first = chunk->next;
    if (c->first == NULL)
        c->end = &c->first;
    c->queued--;
    drop_chunk(chunk);
}

// Copies the chunk to its own memory and recycles the buffer.
static struct chunk *copy_out(struct chunk *chunk)
{
    struct chunk *copy = malloc(sizeof *copy + chunk->length);
    if (copy == NULL)
        die("malloc", errno);
    *copy = (struct chunk){ NULL, (char *)(copy + 1), chunk->length, NONE };
    memcpy(copy->bytes, chunk->bytes, chunk->length);
    drop_chunk(chunk);
    return copy;
}

static void append(struct connection *c, struct chunk *chunk)
{
    chunk->next = NULL;
    *c->end = chunk;
    c->end = &chunk->next;
    c->queued++;
}

// The socket is full: stops receiving until all chunks are sent.
static void stall(struct connection *c)
{
    c->stalled = true;
    struct chunk *chunk = c->first;
    c->first = NULL;
    c->end = &c->first;
    c->queued = 0;
    while (chunk != NULL) {
        struct chunk *next = chunk->next;
        append(c, copy_out(chunk));
        chunk = next;
    }
    stop_receive(c);
}

// Starts the next operation of a connection that has no send in progress.
static void start_next(struct connection *c)
{
    if (c->first != NULL) {
        start_send(c);
    } else if (c->receiving) {
        // Wait for data, or for the end of a cancelled receive.
    } else if (c->ended) {
        close_connection(c);
    } else {
        c->stalled = false;
        start_receive(c);
    }
}

static void on_receive(struct connection *c, const struct io_uring_cqe *cqe)
{
    if (!(cqe->flags & IORING_CQE_F_MORE))
        c->receiving = c->cancelling = false;
    if (cqe->res > 0) {
        int buffer = (int)(cqe->flags >> IORING_CQE_BUFFER_SHIFT);
        struct chunk *chunk = &received[buffer];
        char *bytes = buffers + (size_t)buffer * buffer_size;
        *chunk = (struct chunk){ NULL, bytes, (size_t)cqe->res, buffer };
        if (c->ended)
            recycle_buffer(buffer);
        else
            append(c, c->stalled ? copy_out(chunk) : chunk);
        if (c->queued > QUEUE_MAX)
            stop_receive(c);
    } else if (cqe->res != -ENOBUFS && cqe->res != -ECANCELED) {
        c->ended = true;
    }
    if (!c->sending)
        start_next(c);
}

static void on_send(struct connection *c, int result)
{
    c->sending = false;
    if (result < 0 && result != -EAGAIN) {
        while (c->first != NULL)
            drop_first(c);
        c->ended = true;
        stop_receive(c);
    } else {
        size_t sent = result > 0 ? (size_t)result : 0;
        c->first->bytes += sent;
        c->first->length -= sent;
        if (c->first->length == 0)
            drop_first(c);
        else if (!c->stalled)
            stall(c);
    }
    start_next(c);
}

static void on_accept(const struct io_uring_cqe *cqe)
{
    if (cqe->res >= 0) {
        struct connection *c = calloc(1, sizeof *c);
        if (c == NULL)
            die("calloc", errno);
        c->slot = cqe->res;
        c->end = &c->first;
        start_receive(c);
    }
    if (cqe->flags & IORING_CQE_F_MORE)
        return;
    if (cqe->res >= 0) {
        start_accept();
        return;
    }
    // Probably out of slots or memory.
    static struct __kernel_timespec delay = { .tv_nsec = ACCEPT_RETRY_NS };
    struct io_uring_sqe *sqe = submission();
    io_uring_prep_timeout(sqe, &delay, 0, 0);
    tag(sqe, ACCEPT_RETRY, NULL);
}

static void on_completion(const struct io_uring_cqe *cqe)
{
    void *subject = (void *)(uintptr_t)(cqe->user_data & ~(uint64_t)OPERATION_MASK);
    switch ((enum operation)(cqe->user_data & OPERATION_MASK)) {
    case ACCEPT:
        on_accept(cqe);
        break;
    case ACCEPT_RETRY:
        start_accept();
        break;
    case RECEIVE:
        on_receive(subject, cqe);
        break;
    case SEND:
        on_send(subject, cqe->res);
        break;
    default:
        break;
    }
}

static void set_up_ring(unsigned slots)
{
    struct io_uring_params params = {
        .flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CQSIZE,
        .cq_entries = COMPLETIONS,
    };
    int result = io_uring_queue_init_params(SUBMISSIONS, &ring, &params);
    if (result < 0)
        die("io_uring_queue_init_params", -result);
    result = io_uring_register_ring_fd(&ring);
    if (result < 0)
        die("io_uring_register_ring_fd", -result);
    result = io_uring_register_files_sparse(&ring, slots);
    if (result < 0)
        die("io_uring_register_files_sparse", -result);

    // Limit the pool to 1 MiB, to stay in the cache, unless that is too few.
    buffer_count = BUFFERS_MAX;
    while (buffer_count > BUFFERS_MIN && buffer_count * buffer_size > POOL_SIZE)
        buffer_count /= 2;
    buffer_ring = aligned_alloc((size_t)sysconf(_SC_PAGESIZE),
                                BUFFERS_MAX * sizeof(struct io_uring_buf));
    buffers = malloc(buffer_count * buffer_size);
    if (buffer_ring == NULL || buffers == NULL)
        die("malloc", errno);
    io_uring_buf_ring_init(buffer_ring);
    struct io_uring_buf_reg group = {
        .ring_addr = (uintptr_t)buffer_ring,
        .ring_entries = buffer_count,
        .bgid = BUFFER_GROUP,
    };
    result = io_uring_register_buf_ring(&ring, &group, 0);
    if (result < 0)
        die("io_uring_register_buf_ring", -result);
    for (int buffer = 0; (unsigned)buffer < buffer_count; buffer++)
        recycle_buffer(buffer);
}

static int listen_on(unsigned port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket", errno);
    int on = 1;
    // Accepted sockets inherit TCP_NODELAY.
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0
        || setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0)
        die("setsockopt", errno);
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons((uint16_t)port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    socklen_t length = sizeof address;
    if (bind(fd, (struct sockaddr *)&address, length) < 0)
        die("bind", errno);
    if (listen(fd, BACKLOG) < 0)
        die("listen", errno);
    if (getsockname(fd, (struct sockaddr *)&address, &length) < 0)
        die("getsockname", errno);
    printf("%u\n", (unsigned)ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

int main(int argc, char **argv)
{
    unsigned long port = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
    buffer_size = argc > 2 ? strtoul(argv[2], NULL, 10) : 1024;
    if (argc > 3 || port > 65535 || buffer_size == 0) {
        fprintf(stderr, "usage: %s [PORT [BUFFER_SIZE]]\n", argv[0]);
        return 2;
    }
    // The descriptor limit also limits the slots.
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        die("getrlimit", errno);
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
        die("setrlimit", errno);

    set_up_ring(limit.rlim_cur < SLOTS_MAX ? (unsigned)limit.rlim_cur : SLOTS_MAX);
    listener = listen_on((unsigned)port);
    start_accept();
    for (;;) {
        int result = io_uring_submit_and_wait(&ring, 1);
        if (result < 0 && result != -EINTR && result != -EBUSY)
            die("io_uring_submit_and_wait", -result);
        struct io_uring_cqe *cqe;
        unsigned head, seen = 0;
        io_uring_for_each_cqe(&ring, head, cqe) {
            on_completion(cqe);
            seen++;
        }
        io_uring_cq_advance(&ring, seen);
    }
}
