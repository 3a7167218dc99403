//! The guest's kernel and initial RAM disk: built from Debian's kernel source, kept in the user's
//! cache directory.
//!
//! The kernel's place in the cache is named by what it is made of: package version and a hash of
//! the configuration; the RAM disk's by the hash of its parts. So a changed configuration or a
//! newer package gives a new build, and anything else none.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::cli::{Arguments, Outcome, unknown};
use crate::error::{Context, Error, Result};
use crate::process::End;
use crate::{apt, paths, process};

pub(crate) const HELP: &str = "
Usage: cargo xtask kernel

Builds the guest's kernel and initial RAM disk from Debian's kernel source, unless they are in the
cache, and prints where they are. `cargo xtask guest` and
`cargo xtask test` do the same when they need it.

Takes 6 to 12 minutes on two idle cores, 153 MB of download and 2.2 GB of disk while it builds; 9 MB
stay in the user's cache directory ($XDG_CACHE_HOME or ~/.cache, below it smbdirect/). Needs the
packages of `cargo xtask test`'s apt line, no root.";

const PACKAGE: &str = "linux-source-6.12";
/// Changes when the way of building changes so that results differ.
const RECIPE: u64 = 1;
/// Far more than a build takes on a busy machine with two cores.
const BUILD_LIMIT: Duration = Duration::from_secs(50 * 60);

/// What QEMU boots.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    pub(crate) image: PathBuf,
    pub(crate) initrd: PathBuf,
}

pub(crate) fn run(mut arguments: Arguments) -> Result<Outcome> {
    if let Some(word) = arguments.next() {
        return Err(unknown(&word));
    }
    let kernel = provide()?;
    println!("{}\n{}", kernel.image.display(), kernel.initrd.display());
    Ok(Outcome::Success)
}

/// The kernel and RAM disk out of the cache, built first if they are not there.
pub(crate) fn provide() -> Result<Kernel> {
    let directory = match cached()? {
        Some(directory) => directory,
        None => build()?,
    };
    let initrd = initrd(&directory)?;
    Ok(Kernel {
        image: directory.join("bzImage"),
        initrd,
    })
}

/// The directory of a kernel that is in the cache and up to date.
pub(crate) fn cached() -> Result<Option<PathBuf>> {
    let cache = paths::cache()?;
    let suffix = format!("-{:016x}", configuration_hash()?);
    if let Some(version) = apt::candidate(PACKAGE) {
        let directory = cache.join(format!("kernel-{}{suffix}", apt::file_name(&version)));
        return Ok(directory.join("bzImage").is_file().then_some(directory));
    }
    // Without apt's lists no version can be asked for: any kernel of this configuration will do.
    let entries = fs::read_dir(&cache).context(format!("cannot read {}", cache.display()))?;
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().ends_with(&suffix) && path.join("bzImage").is_file())
        .collect();
    found.sort();
    Ok(found.pop())
}

/// Builds the kernel and returns its directory in the cache.
fn build() -> Result<PathBuf> {
    let missing = apt::missing(&[apt::Group::Guest]);
    if !missing.is_empty() {
        let line = apt::install_line(&missing);
        return Err(Error::new(format!(
            "building the guest's kernel needs packages:\n  {line}"
        )));
    }
    let cache = paths::cache()?;
    let _lock = Lock::take(&cache.join("kernel-build.lock"))?;
    if let Some(directory) = cached()? {
        return Ok(directory);
    }
    let version = apt::candidate(PACKAGE).ok_or_else(|| {
        Error::new(format!(
            "apt knows no package {PACKAGE}: run apt-get update (Debian 12 and 13 have the package)"
        ))
    })?;
    let name = format!(
        "kernel-{}-{:016x}",
        apt::file_name(&version),
        configuration_hash()?
    );
    eprintln!(
        "guest kernel: {PACKAGE} {version}: building, 6 to 12 minutes (once; kept in {})",
        cache.display()
    );
    let started = Instant::now();
    let work = Work::new(cache.join("kernel-build"))?;
    compile(&version, &work.0)?;

    let directory = cache.join(name);
    let staged = work.0.join("result");
    let tree = work.0.join("objects");
    fs::create_dir_all(&staged).context("cannot create a directory in the cache")?;
    for (file, name) in [
        ("arch/x86/boot/bzImage", "bzImage"),
        (".config", "config"),
        ("include/config/kernel.release", "release"),
        ("modules.builtin", "modules.builtin"),
        ("modules.builtin.modinfo", "modules.builtin.modinfo"),
    ] {
        fs::copy(tree.join(file), staged.join(name)).context(format!("kernel build: {file}"))?;
    }
    // Renamed as a whole: the cache holds complete results only.
    fs::rename(&staged, &directory).context("cannot move the kernel into the cache")?;
    eprintln!(
        "guest kernel: built in {:.0} s",
        started.elapsed().as_secs_f64()
    );
    Ok(directory)
}

/// Unpacks the source and compiles it in `work`.
fn compile(version: &str, work: &Path) -> Result<()> {
    let deadline = Instant::now() + BUILD_LIMIT;
    let source = work.join("source");
    let objects = work.join("objects");
    for directory in [&source, &objects] {
        fs::create_dir_all(directory).context("cannot create a directory in the cache")?;
    }
    let log = work.with_file_name("kernel-build.log");
    fs::write(&log, "").context(format!("cannot write {}", log.display()))?;
    let step = |command: &mut Command| logged(command, &log, deadline);

    let package = apt::download(PACKAGE, version, work)?;
    step(Command::new("dpkg").arg("-x").arg(&package).arg(work))?;
    let archive = work.join(format!("usr/src/{PACKAGE}.tar.xz"));
    step(
        Command::new("tar")
            .args(["--strip-components=1", "-xJf"])
            .arg(&archive)
            .arg("-C")
            .arg(&source),
    )?;

    let configuration = paths::guest_file("kernel.config");
    step(
        Command::new("./scripts/kconfig/merge_config.sh")
            .args(["-n", "-O"])
            .arg(&objects)
            .arg(&configuration)
            .current_dir(&source),
    )?;
    check_configuration(&configuration, &objects.join(".config"))?;
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    let output = format!("O={}", objects.display());
    // Niced: the tests that need no guest run meanwhile.
    step(
        Command::new("nice")
            .args(["-n", "10", "make", &output, &format!("-j{jobs}"), "bzImage"])
            .current_dir(&source),
    )
}

/// A setting that the kernel's own dependencies dropped would only show as a strange failure in the
/// guest.
fn check_configuration(wanted: &Path, got: &Path) -> Result<()> {
    let read = |path: &Path| fs::read_to_string(path).context(path.display());
    let got = read(got)?;
    let dropped = dropped_settings(&read(wanted)?, &got);
    if dropped.is_empty() {
        return Ok(());
    }
    Err(Error::new(format!(
        "{}: this kernel does not take these settings: {}",
        wanted.display(),
        dropped.join(", ")
    )))
}

fn dropped_settings(wanted: &str, got: &str) -> Vec<String> {
    let has = |line: &str| got.lines().any(|other| other == line);
    wanted
        .lines()
        .filter(|line| line.starts_with("CONFIG_"))
        .filter(|line| match line.strip_suffix("=n") {
            Some(name) => has(&format!("{name}=y")) || has(&format!("{name}=m")),
            None => !has(line),
        })
        .map(str::to_owned)
        .collect()
}

/// The initial RAM disk for the kernel in `directory`, made if it is not there.
fn initrd(directory: &Path) -> Result<PathBuf> {
    let init = paths::guest_file("init.sh");
    let busybox = paths::program("busybox").ok_or_else(|| {
        let line = apt::install_line(&["busybox-static"]);
        Error::new(format!("the guest needs a static busybox:\n  {line}"))
    })?;
    let mut hash = Hash::new();
    hash.add(&RECIPE.to_le_bytes());
    for path in [&init, &busybox] {
        hash.add(&fs::read(path).context(path.display())?);
    }
    let initrd = directory.join(format!("initrd-{:016x}", hash.finish()));
    if initrd.is_file() {
        return Ok(initrd);
    }
    let release = fs::read_to_string(directory.join("release")).context("kernel release")?;
    let work = Work::new(directory.join(format!("initrd-work-{}", std::process::id())))?;
    let tree = work.0.join("tree");
    let modules = tree.join("lib/modules").join(release.trim());
    for path in [&tree.join("bin"), &tree.join("dev"), &modules] {
        fs::create_dir_all(path).context(path.display())?;
    }
    let copies = [
        (busybox, tree.join("bin/busybox")),
        (init, tree.join("init")),
        (
            directory.join("modules.builtin"),
            modules.join("modules.builtin"),
        ),
        (
            directory.join("modules.builtin.modinfo"),
            modules.join("modules.builtin.modinfo"),
        ),
    ];
    for (from, to) in copies {
        fs::copy(&from, &to).context(from.display())?;
    }
    fs::write(modules.join("modules.order"), "").context("modules.order")?;
    let depmod = paths::program("depmod").ok_or_else(|| {
        Error::new(format!(
            "depmod is missing:\n  {}",
            apt::install_line(&["kmod"])
        ))
    })?;
    let log = work.0.join("log");
    let deadline = Instant::now() + Duration::from_secs(60);
    logged(
        Command::new(depmod)
            .arg("-b")
            .arg(&tree)
            .arg(release.trim()),
        &log,
        deadline,
    )?;
    let pack = "chmod 755 init && find . | cpio -o -H newc --quiet -R 0:0 >../initrd";
    logged(
        Command::new("sh").args(["-c", pack]).current_dir(&tree),
        &log,
        deadline,
    )?;
    fs::rename(work.0.join("initrd"), &initrd)
        .context("cannot move the RAM disk into the cache")?;
    Ok(initrd)
}

/// Runs a step of a build with its output in `log`; on failure its last lines become the error.
fn logged(command: &mut Command, log: &Path, deadline: Instant) -> Result<()> {
    let mut file = fs::File::options()
        .create(true)
        .append(true)
        .open(log)
        .context(log.display())?;
    writeln!(file, "+ {command:?}").context(log.display())?;
    let errors = file.try_clone().context(log.display())?;
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(errors)
        .spawn()
        .context(format!("cannot run {name}"))?;
    let reason = match process::wait_until(&mut child, deadline)? {
        End::Exited(status) if status.success() => return Ok(()),
        End::Exited(status) => status.to_string(),
        End::TimedOut => "ran too long".to_owned(),
    };
    Err(Error::new(format!(
        "{name}: {reason}; {}:\n{}",
        log.display(),
        process::tail(log, 20)
    )))
}

/// Of the settings only: a comment builds no other kernel.
fn configuration_hash() -> Result<u64> {
    let path = paths::guest_file("kernel.config");
    let text = fs::read_to_string(&path).context(path.display())?;
    let mut hash = Hash::new();
    hash.add(&RECIPE.to_le_bytes());
    for setting in text.lines().filter(|line| line.starts_with("CONFIG_")) {
        hash.add(setting.as_bytes());
        hash.add(b"\n");
    }
    Ok(hash.finish())
}

/// FNV-1a: names cache entries alike on every machine and with every compiler. Nobody attacks these
/// names.
struct Hash(u64);

impl Hash {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A directory for intermediate results, new, and removed in the end.
struct Work(PathBuf);

impl Work {
    fn new(path: PathBuf) -> Result<Self> {
        // Left over from a build that was killed.
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).context(format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // A kernel's tree has 90,000 files: who waits for the result shall not wait for their end
        // as well.
        let trash = self
            .0
            .with_extension(format!("trash-{}", std::process::id()));
        let path = if fs::rename(&self.0, &trash).is_ok() {
            &trash
        } else {
            &self.0
        };
        let remove = Command::new("rm")
            .arg("-rf")
            .arg(path)
            .stdin(Stdio::null())
            .spawn();
        if remove.is_err() {
            let _ = fs::remove_dir_all(path);
        }
    }
}

/// One build at a time per cache: a file with the builder's process id.
struct Lock(PathBuf);

impl Lock {
    fn take(path: &Path) -> Result<Self> {
        let mut told = false;
        loop {
            match fs::File::create_new(path) {
                Ok(mut file) => {
                    write!(file, "{}", std::process::id()).context(path.display())?;
                    return Ok(Self(path.to_owned()));
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).context(path.display()),
            }
            let owner = fs::read_to_string(path).unwrap_or_default();
            let abandoned =
                owner.parse::<u32>().is_ok() && !Path::new("/proc").join(&owner).exists();
            if abandoned {
                let _ = fs::remove_file(path);
                continue;
            }
            if !told {
                eprintln!("guest kernel: process {owner} is building it; waiting");
                told = true;
            }
            thread::sleep(Duration::from_secs(1));
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv_1a() {
        let mut hash = Hash::new();
        hash.add(b"foobar");
        assert_eq!(hash.finish(), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn dropped_settings_are_named() {
        let wanted =
            "# CONFIG_X=y\nCONFIG_A=y\nCONFIG_B=n\nCONFIG_C=y\nCONFIG_D=n\nCONFIG_E=\"e\"\n";
        let got = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=m\nCONFIG_D=y\nCONFIG_E=\"e\"\n";
        assert_eq!(dropped_settings(wanted, got), ["CONFIG_C=y", "CONFIG_D=n"]);
    }
}
