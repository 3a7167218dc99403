//! The crate's examples: how they are built, and where their programs are.

use std::env;
use std::fs;
use std::path::PathBuf;

use crate::paths;

/// Cargo's words to build them: with the feature `verbs` wherever it can be built.
pub(crate) fn build_words() -> Vec<&'static str> {
    let mut words = vec!["build", "--release", "-p", "smbdirect", "--examples"];
    if verbs_buildable() {
        words.extend(["--features", "verbs"]);
    }
    words
}

/// Cargo's words to build the SMB client in `interop/`, which is a package of its own.
pub(crate) fn smb_client_words() -> Vec<String> {
    let mut words = vec!["build".to_owned(), "--release".to_owned()];
    words.extend(smb_client_place());
    words
}

/// Cargo's words that choose the package in `interop/`, and a build directory shared with this
/// workspace: most of what it depends on is there already.
pub(crate) fn smb_client_place() -> Vec<String> {
    let path = |path: PathBuf| path.to_string_lossy().into_owned();
    vec![
        "--locked".to_owned(),
        "--manifest-path".to_owned(),
        path(smb_client_manifest()),
        "--target-dir".to_owned(),
        path(paths::target()),
    ]
}

/// The manifest of the package in `interop/`.
pub(crate) fn smb_client_manifest() -> PathBuf {
    paths::root().join("interop/Cargo.toml")
}

/// The program of the package in `interop/`.
pub(crate) fn smb_client() -> PathBuf {
    paths::target().join("release/smb-client")
}

/// The program of one example.
pub(crate) fn program(name: &str) -> PathBuf {
    paths::target().join("release/examples").join(name)
}

/// All examples that are built, by name.
pub(crate) fn built() -> Vec<(String, PathBuf)> {
    let Ok(entries) = fs::read_dir(paths::root().join("examples")) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension().is_some_and(|e| e == "rs") || path.join("main.rs").is_file()
        })
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    // One whose required features are not there was not built.
    let all = names.into_iter().map(|name| (name.clone(), program(&name)));
    all.filter(|(_, program)| program.is_file()).collect()
}

/// Whether cmake and libclang are there, which the build of the feature `verbs` needs.
pub(crate) fn verbs_buildable() -> bool {
    paths::program("cmake").is_some() && (env::var_os("LIBCLANG_PATH").is_some() || libclang())
}

fn libclang() -> bool {
    let llvm = fs::read_dir("/usr/lib")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let llvm = llvm
        .filter(|path| path.to_string_lossy().contains("/llvm"))
        .map(|path| path.join("lib"));
    [
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
        "/usr/local/lib",
    ]
    .into_iter()
    .map(PathBuf::from)
    .chain(llvm)
    .filter_map(|directory| fs::read_dir(directory).ok())
    .flat_map(|entries| entries.flatten())
    .any(|entry| is_libclang(&entry.file_name().to_string_lossy()))
}

/// The names that clang-sys looks for; `libclang-cpp.so` is another library.
fn is_libclang(name: &str) -> bool {
    let number = |rest: &str| rest.starts_with(|c: char| c.is_ascii_digit());
    name.strip_prefix("libclang").is_some_and(|rest| {
        rest.starts_with(".so")
            || rest
                .strip_prefix('-')
                .is_some_and(|rest| number(rest) && rest.contains(".so"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libclang_is_told_from_its_neighbours() {
        assert!(is_libclang("libclang.so"));
        assert!(is_libclang("libclang-14.so.1"));
        assert!(!is_libclang("libclang-cpp.so.14"));
        assert!(!is_libclang("libclangBasic.a"));
    }
}
