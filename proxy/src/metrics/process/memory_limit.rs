//! How much memory this process may have before the kernel ends it: the lowest limit of the control groups it is in.
//!
//! Both versions of control groups. Read at each scrape, because a limit may be changed while the process runs.

use std::{fs, path::Path};

/// The first version writes a very large number where there is no limit.
const NO_LIMIT: u64 = 1 << 60;

/// `None`: there is no limit but the machine's.
pub(super) fn of_this_process() -> Option<u64> {
    lowest(&fs::read_to_string("/proc/self/cgroup").ok()?, Path::new("/sys/fs/cgroup"))
}

/// `groups`: lines of `ID:CONTROLLERS:PATH`; without controllers it is the second version.
fn lowest(groups: &str, root: &Path) -> Option<u64> {
    let of_line = |line: &str| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        if controllers.is_empty() {
            lowest_above(root, path, "memory.max")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            lowest_above(&root.join("memory"), path, "memory.limit_in_bytes")
        } else {
            None
        }
    };
    groups.lines().filter_map(of_line).min()
}

/// Of a group and all that it is in. In a container the path may be one of the machine's, but the container's own group is
/// then what is mounted.
fn lowest_above(mount: &Path, path: &str, file: &str) -> Option<u64> {
    let group = mount.join(path.trim_start_matches('/'));
    let limit = |group: &Path| {
        let text = fs::read_to_string(group.join(file)).ok()?;
        // Without a limit the second version has a word, which is no number.
        text.trim().parse().ok().filter(|limit: &u64| *limit < NO_LIMIT)
    };
    group.ancestors().take_while(|group| group.starts_with(mount)).filter_map(limit).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_limit_counts() {
        for (groups, files, limit) in [
            // A container: its group is all there is to see.
            ("0::/\n", &[("memory.max", "134217728\n")][..], Some(134_217_728)),
            ("0::/\n", &[("memory.max", "max\n")], None),
            ("0::/\n", &[], None),
            // A unit of systemd, in a slice with less.
            (
                "0::/app.slice/proxy.service\n",
                &[("app.slice/proxy.service/memory.max", "300"), ("app.slice/memory.max", "200")],
                Some(200),
            ),
            (
                "0::/app.slice/proxy.service\n",
                &[("app.slice/proxy.service/memory.max", "100"), ("app.slice/memory.max", "max")],
                Some(100),
            ),
            // The first version, also with the path of the machine in a container.
            (
                "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n1:name=systemd:/\n",
                &[
                    ("memory/docker/1/memory.limit_in_bytes", "64"),
                    ("memory/memory.limit_in_bytes", "9223372036854771712"),
                ],
                Some(64),
            ),
            ("4:memory:/docker/1\n", &[("memory/memory.limit_in_bytes", "64")], Some(64)),
            ("4:memory:/\n", &[("memory/memory.limit_in_bytes", "9223372036854771712")], None),
            // Both, as distributions had it for a while.
            ("4:memory:/a\n0::/a\n", &[("memory/a/memory.limit_in_bytes", "7")], Some(7)),
            // Nothing that the kernel would write.
            ("", &[("memory.max", "1")], None),
            ("0\n0:\n::\n", &[], None),
            ("0::/../../..\n", &[], None),
        ] {
            let root = tempfile::tempdir().unwrap();
            for (name, text) in files {
                let path = root.path().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            assert_eq!(lowest(groups, root.path()), limit, "{groups} {files:?}");
        }
    }
}
