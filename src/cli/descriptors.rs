//! The descriptor limit of this process.

/// Raises the soft descriptor limit to the hard one, and returns it if it can be read. Calls `warn` if it cannot be raised.
pub(super) fn raise_limit(warn: impl FnOnce(&str)) -> Option<u64> {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) => Some(limit),
        Err(error) => {
            let limit = rlimit::Resource::NOFILE.get().ok().map(|(soft, _)| soft);
            let stays = limit.map_or(String::new(), |limit| format!("; it stays at {limit}"));
            warn(&format!("cannot raise the descriptor limit: {error}{stays}"));
            limit
        }
    }
}

/// Returns the number of open descriptors, if `/proc` can be read. One that is inherited from above `limit` takes no place below it.
#[cfg(feature = "load")]
pub(super) fn count_open(limit: u64) -> Option<u64> {
    let names = std::fs::read_dir("/proc/self/fd").ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let below = names.filter(|name| name.parse::<u64>().is_ok_and(|descriptor| descriptor < limit));
    // One of them is the directory's own.
    Some((below.count() as u64).saturating_sub(1))
}
