// A minimal closed-loop load generator: every connection has one message in
// flight, compares the reply with it, and then sends the next.
//
//   epoll_client PORT CONNECTIONS SIZE DURATION_SECONDS [SERVER_PID]
//
// FLOOR_MESSAGES=n   send n messages instead of sending for the duration
// FLOOR_BURST=1      send on all connections together, and again when all have
//                    their reply, so that the server's batches are full
// FLOOR_REPEAT=1     measure again for each line on stdin, over the same
//                    connections, until end of file

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    BATCH = 1024,
    CONNECTING_MAX = 500,
    TIMEOUT_MARGIN_SECONDS = 60,
    WARM_UP_NS = 50000000,
    SHIFTS = 4096,
    SUB_BITS = 6, // steps of 1/64, so a quantile has an error below 1.6%
    BUCKETS = (65 - SUB_BITS) << SUB_BITS,
};

struct connection {
    int fd;
    bool connected;
    size_t sent, received;
    const unsigned char *message;
    uint64_t started;
};

static int epoll;
static size_t size;
static unsigned char *pattern, *reply;
static uint64_t histogram[BUCKETS], longest;

static void die(const char *what, const char *why)
{
    fprintf(stderr, "epoll_client: %s: %s\n", what, why);
    exit(1);
}

static void on_timeout(int signal_number)
{
    (void)signal_number;
    static const char line[] = "epoll_client: timed out\n";
    ssize_t ignored = write(STDERR_FILENO, line, sizeof line - 1);
    (void)ignored;
    _exit(1);
}

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void record(uint64_t ns)
{
    unsigned shift = 0;
    while (ns >> shift >= 2u << SUB_BITS)
        shift++;
    histogram[(shift << SUB_BITS) + (ns >> shift)]++;
    if (ns > longest)
        longest = ns;
}

static double quantile_us(double quantile, uint64_t messages)
{
    uint64_t rank = (uint64_t)(quantile * (double)messages), seen = 0;
    for (unsigned i = 0; i < BUCKETS; i++) {
        seen += histogram[i];
        if (seen > rank) {
            unsigned shift = i < 2u << SUB_BITS ? 0 : (i >> SUB_BITS) - 1;
            uint64_t top = ((uint64_t)(i - (shift << SUB_BITS)) + 1) << shift;
            return (double)(top - 1 < longest ? top - 1 : longest) / 1e3;
        }
    }
    return (double)longest / 1e3;
}

// The kernel updates a running thread's CPU time at a tick and when it is
// scheduled out, so both readings are taken while the server sleeps.
static uint64_t server_cpu_ns(const char *pid)
{
    if (pid == NULL)
        return 0;
    nanosleep(&(struct timespec){ .tv_nsec = 5000000 }, NULL);
    char path[512];
    snprintf(path, sizeof path, "/proc/%s/task", pid);
    DIR *tasks = opendir(path);
    if (tasks == NULL)
        die(path, strerror(errno));
    uint64_t total = 0;
    for (struct dirent *entry; (entry = readdir(tasks)) != NULL;) {
        snprintf(path, sizeof path, "/proc/%s/task/%s/schedstat", pid, entry->d_name);
        FILE *file = entry->d_name[0] == '.' ? NULL : fopen(path, "r");
        uint64_t ns;
        if (file == NULL)
            continue;
        if (fscanf(file, "%" SCNu64, &ns) == 1)
            total += ns;
        fclose(file);
    }
    closedir(tasks);
    return total;
}

static void send_rest(struct connection *c)
{
    ssize_t n = send(c->fd, c->message + c->sent, size - c->sent, MSG_NOSIGNAL);
    if (n >= 0)
        c->sent += (size_t)n;
    else if (errno != EAGAIN)
        die("send", strerror(errno));
}

static void start_message(struct connection *c, uint64_t now)
{
    // Each message differs from the SHIFTS before it, so a reply to the wrong
    // connection is detected.
    static unsigned shift;
    c->message = pattern + shift++ % SHIFTS;
    c->sent = c->received = 0;
    c->started = now;
    send_rest(c);
}

// Returns whether the reply is complete.
static bool receive(struct connection *c)
{
    // Read one byte more, to detect a reply that is too long.
    size_t missing = size - c->received;
    ssize_t n = recv(c->fd, reply, missing + 1, 0);
    if (n < 0) {
        if (errno == EAGAIN)
            return false;
        die("recv", strerror(errno));
    }
    if (n == 0)
        die("recv", "the server closed a connection");
    if ((size_t)n > missing || memcmp(reply, c->message + c->received, (size_t)n) != 0)
        die("recv", "the reply differs from the message");
    c->received += (size_t)n;
    return c->received == size;
}

static bool on_ready(struct epoll_event *event)
{
    struct connection *c = event->data.ptr;
    if (c->sent < size)
        send_rest(c);
    return (event->events & ~(uint32_t)EPOLLOUT) != 0 && receive(c);
}

static int wait_events(struct epoll_event *events)
{
    int n = epoll_wait(epoll, events, BATCH, -1);
    if (n < 0 && errno != EINTR)
        die("epoll_wait", strerror(errno));
    return n;
}

static void open_connection(struct connection *c, uint16_t port)
{
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        die("socket", strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &(int){ 1 }, sizeof(int));
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons(port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0
        && errno != EINPROGRESS)
        die("connect", strerror(errno));
    struct epoll_event event = {
        .events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
        .data.ptr = c,
    };
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event) < 0)
        die("epoll_ctl", strerror(errno));
}

static void on_connected(struct connection *c)
{
    int error = 0;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &(socklen_t){ sizeof error });
    if (error != 0)
        die("connect", strerror(error));
    c->connected = true;
    start_message(c, 0);
}

// Returns when every connection has received one reply.
static void connect_all(struct connection *connections, size_t count, uint16_t port)
{
    struct epoll_event events[BATCH];
    size_t opened = 0, ready = 0;
    while (ready < count) {
        while (opened < count && opened - ready < CONNECTING_MAX)
            open_connection(&connections[opened++], port);
        int n = wait_events(events);
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (!c->connected)
                on_connected(c);
            else if (on_ready(&events[i]))
                ready++;
        }
    }
}

// Returns the number of messages. None is in flight then, so the server's CPU
// time is that of exactly these messages.
static uint64_t run(struct connection *connections, size_t count, uint64_t limit,
                    uint64_t deadline, bool burst)
{
    struct epoll_event events[BATCH];
    uint64_t started = 0, done = 0, now = clock_ns(CLOCK_MONOTONIC);
    do {
        for (size_t i = 0; i < count && started < limit; i++, started++)
            start_message(&connections[i], burst ? now : clock_ns(CLOCK_MONOTONIC));
        while (done < started) {
            int n = wait_events(events);
            for (int i = 0; i < n; i++) {
                struct connection *c = events[i].data.ptr;
                if (!on_ready(&events[i]))
                    continue;
                now = clock_ns(CLOCK_MONOTONIC);
                record(now - c->started);
                done++;
                if (!burst && started < limit && now < deadline) {
                    started++;
                    start_message(c, now);
                }
            }
        }
    } while (started < limit && now < deadline);
    return done;
}

static void measure(struct connection *connections, size_t count, double duration,
                    const char *server)
{
    const char *messages_text = getenv("FLOOR_MESSAGES");
    uint64_t limit = messages_text ? strtoull(messages_text, NULL, 10) : UINT64_MAX;
    bool burst = getenv("FLOOR_BURST") != NULL;
    memset(histogram, 0, sizeof histogram);
    longest = 0;

    uint64_t server_before = server_cpu_ns(server);
    uint64_t own_before = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    uint64_t begin = clock_ns(CLOCK_MONOTONIC);
    uint64_t deadline = messages_text ? UINT64_MAX : begin + (uint64_t)(duration * 1e9);
    uint64_t messages = run(connections, count, limit, deadline, burst);
    double seconds = (double)(clock_ns(CLOCK_MONOTONIC) - begin) / 1e9;
    double own_cpu = (double)(clock_ns(CLOCK_PROCESS_CPUTIME_ID) - own_before) / 1e9;
    double server_cpu = (double)(server_cpu_ns(server) - server_before) / 1e9;

    printf("{\"messages\":%" PRIu64 ",\"seconds\":%.6f,\"messages_per_second\":%.1f,"
           "\"p50_us\":%.3f,\"p99_us\":%.3f,\"max_us\":%.3f,\"own_cpu_seconds\":%.9f",
           messages, seconds, (double)messages / seconds, quantile_us(0.5, messages),
           quantile_us(0.99, messages), (double)longest / 1e3, own_cpu);
    if (server != NULL)
        printf(",\"server_cpu_seconds\":%.9f", server_cpu);
    printf("}\n");
    fflush(stdout);
}

static bool next_line(void)
{
    int c;
    while ((c = getchar()) != EOF && c != '\n')
        ;
    return c == '\n';
}

int main(int argc, char **argv)
{
    unsigned long port = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
    size_t count = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
    size = argc > 3 ? strtoul(argv[3], NULL, 10) : 0;
    double duration = argc > 4 ? strtod(argv[4], NULL) : 0;
    const char *server = argc > 5 ? argv[5] : NULL;
    if (argc > 6 || port == 0 || port > 65535 || count == 0 || size == 0
        || !(duration > 0 && duration < 86400)) {
        fprintf(stderr, "usage: %s PORT CONNECTIONS SIZE DURATION_SECONDS [SERVER_PID]\n",
                argv[0]);
        return 2;
    }
    struct rlimit descriptors;
    if (getrlimit(RLIMIT_NOFILE, &descriptors) == 0) {
        descriptors.rlim_cur = descriptors.rlim_max;
        setrlimit(RLIMIT_NOFILE, &descriptors);
    }
    signal(SIGALRM, on_timeout);
    alarm((unsigned)duration + TIMEOUT_MARGIN_SECONDS);

    struct connection *connections = calloc(count, sizeof *connections);
    pattern = malloc(size + SHIFTS);
    reply = malloc(size + 1);
    if (connections == NULL || pattern == NULL || reply == NULL)
        die("malloc", strerror(errno));
    for (size_t i = 0; i < size + SHIFTS; i++)
        pattern[i] = (unsigned char)(random() >> 8);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0)
        die("epoll_create1", strerror(errno));

    connect_all(connections, count, (uint16_t)port);

    alarm((unsigned)duration + TIMEOUT_MARGIN_SECONDS);
    measure(connections, count, duration, server);
    while (getenv("FLOOR_REPEAT") != NULL && next_line()) {
        alarm((unsigned)duration + TIMEOUT_MARGIN_SECONDS);
        // Warm the caches again, which other processes have used since.
        run(connections, count, UINT64_MAX, clock_ns(CLOCK_MONOTONIC) + WARM_UP_NS, false);
        measure(connections, count, duration, server);
    }

    // Close with a reset, which leaves no TIME_WAIT: repeated runs would
    // exhaust the ports.
    for (size_t i = 0; i < count; i++)
        setsockopt(connections[i].fd, SOL_SOCKET, SO_LINGER, &(struct linger){ 1, 0 },
                   sizeof(struct linger));
    return 0;
}
