//! Memory that may be more than the system has.

use std::io;

/// Fails if `bytes` cannot be allocated now. `Vec` and `Box` have no error for that: they end the process.
pub(crate) fn check(bytes: usize) -> io::Result<()> {
    // Reserved and not written: no page of it becomes resident.
    let mut block = Vec::<u8>::new();
    block.try_reserve_exact(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
    // Freed as one page: after a large block glibc takes others from its heap, and returns less of that (mallopt(3), M_MMAP_THRESHOLD).
    #[cfg(target_env = "gnu")]
    block.shrink_to(1);
    Ok(())
}

#[cfg(all(test, target_env = "gnu", target_pointer_width = "64"))]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::hint::black_box;

    use super::*;

    /// A block of its own begins a page, behind two words of the allocator.
    #[test]
    #[cfg_attr(miri, ignore = "Miri has an allocator of its own")]
    fn after_a_check_glibc_still_gives_a_large_block_pages_of_its_own() {
        check(31 << 20).unwrap();
        let block = black_box(Vec::<u8>::with_capacity(30 << 20));
        assert_eq!(block.as_ptr().addr() % 4096, 2 * size_of::<usize>());
    }
}
