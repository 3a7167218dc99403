//! What in the kernel's messages fails a run.

/// Parts of lines that a sound kernel never prints.
const COMPLAINTS: &[&str] = &[
    "WARNING:",
    "BUG:",
    "Oops",
    "KASAN",
    "general protection",
    "Kernel panic",
    "rcu_sched self-detected",
];

/// Parts of such lines that are not ours to mend.
const EXCUSED: &[&str] = &[
    // The kernel's SMB client gives its receive queue no room for the marker that tells when it is
    // drained: with soft-RoCE an unmount warns if every receive is posted just then.
    "__ib_drain_rq",
];

/// The lines that tell of a warning, an oops or worse, each once.
pub(crate) fn complaints(messages: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for line in messages.lines().map(str::trim) {
        let is_one = |parts: &[&str]| parts.iter().any(|part| line.contains(part));
        if is_one(COMPLAINTS) && !is_one(EXCUSED) && !found.iter().any(|l| l == line) {
            found.push(line.to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_and_oopses_are_found_once() {
        let text = "[    1.0] rdma_rxe: loaded\n\
            [    2.0] WARNING: CPU: 1 PID: 7 at drivers/infiniband/sw/rxe/rxe_mr.c:12\r\n\
            [    2.0] WARNING: CPU: 1 PID: 7 at drivers/infiniband/sw/rxe/rxe_mr.c:12\n\
            [    2.5] WARNING: CPU: 1 PID: 182 at drivers/infiniband/core/verbs.c:2906 \
                __ib_drain_rq+0x1cb/0x1e0\n\
            [    3.0] Oops: int3: 0000 [#1] SMP\n\
            [    4.0] debug: all good\n";
        assert_eq!(complaints(text).len(), 2);
        assert!(complaints("").is_empty());
    }
}
