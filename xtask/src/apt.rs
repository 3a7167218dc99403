//! Debian packages: the one list of what the commands need besides Rust, and how it is looked for
//! and installed.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::{Context, Error, Result};
use crate::{paths, process};

/// What a group of packages is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    /// Building the crate with the feature `verbs`.
    Verbs,
    /// Building the guest's kernel and running the guest.
    Guest,
    /// Peers and tools inside the guest.
    Interop,
}

/// The packages, each with what it is needed for.
pub(crate) const PACKAGES: &[(Group, &str)] = &[
    (Group::Verbs, "cmake"),
    (Group::Verbs, "libclang-dev"),
    (Group::Verbs, "g++"),
    // The kernel.
    (Group::Guest, "gcc"),
    (Group::Guest, "make"),
    (Group::Guest, "bc"),
    (Group::Guest, "flex"),
    (Group::Guest, "bison"),
    (Group::Guest, "libelf-dev"),
    (Group::Guest, "libssl-dev"),
    (Group::Guest, "xz-utils"),
    (Group::Guest, "lz4"),
    (Group::Guest, "kmod"),
    (Group::Guest, "cpio"),
    (Group::Guest, "busybox-static"),
    // The machine, and what session.sh and wire.sh call in it.
    (Group::Guest, "qemu-system-x86"),
    (Group::Guest, "iproute2"),
    (Group::Guest, "procps"),
    (Group::Guest, "rdma-core"),
    (Group::Guest, "ibverbs-providers"),
    (Group::Guest, "ibverbs-utils"),
    (Group::Guest, "librdmacm1"),
    // Peers, measuring, captures.
    (Group::Interop, "rdmacm-utils"),
    (Group::Interop, "perftest"),
    (Group::Interop, "ksmbd-tools"),
    (Group::Interop, "cifs-utils"),
    (Group::Interop, "tcpdump"),
    (Group::Interop, "tshark"),
    (Group::Interop, "fio"),
];

impl Group {
    pub(crate) const ALL: [Self; 3] = [Self::Verbs, Self::Guest, Self::Interop];
}

/// Packages of `groups` that are not installed.
pub(crate) fn missing(groups: &[Group]) -> Vec<&'static str> {
    let wanted: Vec<&str> = PACKAGES
        .iter()
        .filter(|(group, _)| groups.contains(group))
        .map(|&(_, name)| name)
        .collect();
    let installed = installed(&wanted);
    wanted
        .into_iter()
        .filter(|&name| !installed.contains(name))
        .collect()
}

/// Whether this is a machine whose packages apt manages.
pub(crate) fn available() -> bool {
    paths::program("apt-get").is_some() && paths::program("dpkg-query").is_some()
}

/// Whether packages can be installed: apt, and the right to use it.
pub(crate) fn may_install() -> bool {
    available() && is_root()
}

/// The command that installs `packages`, as a line for a person.
pub(crate) fn install_line(packages: &[&str]) -> String {
    format!(
        "apt-get install -y --no-install-recommends {}",
        packages.join(" ")
    )
}

/// What installing `packages` costs, in apt's words; `None` if apt cannot tell.
pub(crate) fn cost(packages: &[&str]) -> Option<String> {
    // Run without rights: nothing is locked, nothing installed, the answer to its question is no.
    let output = Command::new("apt-get")
        .args([
            "-o",
            "Debug::NoLocking=1",
            "--assume-no",
            "--no-install-recommends",
            "install",
        ])
        .args(packages)
        .env("LC_ALL", "C")
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("Need to get") || line.starts_with("After this operation"))
        .collect();
    (!lines.is_empty()).then(|| lines.join(" "))
}

/// The commands that install `packages`, the refreshing of old lists included.
pub(crate) fn install_commands(packages: &[&str]) -> Vec<Command> {
    let mut commands = Vec::new();
    if !lists_are_fresh() {
        let mut update = Command::new("apt-get");
        update.args(["update", "-q"]);
        commands.push(update);
    }
    let mut install = Command::new("apt-get");
    install
        .args(["install", "-y", "-q", "--no-install-recommends"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive");
    commands.push(install);
    commands
}

/// The version that apt would install; `None` if apt's lists do not know the package.
pub(crate) fn candidate(package: &str) -> Option<String> {
    let text = process::output(
        Command::new("apt-cache")
            .args(["policy", package])
            .env("LC_ALL", "C"),
    )?;
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate:"))?;
    Some(line.trim().to_owned()).filter(|version| version != "(none)")
}

/// Downloads `package` at `version` into `directory` without installing it, and gives the file's
/// path.
pub(crate) fn download(
    package: &str,
    version: &str,
    directory: &Path,
) -> Result<std::path::PathBuf> {
    let status = Command::new("apt-get")
        .args([
            "-q",
            "-o",
            "APT::Sandbox::User=root",
            "download",
            &format!("{package}={version}"),
        ])
        .current_dir(directory)
        .stdout(Stdio::null())
        .status()
        .context("cannot run apt-get")?;
    let prefix = format!("{package}_");
    let found = fs::read_dir(directory)
        .context(format!("cannot read {}", directory.display()))?
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    match found {
        Some(entry) if status.success() => Ok(entry.path()),
        _ => Err(Error::new(format!(
            "apt-get download {package} failed ({status})"
        ))),
    }
}

/// Whether apt has lists of packages, none older than a day.
fn lists_are_fresh() -> bool {
    let Ok(entries) = fs::read_dir("/var/lib/apt/lists") else {
        return false;
    };
    let lists = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().contains("Packages"));
    // A list keeps the time of its making at the archive; that of its directory is that of the last
    // update.
    let age = fs::metadata("/var/lib/apt/lists/partial").and_then(|metadata| metadata.modified());
    let fresh = age.is_ok_and(|time| time.elapsed().is_ok_and(|age| age.as_secs() < 86_400));
    fresh && lists.count() > 0
}

/// A package version as part of a file name.
pub(crate) fn file_name(version: &str) -> String {
    version.replace(
        |c: char| !c.is_ascii_alphanumeric() && !".-~+".contains(c),
        "_",
    )
}

fn installed(packages: &[&str]) -> HashSet<String> {
    // dpkg-query fails if one of them is unknown, and still tells of the others.
    let output = Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Abbrev} ${Package}\n"])
        .args(packages)
        .output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.unwrap_or_default()
        .lines()
        .filter_map(|line| line.strip_prefix("ii "))
        .map(|name| name.trim().to_owned())
        .collect()
}

/// Whether this process may do everything, from its effective user id in `/proc`.
fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    uids.and_then(|ids| ids.split_whitespace().nth(1)) == Some("0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_become_file_names() {
        assert_eq!(file_name("6.12.117-1~deb12u1"), "6.12.117-1~deb12u1");
        assert_eq!(file_name("1:2/3"), "1_2_3");
    }

    #[test]
    fn no_package_is_listed_twice() {
        let names: HashSet<&str> = PACKAGES.iter().map(|&(_, name)| name).collect();
        assert_eq!(names.len(), PACKAGES.len());
    }
}
