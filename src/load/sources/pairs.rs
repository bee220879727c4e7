//! Pairs of a source and a target address.

use std::net::{IpAddr, SocketAddr};

use super::ranges::distinct;

/// Returns the number of source/target pairs: IPv4 with IPv4, IPv6 with IPv6. Without sources, one for each target.
///
/// # Errors
///
/// - There is no target, or an address without a counterpart of its family.
pub fn count_pairs(sources: &[IpAddr], targets: &[SocketAddr]) -> Result<u32, String> {
    let groups = pair_up(sources, targets)?;
    Ok(groups.iter().map(Group::pairs).sum())
}

/// Sources and targets of one family.
#[derive(Debug)]
pub(super) struct Group {
    /// `None` if the system chooses.
    sources: Vec<Option<IpAddr>>,
    targets: Vec<SocketAddr>,
}

pub(super) fn pair_up(sources: &[IpAddr], targets: &[SocketAddr]) -> Result<Vec<Group>, String> {
    let targets = distinct(targets.iter().copied());
    if targets.is_empty() {
        return Err("there is no target".to_owned());
    }
    let groups = if sources.is_empty() {
        vec![Group { sources: vec![None], targets }]
    } else {
        let sources = distinct(sources.iter().copied());
        let of_family = |is_ipv4: bool| Group {
            sources: sources.iter().copied().filter(|source| source.is_ipv4() == is_ipv4).map(Some).collect(),
            targets: targets.iter().copied().filter(|target| target.is_ipv4() == is_ipv4).collect(),
        };
        vec![of_family(true), of_family(false)]
    };
    for group in &groups {
        match (&group.sources[..], &group.targets[..]) {
            ([Some(source), ..], []) => return Err(format!("no target has the address family of source {source}")),
            ([], [target, ..]) => return Err(format!("no source has the address family of target {target}")),
            _ => {}
        }
    }
    let pairs: usize = groups.iter().map(|group| group.sources.len() * group.targets.len()).sum();
    u32::try_from(pairs).map_err(|_| format!("{pairs} source/target pairs are too many"))?;
    Ok(groups)
}

impl Group {
    pub(super) fn pairs(&self) -> u32 {
        u32::try_from(self.sources.len() * self.targets.len()).unwrap_or(u32::MAX)
    }

    /// Returns pair `index`, diagonally, so that the first few connections use several sources and several targets.
    pub(super) fn pair(&self, index: u32) -> (Option<IpAddr>, SocketAddr) {
        let (row, column) = (index as usize / self.sources.len(), index as usize % self.sources.len());
        (self.sources[column], self.targets[(row + column) % self.targets.len()])
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn sources_pair_with_targets_of_their_family() {
        let sources = ["10.0.0.1", "10.0.0.2", "::2"].map(|text| text.parse().unwrap());
        let targets = ["10.0.1.1:5", "10.0.1.1:6", "[::1]:5"].map(|text| text.parse().unwrap());
        assert_eq!(count_pairs(&sources, &targets), Ok(5));
        assert_eq!(count_pairs(&sources[..1], &targets[..2]), Ok(2));
        assert_eq!(count_pairs(&[], &targets), Ok(3));
        assert_eq!(count_pairs(&[], &[targets[0], targets[0]]), Ok(1), "a repeated target adds no ports");
        assert!(count_pairs(&sources, &[]).is_err());
        assert_eq!(count_pairs(&sources, &targets[..2]).unwrap_err(), "no target has the address family of source ::2");
        assert!(count_pairs(&sources[..2], &targets).unwrap_err().ends_with("family of target [::1]:5"));
    }
}
