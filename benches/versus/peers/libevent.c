// libevent: one bufferevent per connection, whose input moves to its output
// without a copy. Reading stops while the output has more than BUFFER_SIZE.
//
//   libevent PORT BUFFER_SIZE

#include <arpa/inet.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/listener.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

enum { BACKLOG = 4096 };

static size_t buffer_size;

static void on_read(struct bufferevent *connection, void *context)
{
    (void)context;
    struct evbuffer *output = bufferevent_get_output(connection);
    evbuffer_add_buffer(output, bufferevent_get_input(connection));
    if (evbuffer_get_length(output) > buffer_size)
        bufferevent_disable(connection, EV_READ);
}

// The output is empty.
static void on_write(struct bufferevent *connection, void *context)
{
    (void)context;
    bufferevent_enable(connection, EV_READ);
}

static void on_write_after_end(struct bufferevent *connection, void *context)
{
    (void)context;
    bufferevent_free(connection);
}

static void on_event(struct bufferevent *connection, short what, void *context)
{
    (void)context;
    size_t pending = evbuffer_get_length(bufferevent_get_output(connection));
    if ((what & BEV_EVENT_EOF) && pending > 0)
        bufferevent_setcb(connection, NULL, on_write_after_end, on_event, NULL);
    else
        bufferevent_free(connection);
}

static void on_connection(struct evconnlistener *listener, evutil_socket_t fd,
                          struct sockaddr *address, int length, void *base)
{
    (void)listener, (void)address, (void)length;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){ 1 }, sizeof(int));
    struct bufferevent *connection = bufferevent_socket_new(base, fd, BEV_OPT_CLOSE_ON_FREE);
    if (connection == NULL) {
        evutil_closesocket(fd);
        return;
    }
    bufferevent_set_max_single_read(connection, buffer_size);
    bufferevent_setcb(connection, on_read, on_write, on_event, NULL);
    bufferevent_enable(connection, EV_READ | EV_WRITE);
}

int main(int argc, char **argv)
{
    unsigned long port = argc == 3 ? strtoul(argv[1], NULL, 10) : 0;
    buffer_size = argc == 3 ? strtoul(argv[2], NULL, 10) : 0;
    if (port == 0 || port > 65535 || buffer_size == 0) {
        fprintf(stderr, "usage: %s PORT BUFFER_SIZE\n", argv[0]);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }

    struct event_base *base = event_base_new();
    if (base == NULL) {
        fprintf(stderr, "libevent: event_base_new failed\n");
        return 1;
    }
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons((uint16_t)port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    struct evconnlistener *listener = evconnlistener_new_bind(
        base, on_connection, base, LEV_OPT_CLOSE_ON_FREE | LEV_OPT_REUSEABLE, BACKLOG,
        (struct sockaddr *)&address, sizeof address);
    if (listener == NULL) {
        perror("libevent: evconnlistener_new_bind");
        return 1;
    }
    return event_base_dispatch(base);
}
