// Node's net: a socket piped into itself, which stops reading while more than
// BUFFER_SIZE waits to be written. Node reads up to 64 KiB at a time regardless
// of BUFFER_SIZE, and itself raises the descriptor limit.
//
//   node node.js PORT BUFFER_SIZE

const net = require("net");

const [port, bufferSize] = process.argv.slice(2).map(Number);
const options = { allowHalfOpen: true, noDelay: true, highWaterMark: bufferSize };

net
  .createServer(options, (socket) => {
    socket.on("error", () => socket.destroy());
    socket.pipe(socket);
  })
  .listen({ port, host: "127.0.0.1", backlog: 4096 });
