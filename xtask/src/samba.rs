//! Samba for the guest, without installing it: Debian's `samba` and `ksmbd-tools` exclude each
//! other.
//!
//! The packages are unpacked into the user's cache directory. In the guest, a script lays them over
//! the root: `mount -t overlay -o lowerdir=$SAMBA/usr:/usr overlay /usr`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cli::{Arguments, Outcome, unknown};
use crate::error::{Context, Error, Result};
use crate::{apt, paths, process};

pub(crate) const HELP: &str = "
Usage: cargo xtask samba

Downloads Debian's package samba and what it needs (12 MB) and unpacks them into the user's cache
directory, unless they are there, and prints where. Nothing is installed. Tests in the guest whose
header says `# uses: samba` find that directory in $SAMBA.";

const PACKAGE: &str = "samba";

pub(crate) fn run(mut arguments: Arguments) -> Result<Outcome> {
    if let Some(word) = arguments.next() {
        return Err(unknown(&word));
    }
    println!("{}", provide()?.display());
    Ok(Outcome::Success)
}

/// The directory into which the packages are unpacked.
pub(crate) fn provide() -> Result<PathBuf> {
    let cache = paths::cache()?;
    let version = apt::candidate(PACKAGE)
        .ok_or_else(|| Error::new("apt knows no package samba: run apt-get update"))?;
    let directory = cache.join(format!("samba-{}", apt::file_name(&version)));
    if directory.is_dir() {
        return Ok(directory);
    }
    let work = cache.join(format!("samba-work-{}", std::process::id()));
    let unpacked = unpack(&work);
    let placed = unpacked.and_then(|root| {
        // Renamed as a whole: the cache holds complete results only.
        fs::rename(root, &directory).context("cannot move samba into the cache")
    });
    let _ = fs::remove_dir_all(&work);
    // Somebody else may have been faster.
    if directory.is_dir() {
        Ok(directory)
    } else {
        placed.map(|()| directory)
    }
}

/// Downloads and unpacks everything that an installation would add.
fn unpack(work: &Path) -> Result<PathBuf> {
    let root = work.join("root");
    fs::create_dir_all(&root).context(root.display())?;
    let mut simulate = Command::new("apt-get");
    simulate
        .args(["-s", "--no-install-recommends", "install", PACKAGE])
        .env("LC_ALL", "C");
    let plan = process::output(&mut simulate)
        .ok_or_else(|| Error::new("apt-get -s install samba failed: run apt-get update"))?;
    for (package, version) in additions(&plan) {
        let file = apt::download(package, version, work)?;
        let status = Command::new("dpkg")
            .arg("-x")
            .arg(&file)
            .arg(&root)
            .status();
        if !status.context("cannot run dpkg")?.success() {
            return Err(Error::new(format!("dpkg cannot unpack {}", file.display())));
        }
    }
    Ok(root)
}

/// Packages and versions in lines like `Inst samba (2:4.17 Debian:12 [amd64])`, also where an older
/// one is replaced: `Inst samba [2:4.16] (2:4.17 ...)`.
fn additions(plan: &str) -> Vec<(&str, &str)> {
    let additions = plan.lines().filter_map(|line| {
        let rest = line.strip_prefix("Inst ")?;
        let (package, rest) = rest.split_once(' ')?;
        Some((package, rest.split_once('(')?.1.split_whitespace().next()?))
    });
    additions.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_of_apt_is_understood() {
        let plan = "Remv ksmbd-tools [3.4.7-1]\n\
            Inst libtdb1 (1.4.8-2 Debian:12.15/oldstable [amd64])\n\
            Inst samba [2:4.16] (2:4.17.12+dfsg-0 Debian:12 [amd64])\n\
            Conf samba (2:4.17.12+dfsg-0 Debian:12 [amd64])\n";
        assert_eq!(
            additions(plan),
            [("libtdb1", "1.4.8-2"), ("samba", "2:4.17.12+dfsg-0")]
        );
    }
}
