// libuv: one buffer for all connections; uv_try_write first, then uv_write for
// the rest, during which reading from that connection stops.
//
//   libuv PORT BUFFER_SIZE

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <uv.h>

enum { BACKLOG = 4096 };

// Bytes of one read that the kernel did not take.
struct rest {
    uv_write_t request;
    char bytes[];
};

static char *buffer;
static size_t buffer_size;

static void check(int status, const char *operation)
{
    if (status < 0) {
        fprintf(stderr, "libuv: %s: %s\n", operation, uv_strerror(status));
        exit(1);
    }
}

static void *allocate(size_t size)
{
    void *memory = malloc(size);
    if (memory == NULL)
        check(UV_ENOMEM, "malloc");
    return memory;
}

static void on_close(uv_handle_t *handle)
{
    free(handle);
}

static void on_allocate(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    (void)handle, (void)suggested;
    *buf = uv_buf_init(buffer, (unsigned)buffer_size);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf);

static void on_write(uv_write_t *request, int status)
{
    uv_stream_t *stream = request->handle;
    free(request->data);
    if (status == 0)
        status = uv_read_start(stream, on_allocate, on_read);
    if (status < 0)
        uv_close((uv_handle_t *)stream, on_close);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    if (n == 0) // EAGAIN
        return;
    if (n < 0) { // end of stream or error
        uv_close((uv_handle_t *)stream, on_close);
        return;
    }
    uv_buf_t bytes = uv_buf_init(buf->base, (unsigned)n);
    int written = uv_try_write(stream, &bytes, 1);
    if (written == n)
        return;
    if (written < 0) {
        if (written != UV_EAGAIN) {
            uv_close((uv_handle_t *)stream, on_close);
            return;
        }
        written = 0;
    }
    size_t length = (size_t)(n - written);
    struct rest *rest = allocate(sizeof *rest + length);
    memcpy(rest->bytes, buf->base + written, length);
    rest->request.data = rest;
    uv_read_stop(stream);
    bytes = uv_buf_init(rest->bytes, (unsigned)length);
    if (uv_write(&rest->request, stream, &bytes, 1, on_write) < 0) {
        free(rest);
        uv_close((uv_handle_t *)stream, on_close);
    }
}

static void on_connection(uv_stream_t *listener, int status)
{
    if (status < 0)
        return;
    uv_tcp_t *client = allocate(sizeof *client);
    check(uv_tcp_init(listener->loop, client), "uv_tcp_init");
    if (uv_accept(listener, (uv_stream_t *)client) < 0 || uv_tcp_nodelay(client, 1) < 0
        || uv_read_start((uv_stream_t *)client, on_allocate, on_read) < 0)
        uv_close((uv_handle_t *)client, on_close);
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
    buffer = allocate(buffer_size);

    uv_tcp_t listener;
    struct sockaddr_in address;
    check(uv_tcp_init(uv_default_loop(), &listener), "uv_tcp_init");
    check(uv_ip4_addr("127.0.0.1", (int)port, &address), "uv_ip4_addr");
    check(uv_tcp_bind(&listener, (const struct sockaddr *)&address, 0), "uv_tcp_bind");
    check(uv_listen((uv_stream_t *)&listener, BACKLOG, on_connection), "uv_listen");
    return uv_run(uv_default_loop(), UV_RUN_DEFAULT);
}
