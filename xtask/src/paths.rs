//! Where things are: the repository, the build directory, the user's cache.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result};

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

/// A file below `xtask/guest`.
pub(crate) fn guest_file(name: &str) -> PathBuf {
    root().join("xtask/guest").join(name)
}

/// Cargo's build directory: this program was built into it.
pub(crate) fn target() -> PathBuf {
    let program = env::current_exe().unwrap_or_default();
    // target/PROFILE/xtask, and target/PROFILE/deps/xtask-HASH in unit tests.
    let profile = program
        .ancestors()
        .skip(1)
        .find(|path| !path.ends_with("deps"));
    profile
        .and_then(Path::parent)
        .map_or_else(|| root().join("target"), Path::to_owned)
}

/// `smbdirect` in the user's cache directory, created if needed.
pub(crate) fn cache() -> Result<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| env::home_dir().map(|home| home.join(".cache")))
        .ok_or_else(|| Error::new("no cache directory: set HOME or XDG_CACHE_HOME"))?;
    let cache = base.join("smbdirect");
    fs::create_dir_all(&cache).context(format!("cannot create {}", cache.display()))?;
    Ok(cache)
}

/// A program's path by `PATH`, with the directories of system programs that a user's `PATH` may
/// lack.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}
