//! This program and this machine: features, libraries, device nodes, limits.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::report::{Mark, Report};
use crate::units;

/// Registered memory counts as locked; a busy connection has some MiB, and a server many connections.
const ENOUGH_LOCKED: u64 = 256 << 20;

const NODES: &str = "/dev/infiniband";

pub(crate) fn examine(report: &mut Report) {
    report.section("This program and machine");
    program(report);
    libraries(report);
    nodes(report);
    locked_memory(report);
}

fn program(report: &mut Report) {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = env!("CARGO_PKG_VERSION");
    let machine = std::env::consts::ARCH;
    report.fact("program", format!("smbdirect {version}"));
    report.fact("system", format!("Linux {} {machine}", kernel.trim()));
    let features: Vec<&str> = [
        ("iwarp", cfg!(feature = "iwarp")),
        ("verbs", cfg!(feature = "verbs")),
    ]
    .into_iter()
    .filter_map(|(name, built)| built.then_some(name))
    .collect();
    let features = features.join(", ");
    if cfg!(feature = "verbs") {
        report.pass("features", features);
    } else {
        report.remark(
            Mark::Note,
            "features",
            format!("{features}; without verbs no RDMA device can be used"),
            "build with `--features verbs` (needs cmake and libclang)",
        );
    }
}

#[cfg(feature = "verbs")]
fn libraries(report: &mut Report) {
    if smbdirect::rdma::verbs::library_present() {
        report.pass("libraries", "librdmacm and libibverbs can be loaded");
    } else {
        report.remark(
            Mark::Fail,
            "libraries",
            "librdmacm or libibverbs cannot be loaded",
            "install rdma-core (Debian: apt install rdma-core ibverbs-providers)",
        );
    }
}

#[cfg(not(feature = "verbs"))]
fn libraries(_: &mut Report) {}

fn nodes(report: &mut Report) {
    let mut nodes: Vec<PathBuf> = fs::read_dir(NODES)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| name(path) == "rdma_cm" || name(path).starts_with("uverbs"))
        .collect();
    nodes.sort();
    if nodes.is_empty() {
        return report.remark(
            Mark::Note,
            "device nodes",
            format!("none in {NODES}: the kernel has no RDMA device"),
            "with a card: load its driver and `modprobe rdma_ucm`; without one: `rdma link add rxe0 type \
             rxe netdev INTERFACE` makes a software device",
        );
    }
    if !nodes.iter().any(|node| name(node) == "rdma_cm") {
        report.remark(
            Mark::Fail,
            "device nodes",
            format!("no {NODES}/rdma_cm: connections cannot be made"),
            "modprobe rdma_ucm",
        );
    }
    let mut usable = Vec::new();
    for node in &nodes {
        match OpenOptions::new().read(true).write(true).open(node) {
            Ok(_) => usable.push(name(node)),
            Err(error) => {
                let remedy = match error.kind() {
                    ErrorKind::PermissionDenied => {
                        "give this user access to it (often: group rdma, or a udev rule)"
                    }
                    _ => "",
                };
                let text = format!("{}: {error}", node.display());
                report.remark(Mark::Fail, "device nodes", text, remedy);
            }
        }
    }
    if !usable.is_empty() {
        let text = format!("may be opened in {NODES}: {}", usable.join(", "));
        report.pass("device nodes", text);
    }
}

fn name(path: &Path) -> &str {
    path.file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
}

fn locked_memory(report: &mut Report) {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let limit = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max locked memory"))
        .and_then(|line| line.split_whitespace().next());
    match limit.map(|limit| (limit, limit.parse::<u64>().ok())) {
        None => report.fact("locked memory", "the limit is not known"),
        Some((_, Some(limit))) if limit < ENOUGH_LOCKED => report.remark(
            Mark::Note,
            "locked memory",
            format!("at most {}; registered memory counts", units::bytes(limit)),
            "raise it with `ulimit -l`, LimitMEMLOCK= of the unit, or /etc/security/limits.d",
        ),
        Some((_, Some(limit))) => {
            report.pass("locked memory", format!("at most {}", units::bytes(limit)));
        }
        Some((word, None)) => report.pass("locked memory", word),
    }
}
