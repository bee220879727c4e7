// The floor of io_uring: the least a single-threaded echo server on it can do
// for a message. Accepting and receiving are multishot and the sockets have no
// descriptors, only slots of the ring's own table, so a message costs one
// submission, its send; one system call takes those of a whole turn and waits
// for the next. As in epoll_server.c: no configuration, time-outs, limits,
// statistics or graceful end. It needs Linux 6.1.
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
    BUFFERS_MIN = 64, // both are powers of two
    BUFFERS_MAX = 1024,
    POOL_SIZE = 1 << 20,
    QUEUE_MAX = 4, // chunks of a connection, before it is received from no more
    BUFFER_GROUP = 0,
    SLOTS_MAX = 1 << 20, // the kernel's own limit
    ACCEPT_RETRY_NS = 100000000,
};

// What a completion is of, in the low bits of its user data.
enum operation { ACCEPT, ACCEPT_RETRY, RECEIVE, SEND, CANCEL, CLOSE, OPERATION_MASK = 7 };

// Bytes on their way back: in a buffer that the kernel picked, or, once the
// peer has stopped taking them, in memory of the connection's own.
struct chunk {
    struct chunk *next;
    char *bytes;
    size_t length;
    int buffer; // NONE if the memory is its own
};

struct connection {
    int slot;
    bool receiving, cancelling, sending, stalled, ended;
    unsigned queued;
    struct chunk *first, **end; // to be sent in this order, one at a time
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

// Its last completion will say that the receive has ended. Until then more may
// arrive: what the kernel receives in one go, 32 buffers at most.
static void stop_receive(struct connection *c)
{
    if (!c->receiving || c->cancelling)
        return;
    c->cancelling = true;
    struct io_uring_sqe *sqe = submission();
    io_uring_prep_cancel64(sqe, (uintptr_t)c | RECEIVE, 0);
    tag(sqe, CANCEL, NULL);
}

// A buffer that the kernel picked must come back to it soon, so its send does
// not wait for the peer; what is left is sent from the connection's memory.
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

static void give_back(int buffer)
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
        give_back(chunk->buffer);
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

// The same bytes in memory of their own; the buffer goes back to the kernel.
static struct chunk *kept(struct chunk *chunk)
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

// The peer takes no more now: it is not received from until all has gone out.
static void stall(struct connection *c)
{
    c->stalled = true;
    struct chunk *chunk = c->first;
    c->first = NULL;
    c->end = &c->first;
    c->queued = 0;
    while (chunk != NULL) {
        struct chunk *next = chunk->next;
        append(c, kept(chunk));
        chunk = next;
    }
    stop_receive(c);
}

// What comes next for a connection whose send, if there was one, is over.
static void go_on(struct connection *c)
{
    if (c->first != NULL) {
        start_send(c);
    } else if (c->receiving) {
        // It waits for more, or for the end of a receive that was cancelled.
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
            give_back(buffer);
        else
            append(c, c->stalled ? kept(chunk) : chunk);
        if (c->queued > QUEUE_MAX)
            stop_receive(c);
    } else if (cqe->res != -ENOBUFS && cqe->res != -ECANCELED) {
        c->ended = true;
    }
    if (!c->sending)
        go_on(c);
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
    go_on(c);
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
    // Out of slots or memory, most likely.
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

    // As many as can be of use at once, but few enough to stay in a cache.
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
        give_back(buffer);
}

static int listen_on(unsigned port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket", errno);
    int on = 1;
    // Set here, the accepted sockets inherit it and need no call each.
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
    // No more slots than the limit allows descriptors.
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
