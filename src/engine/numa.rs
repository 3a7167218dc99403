//! Where a reactor's threads run: on the processors of one NUMA node, if that is asked for. Memory that they register
//! lies there, too: the system takes it from the node of the thread that touches it first, or has it pinned.

use std::fs;

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::transport::{ApiMisuse, Error};

/// The processors of a node.
#[derive(Clone)]
pub(crate) struct Node {
    number: u32,
    processors: CpuSet,
}

impl Node {
    /// The node with this number.
    ///
    /// # Errors
    /// [`ApiMisuse::NoNumaNode`]: this machine has none of that number, or without processors.
    pub(crate) fn new(number: u32) -> Result<Self, Error> {
        fs::read_to_string(format!("/sys/devices/system/node/node{number}/cpulist"))
            .ok()
            .and_then(|list| processors(&list))
            .map(|processors| Self { number, processors })
            .ok_or(ApiMisuse::NoNumaNode { node: number }.into())
    }

    /// Lets the calling thread run on these processors only.
    pub(crate) fn bind_this_thread(&self) {
        if let Err(error) = sched_setaffinity(None, &self.processors) {
            tracing::warn!(node = self.number, %error, "a thread cannot be bound to the NUMA node: it runs anywhere");
        }
    }
}

/// What a list such as `0-3,8` means; `None` if it is empty or no such list.
fn processors(list: &str) -> Option<CpuSet> {
    let mut set = CpuSet::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        // A machine may have more than a set holds.
        for processor in first..=last.min(CpuSet::MAX_CPU - 1) {
            set.set(processor);
        }
    }
    (set.count() > 0).then_some(set)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::thread::sched_getaffinity;

    #[test]
    fn lists_are_what_the_kernel_writes() {
        let numbers = |list: &str| {
            let set = processors(list)?;
            Some((0..64).filter(|n| set.is_set(*n)).collect::<Vec<_>>())
        };
        assert_eq!(numbers("0-3,8\n"), Some(vec![0, 1, 2, 3, 8]));
        assert_eq!(numbers("5\n"), Some(vec![5]));
        assert_eq!(numbers("0-99999999"), Some((0..64).collect()));
        for bad in ["", "\n", "a", "3-", "4-2"] {
            assert_eq!(numbers(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_thread_is_bound_to_a_node_that_there_is() {
        let error = ApiMisuse::NoNumaNode { node: 4_000_000 };
        assert_eq!(Node::new(4_000_000).err(), Some(error.into()));
        let Ok(node) = Node::new(0) else {
            println!("not run: this machine does not tell its nodes");
            return;
        };
        std::thread::spawn(move || {
            let before = sched_getaffinity(None).unwrap();
            node.bind_this_thread();
            let now = sched_getaffinity(None).unwrap();
            let wanted = |n: &usize| node.processors.is_set(*n);
            assert!((0..64).filter(|n| now.is_set(*n)).all(|n| wanted(&n)));
            assert!((0..64).filter(wanted).any(|n| now.is_set(n)) || before == now);
        })
        .join()
        .unwrap();
    }
}
