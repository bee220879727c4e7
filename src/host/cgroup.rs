//! The limits of the control groups that this process is in (cgroups(7)), of version 2 and of version 1.
//!
//! A limit of a group holds for everything below it, so each is looked for in the group of the process and in every group above. In a
//! container the path of the group may be that of the host, and is not there: then its root is the group.

use std::fs;
use std::path::{Path, PathBuf};

use super::procfs::field;

/// Memory limit that version 1 has for none: the largest number of pages (`PAGE_COUNTER_MAX`), less what rounding takes.
const UNLIMITED: u64 = 1 << 62;

/// A limit, and how much of it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) most: u64,
    pub(super) used: u64,
}

impl Usage {
    pub(super) fn left(self) -> u64 {
        self.most.saturating_sub(self.used)
    }
}

/// The groups of this process, by controller.
#[derive(Debug)]
pub(super) struct Groups {
    /// `/proc/self/cgroup`.
    text: String,
    /// `/sys/fs/cgroup`.
    root: PathBuf,
}

impl Groups {
    pub(super) fn new(text: String, root: PathBuf) -> Self {
        Self { text, root }
    }

    /// Returns the memory in bytes of the group that has the least left. Files that the system can drop are not used memory.
    pub(super) fn memory(&self) -> Option<Usage> {
        let usage = |group: &PathBuf| {
            let either = |names: [&str; 2]| names.iter().find_map(|name| number(&group.join(name)));
            let most = either(["memory.max", "memory.limit_in_bytes"]).filter(|&most| most < UNLIMITED)?;
            let used = either(["memory.current", "memory.usage_in_bytes"]).unwrap_or(0);
            let statistics = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
            let names = ["total_inactive_file ", "inactive_file "];
            let droppable = names.iter().find_map(|name| field(&statistics, name)).unwrap_or(0);
            Some(Usage { most, used: used.saturating_sub(droppable) })
        };
        self.groups("memory").iter().filter_map(usage).min_by_key(|usage| usage.left())
    }

    /// Returns the tasks of the group that has the fewest left. A thread is a task.
    pub(super) fn tasks(&self) -> Option<Usage> {
        let usage = |group: &PathBuf| {
            let most = number(&group.join("pids.max"))?;
            Some(Usage { most, used: number(&group.join("pids.current")).unwrap_or(0) })
        };
        self.groups("pids").iter().filter_map(usage).min_by_key(|usage| usage.left())
    }

    /// Returns how many cores the group with the smallest quota may use.
    pub(super) fn cores(&self) -> Option<f64> {
        let quota = |group: &Path| {
            let (quota, period) = if let Ok(both) = fs::read_to_string(group.join("cpu.max")) {
                // `max` is no quota.
                let (quota, period) = both.trim().split_once(' ')?;
                (quota.parse::<f64>().ok()?, period.parse::<f64>().ok()?)
            } else {
                // -1 is no quota.
                let read = |name| number(&group.join(name));
                #[expect(clippy::cast_precision_loss, reason = "microseconds of a period of at most a second")]
                (read("cpu.cfs_quota_us")? as f64, read("cpu.cfs_period_us")? as f64)
            };
            (quota > 0.0 && period > 0.0).then_some(quota / period)
        };
        self.groups("cpu").iter().filter_map(|group| quota(group)).reduce(f64::min)
    }

    /// Returns the directories of the group of a controller and of the groups above it, in both versions.
    fn groups(&self, controller: &str) -> Vec<PathBuf> {
        let mut directories = Vec::new();
        // Each line is ID:CONTROLLERS:PATH, and version 2 has no controllers.
        for line in self.text.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
            // systemd links each controller of `cpu,cpuacct` to it.
            let mounts: &[&str] = match controllers {
                "" => &["", "unified"],
                _ if controllers.split(',').any(|name| name == controller) => &[controller],
                _ => continue,
            };
            for mount in mounts.iter().map(|mount| self.root.join(mount)) {
                // A group outside the namespace is shown with `..` (cgroup_namespaces(7)).
                let path = if path.starts_with("/..") { "" } else { path.trim_start_matches('/') };
                // The last of the ancestors is the empty path, which is the root.
                let above = Path::new(path).ancestors().map(|path| mount.join(path));
                directories.extend(above.filter(|group| group.is_dir()));
            }
        }
        directories
    }
}

/// Reads a number. `max` is none.
fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::fake_proc::Files;
    use super::*;

    fn groups(text: &str, files: &[(&str, &str)]) -> (Files, Groups) {
        let root = Files::new();
        for (path, text) in files {
            root.write(path, text);
        }
        let groups = Groups::new(text.to_owned(), root.root().to_owned());
        (root, groups)
    }

    #[test]
    fn the_smallest_limit_of_all_groups_above_counts() {
        let (_files, groups) = groups(
            "0::/machine/server\n",
            &[
                ("machine/server/memory.max", "max\n"),
                ("machine/server/memory.current", "1000\n"),
                ("machine/server/cpu.max", "200000 100000\n"),
                ("machine/server/pids.max", "100\n"),
                ("machine/server/pids.current", "7\n"),
                ("machine/memory.max", "5000\n"),
                ("machine/memory.current", "4600\n"),
                ("machine/memory.stat", "anon 4000\nfile 900\ninactive_file 600\nactive_file 300\n"),
                ("machine/cpu.max", "20000 100000\n"),
                ("machine/pids.max", "max\n"),
                ("cpu.max", "max 100000\n"),
            ],
        );
        assert_eq!(groups.memory(), Some(Usage { most: 5000, used: 4000 }));
        assert_eq!(groups.tasks(), Some(Usage { most: 100, used: 7 }));
        assert_eq!(groups.cores(), Some(0.2));
    }

    #[test]
    fn the_root_is_the_group_of_a_container() {
        let limits = [("memory.max", "5000\n"), ("memory.current", "1\n"), ("cpu.max", "50000 100000\n")];
        for path in ["0::/\n", "0::/../../other\n", "0::/docker/0123456789ab\n"] {
            let (_files, groups) = groups(path, &limits);
            assert_eq!((groups.memory(), groups.cores()), (Some(Usage { most: 5000, used: 1 }), Some(0.5)), "{path}");
        }
    }

    #[test]
    fn version_1_has_a_hierarchy_for_each_controller() {
        let (_files, groups) = groups(
            "12:memory:/a\n5:cpu,cpuacct:/b\n3:pids:/c\n1:name=systemd:/d\n0::/e\n",
            &[
                ("memory/a/memory.limit_in_bytes", "4096\n"),
                ("memory/a/memory.usage_in_bytes", "196\n"),
                ("memory/a/memory.stat", "inactive_file 50\ntotal_inactive_file 100\n"),
                ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
                ("cpu/b/cpu.cfs_quota_us", "150000\n"),
                ("cpu/b/cpu.cfs_period_us", "100000\n"),
                ("cpu/cpu.cfs_quota_us", "-1\n"),
                ("cpu/cpu.cfs_period_us", "100000\n"),
                ("pids/c/pids.max", "10\n"),
            ],
        );
        assert_eq!(groups.memory(), Some(Usage { most: 4096, used: 96 }));
        assert_eq!(groups.tasks(), Some(Usage { most: 10, used: 0 }));
        assert_eq!(groups.cores(), Some(1.5));
    }

    #[test]
    fn without_a_limit_there_is_none() {
        for text in ["", "0::/\n", "none", "0:x"] {
            let (_files, groups) = groups(text, &[("memory.current", "1\n"), ("cpu.max", "max 100000\n")]);
            assert_eq!((groups.memory(), groups.tasks(), groups.cores()), (None, None, None), "{text:?}");
        }
    }
}
