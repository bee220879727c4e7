// Go's net: one goroutine and one buffer per connection, on one processor. Go
// itself sets TCP_NODELAY, uses net.core.somaxconn as the backlog and raises
// the descriptor limit. io.Copy would splice through a kernel pipe, while every
// other peer reads into a buffer.
//
//	go PORT BUFFER_SIZE
package main

import (
	"fmt"
	"log"
	"net"
	"os"
	"runtime"
	"strconv"
)

func echo(connection net.Conn, bufferSize int) {
	defer connection.Close()
	buffer := make([]byte, bufferSize)
	for {
		n, err := connection.Read(buffer)
		if err != nil {
			return
		}
		if _, err := connection.Write(buffer[:n]); err != nil {
			return
		}
	}
}

func main() {
	bufferSize := 0
	if len(os.Args) == 3 {
		bufferSize, _ = strconv.Atoi(os.Args[2])
	}
	if bufferSize <= 0 {
		fmt.Fprintf(os.Stderr, "usage: %s PORT BUFFER_SIZE\n", os.Args[0])
		os.Exit(2)
	}
	runtime.GOMAXPROCS(1)
	listener, err := net.Listen("tcp4", "127.0.0.1:"+os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	for {
		connection, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go echo(connection, bufferSize)
	}
}
