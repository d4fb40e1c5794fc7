//! What a process's control groups keep it from: running (freezers) and making threads (pids).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The directories of the groups a process is in, one per hierarchy that is mounted here.
struct Groups(Vec<Group>);

struct Group {
    /// Controllers of a version 1 hierarchy; empty for version 2.
    controllers: Vec<String>,
    mount: PathBuf,
    dir: PathBuf,
    /// Name in the hierarchy, for people.
    name: String,
}

impl Groups {
    fn of(pid: i32) -> Self {
        let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        // What is mounted does not change in the life of a command.
        static MOUNTS: OnceLock<String> = OnceLock::new();
        let mounts = MOUNTS.get_or_init(|| fs::read_to_string("/proc/self/mountinfo").unwrap_or_default());
        Self(own.lines().filter_map(|line| group(line, mounts)).collect())
    }

    /// The group and its ancestors, nearest first, in the hierarchy of a controller.
    fn upwards(&self, controller: &str) -> impl Iterator<Item = (&Group, &Path)> {
        let has = move |g: &&Group| {
            g.controllers.iter().any(|c| c == controller)
                || g.controllers.is_empty() && g.dir.join(format!("{controller}.max")).exists()
        };
        self.0.iter().filter(has).flat_map(|group| {
            let inside = |dir: &&Path| dir.starts_with(&group.mount);
            group.dir.ancestors().take_while(inside).map(move |dir| (group, dir))
        })
    }
}

/// A line of `/proc/PID/cgroup` (`ID:CONTROLLERS:PATH`) and where that hierarchy is mounted.
fn group(line: &str, mounts: &str) -> Option<Group> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    let controllers: Vec<String> =
        controllers.split(',').filter(|c| !c.is_empty()).map(str::to_owned).collect();
    let (root, mount) = mounts.lines().find_map(|l| mounted(l, &controllers))?;
    let below = Path::new(path).strip_prefix(&root).ok()?;
    Some(Group { controllers, dir: mount.join(below), mount, name: path.to_owned() })
}

/// Root and mount point, if a line of `mountinfo` is about that hierarchy.
fn mounted(line: &str, controllers: &[String]) -> Option<(PathBuf, PathBuf)> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let place = (PathBuf::from(left.next()?), PathBuf::from(left.next()?));
    let mut right = right.split(' ');
    let (kind, options) = (right.next()?, right.nth(1).unwrap_or_default());
    let fits = match controllers.first() {
        None => kind == "cgroup2",
        Some(first) => kind == "cgroup" && options.split(',').any(|o| o == first),
    };
    fits.then_some(place)
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The frozen control group that a process is in, if it is.
#[must_use]
pub fn frozen(pid: i32) -> Option<String> {
    // Both versions include ancestors in what they say.
    let is_frozen = |group: &&Group| match group.controllers.as_slice() {
        [] => says(&group.dir.join("cgroup.events"), "frozen 1"),
        one if one.iter().any(|c| c == "freezer") => {
            says(&group.dir.join("freezer.state"), "FROZEN")
                || says(&group.dir.join("freezer.state"), "FREEZING")
        }
        _ => false,
    };
    Groups::of(pid).0.iter().find(is_frozen).map(|group| group.name.clone())
}

fn says(file: &Path, line: &str) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.lines().any(|l| l == line))
}

/// The control group that lets a process make no further thread, with its limit, if there is one.
#[must_use]
pub fn full(pid: i32) -> Option<(String, u64)> {
    Groups::of(pid).upwards("pids").find_map(|(group, dir)| {
        let (max, now) = (number(&dir.join("pids.max"))?, number(&dir.join("pids.current"))?);
        let name = dir.strip_prefix(&group.mount).unwrap_or(dir);
        (now >= max).then(|| (format!("/{}", name.display()), max))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
        36 25 0:31 / /sys/fs/cgroup/freezer rw,relatime shared:14 - cgroup cgroup rw,freezer\n\
        37 25 0:32 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        38 25 0:33 /box /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn a_group_is_found_below_its_mount() {
        let dir = |line: &str| group(line, MOUNTS).map(|g| g.dir);
        assert_eq!(dir("6:freezer:/a/b"), Some("/sys/fs/cgroup/freezer/a/b".into()));
        assert_eq!(dir("4:cpu,cpuacct:/"), Some("/sys/fs/cgroup/cpu,cpuacct".into()));
        assert_eq!(dir("0::/box/in:it"), Some("/sys/fs/cgroup/unified/in:it".into()));
        assert_eq!(dir("0::/elsewhere"), None, "outside of what is mounted");
        assert_eq!(dir("9:pids:/a"), None, "not mounted");
    }

    #[test]
    fn ancestors_end_at_the_mount() {
        let group = group("6:freezer:/a/b", MOUNTS).unwrap();
        let groups = Groups(vec![group]);
        let dirs: Vec<_> = groups.upwards("freezer").map(|(_, dir)| dir.display().to_string()).collect();
        let all = ["/sys/fs/cgroup/freezer/a/b", "/sys/fs/cgroup/freezer/a", "/sys/fs/cgroup/freezer"];
        assert_eq!(dirs, all);
    }
}
