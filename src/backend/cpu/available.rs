//! The memory of this machine that a process can use: what the system has, reduced by control groups and by a limit of
//! address space.

use std::path::{Path, PathBuf};

use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use crate::input;

/// Sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// The total memory that exists, or that is allowed.
    pub all: u64,
    /// The memory that is available now.
    pub free: u64,
}

impl Memory {
    fn at_most(self, other: Self) -> Self {
        Self { all: self.all.min(other.all), free: self.free.min(other.free) }
    }
}

/// The memory that this process can use.
pub fn memory() -> Memory {
    let what = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(what).map_or(Memory { all: 0, free: 0 }, |system| Memory {
        all: system.total_memory(),
        free: system.available_memory(),
    });
    let groups = input::text(Path::new("/proc/self/cgroup")).unwrap_or_default();
    limits(Path::new("/sys/fs/cgroup"), &groups).chain(address_space()).fold(system, Memory::at_most)
}

/// The memory that a limit of address space (`ulimit -v`) leaves; `None` without one. Beyond it, small allocations end
/// the process.
fn address_space() -> Option<Memory> {
    let all = address_space_limit()?;
    let status = input::text(Path::new("/proc/self/status")).unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmSize:")?.trim().strip_suffix(" kB")?.parse().ok());
    Some(Memory { all, free: all.saturating_sub(1024 * kib.unwrap_or(0u64)) })
}

/// The limit of this process's address space, in bytes.
pub fn address_space_limit() -> Option<u64> {
    #[cfg(unix)]
    return rustix::process::getrlimit(rustix::process::Resource::As).current;
    #[cfg(not(unix))]
    None
}

/// The memory that each control group of a process allows: its own group and all its ancestors. `groups` is the text of
/// `/proc/self/cgroup`, and `root` is where the groups are mounted.
///
/// In a container the text may name groups that are only visible outside of it; the container's own group is then the
/// root.
fn limits(root: &Path, groups: &str) -> impl Iterator<Item = Memory> {
    groups.lines().flat_map(|line| folders(root, line)).filter_map(|folder| allowed(&folder))
}

/// The folders of the groups in one line, `hierarchy:controllers:path`, if they limit memory.
fn folders(root: &Path, line: &str) -> Vec<PathBuf> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { return Vec::new() };
    let mounts: &[&str] = match controllers {
        // Version 2, alone or beside version 1.
        "" => &["", "unified"],
        controllers if controllers.split(',').any(|name| name == "memory") => &["memory"],
        _ => return Vec::new(),
    };
    let path = Path::new(path.trim_start_matches('/'));
    // A path that leads up is of a namespace that this process is not in.
    let path = if path.components().all(|part| matches!(part, std::path::Component::Normal(_))) {
        path
    } else {
        Path::new("")
    };
    let around = |mount: &&str| {
        let mount = root.join(mount);
        path.ancestors().map(|group| mount.join(group)).collect::<Vec<_>>()
    };
    mounts.iter().flat_map(around).collect()
}

/// The memory that one group allows: `None` without a limit.
fn allowed(folder: &Path) -> Option<Memory> {
    let number = |file: &str| input::text(&folder.join(file)).ok()?.trim().parse::<u64>().ok();
    // Version 2 has a limit at which processes end and one at which they are slowed down; "max" means no limit. Version
    // 1 has one limit, and an impossibly large number means no limit.
    let limits = ["memory.max", "memory.high", "memory.limit_in_bytes"];
    let all = limits.iter().filter_map(|file| number(file)).filter(|&limit| limit < 1 << 60).min()?;
    let used = number("memory.current").or_else(|| number("memory.usage_in_bytes")).unwrap_or(0);
    Some(Memory { all, free: all.saturating_sub(used.saturating_sub(cached(folder))) })
}

/// Bytes of files that a group has read and that can be dropped from the cache, for example a checkpoint: they count as
/// used. Files that exist only in memory (tmpfs) are not included.
fn cached(folder: &Path) -> u64 {
    let stat = input::text(&folder.join("memory.stat")).unwrap_or_default();
    let field = |name: &str| {
        let value =
            stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse::<u64>().ok());
        value.unwrap_or(0)
    };
    // Version 1 has the sums over descendant groups under another name.
    let both = |prefix: &str| field(&format!("{prefix}inactive_file")) + field(&format!("{prefix}active_file"));
    both("total_").max(both(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// The smallest of all limits in a folder of control groups that has these files.
    fn found(groups: &str, files: &[(&str, &str)]) -> Option<(u64, u64)> {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        limits(root.path(), groups).reduce(Memory::at_most).map(|memory| (memory.all / MIB, memory.free / MIB))
    }

    #[test]
    fn a_nested_group_of_version_2_is_limited_by_every_group_around_it() {
        let slurm = "0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_0\n";
        let job = "system.slice/slurmstepd.scope/job_7";
        let max = format!("{job}/memory.max");
        // Slurm limits the job, a few groups above the process's own.
        let own = format!("{job}/step_0/user/task_0/memory.max");
        assert_eq!(found(slurm, &[(&own, "max\n"), (&max, "4294967296\n")]), Some((4096, 4096)));
        // The smallest limit of all ancestors counts, and the free memory may be less in another group.
        let user = format!("{job}/step_0/user/memory.max");
        let used = format!("{job}/memory.current");
        assert_eq!(
            found(slurm, &[(&own, "max\n"), (&user, "2147483648"), (&max, "4294967296\n"), (&used, "3221225472\n")]),
            Some((2048, 1024))
        );
        // systemd's MemoryHigh slows processes down before MemoryMax ends them.
        let unit = "0::/user.slice/run-1.service";
        let files =
            [("user.slice/run-1.service/memory.max", "max"), ("user.slice/run-1.service/memory.high", "1073741824")];
        assert_eq!(found(unit, &files), Some((1024, 1024)));
        // A sibling group has no effect.
        assert_eq!(found(unit, &[("user.slice/run-2.service/memory.max", "1048576")]), None);
        assert_eq!(found(unit, &[]), None);
        assert_eq!(found("", &[("memory.max", "1048576")]), None);
    }

    #[test]
    fn files_that_were_read_do_not_count_as_used_and_files_in_memory_do() {
        let stat =
            "anon 104857600\nfile 2147483648\nshmem 536870912\ninactive_file 1073741824\nactive_file 536870912\n";
        let files = [("memory.max", "4294967296"), ("memory.current", "2252341248"), ("memory.stat", stat)];
        assert_eq!(found("0::/", &files), Some((4096, 4096 - 2148 + 1536)));
        // More is cached than used, as both change while they are read.
        let files = [("memory.max", "4294967296"), ("memory.current", "1048576"), ("memory.stat", stat)];
        assert_eq!(found("0::/", &files), Some((4096, 4096)));
        // More is used than allowed.
        let files = [("memory.max", "1048576"), ("memory.current", "2097152")];
        assert_eq!(found("0::/", &files), Some((1, 0)));
    }

    #[test]
    fn groups_of_version_1_limit_memory_too() {
        let groups = "12:pids:/docker/abc\n11:cpuset,memory:/docker/abc\n1:name=systemd:/docker/abc\n0::/docker/abc\n";
        let none = "9223372036854771712\n";
        assert_eq!(found(groups, &[("memory/docker/abc/memory.limit_in_bytes", none)]), None);
        let stat = "inactive_file 0\nactive_file 0\ntotal_inactive_file 104857600\ntotal_active_file 104857600\n";
        let of = |folder: &str| {
            let path = |file: &str| format!("memory{folder}/{file}");
            let files = [
                (path("memory.limit_in_bytes"), "1073741824\n"),
                (path("memory.usage_in_bytes"), "524288000\n"),
                (path("memory.stat"), stat),
            ];
            found(groups, &files.each_ref().map(|(path, text)| (path.as_str(), *text)))
        };
        assert_eq!(of("/docker/abc"), Some((1024, 724)));
        // From inside the container, its group is the root.
        assert_eq!(of(""), Some((1024, 724)));
        // Version 2 beside version 1, without limits of its own.
        assert_eq!(found(groups, &[("unified/docker/abc/memory.max", "1048576")]), Some((1, 1)));
        // A namespace may show a path that leads upwards: only the root can be read then.
        assert_eq!(found("0::/../../x", &[("memory.max", "1048576")]), Some((1, 1)));
    }

    #[test]
    fn this_machine_has_memory() {
        let memory = memory();
        assert!(memory.all > 64 * MIB && memory.free <= memory.all && memory.free > 0, "{memory:?}");
    }
}
