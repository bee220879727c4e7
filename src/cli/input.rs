//! Reading standard input, whatever its mode.

use std::io::{self, Read};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Standard input. Waits where it is non-blocking, as a terminal is that another program shares.
pub(super) struct Input;

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let stdin = io::stdin();
        loop {
            match nix::unistd::read(stdin.as_fd(), buffer).map_err(io::Error::from) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // An error of the descriptor, or of an interrupted wait, is that of the next read.
                    let _ = poll(&mut [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE);
                }
                read => return read,
            }
        }
    }
}
