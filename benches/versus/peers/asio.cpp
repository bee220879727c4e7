// Asio: one session object with a buffer per connection; each handler starts
// the next operation.
//
//   asio PORT BUFFER_SIZE

#include <asio.hpp>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <memory>
#include <sys/resource.h>
#include <vector>

using asio::ip::tcp;

class session : public std::enable_shared_from_this<session> {
public:
    session(tcp::socket socket, std::size_t buffer_size)
        : socket_(std::move(socket)), buffer_(buffer_size)
    {
    }

    void read()
    {
        socket_.async_read_some(asio::buffer(buffer_),
            [self = shared_from_this()](std::error_code error, std::size_t n) {
                if (!error)
                    self->write(n);
            });
    }

private:
    void write(std::size_t n)
    {
        asio::async_write(socket_, asio::buffer(buffer_, n),
            [self = shared_from_this()](std::error_code error, std::size_t) {
                if (!error)
                    self->read();
            });
    }

    tcp::socket socket_;
    std::vector<char> buffer_;
};

void accept(tcp::acceptor &acceptor, std::size_t buffer_size)
{
    acceptor.async_accept([&acceptor, buffer_size](std::error_code error, tcp::socket socket) {
        if (!error)
            socket.set_option(tcp::no_delay(true), error);
        if (!error)
            std::make_shared<session>(std::move(socket), buffer_size)->read();
        accept(acceptor, buffer_size);
    });
}

template <typename Number>
bool parse(const char *text, Number &number)
{
    const char *end = text + std::strlen(text);
    auto [rest, error] = std::from_chars(text, end, number);
    return error == std::errc() && rest == end && number > 0;
}

int main(int argc, char **argv)
{
    std::uint16_t port;
    std::size_t buffer_size;
    if (argc != 3 || !parse(argv[1], port) || !parse(argv[2], buffer_size)) {
        std::fprintf(stderr, "usage: %s PORT BUFFER_SIZE\n", argv[0]);
        return 2;
    }
    rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    try {
        asio::io_context context(1);
        tcp::acceptor acceptor(context, tcp::v4());
        acceptor.set_option(tcp::acceptor::reuse_address(true));
        acceptor.bind({asio::ip::address_v4::loopback(), port});
        acceptor.listen(4096);
        accept(acceptor, buffer_size);
        context.run();
    } catch (const std::exception &error) {
        std::fprintf(stderr, "asio: %s\n", error.what());
        return 1;
    }
}
