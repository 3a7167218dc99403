//! Work that may block, off the reactor's lock: making queue pairs and domains, and registering memory.
//!
//! One thread does the work of a reactor, in order. It begins with the first job and ends with the last one, so that
//! a reactor at rest has none. Where time is virtual there is no thread: whoever drives the reactor does the work
//! between two passes, so that the same calls give the same events.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::numa::Node;
use crate::rdma::{RdmaError, RdmaOperation};

/// Jobs that may wait. A connection has two at most, so that these are many connections that begin at a time.
const MOST: usize = 4096;

/// What is to be done. It reports its result itself.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

/// Does what may block.
#[derive(Clone)]
pub(crate) struct Helper {
    queue: Arc<Mutex<Queue>>,
    name: Arc<str>,
    node: Option<Arc<Node>>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// The thread that works on them is there.
    working: bool,
    /// There is none: whoever drives does the work.
    driven: bool,
    /// Nobody does the work until a test says so.
    #[cfg(test)]
    held: bool,
}

impl Helper {
    /// With a thread of this name on this node, or without one if it is `driven`.
    pub(crate) fn new(name: &str, node: Option<Node>, driven: bool) -> Self {
        let queue = Queue {
            driven,
            ..Queue::default()
        };
        Self {
            queue: Arc::new(Mutex::new(queue)),
            name: name.into(),
            node: node.map(Arc::new),
        }
    }

    /// Leaves work to the thread.
    ///
    /// # Errors
    /// Too much waits already, or the system has no threads left. The job was dropped.
    pub(crate) fn submit(&self, job: Job) -> Result<(), RdmaError> {
        let mut queue = self.queue();
        if queue.jobs.len() >= MOST {
            return Err(RdmaError::Busy(RdmaOperation::AllocateMemory));
        }
        if !queue.working && !queue.driven {
            let helper = self.clone();
            thread::Builder::new()
                .name(self.name.to_string())
                .spawn(move || helper.work())
                .map_err(|error| RdmaError::os(RdmaOperation::AllocateMemory, &error))?;
            queue.working = true;
        }
        queue.jobs.push_back(job);
        Ok(())
    }

    /// Does what waits, on this thread, if that is the driver's business. Whether there was something.
    pub(crate) fn drive(&self) -> bool {
        let mut any = false;
        while let Some(job) = self.next_driven() {
            job();
            any = true;
        }
        any
    }

    fn next_driven(&self) -> Option<Job> {
        let mut queue = self.queue();
        #[cfg(test)]
        if queue.held {
            return None;
        }
        if !queue.driven {
            return None;
        }
        queue.jobs.pop_front()
    }

    /// Lets the calling thread, one of the reactor's, run where they shall.
    pub(crate) fn place_this_thread(&self) {
        if let Some(node) = &self.node {
            node.bind_this_thread();
        }
    }

    /// The thread.
    fn work(&self) {
        self.place_this_thread();
        loop {
            let mut queue = self.queue();
            let Some(job) = queue.jobs.pop_front() else {
                // Whoever comes next finds that out under the lock, and begins another one.
                queue.working = false;
                return;
            };
            drop(queue);
            job();
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // The state is valid at every moment, so a panic elsewhere does not spoil it.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What tests need to choose the moment.
#[cfg(test)]
impl Helper {
    /// Whether jobs wait until [`Helper::step`].
    pub(crate) fn hold(&self, held: bool) {
        self.queue().held = held;
    }

    /// How many jobs wait.
    pub(crate) fn waiting(&self) -> usize {
        self.queue().jobs.len()
    }

    /// Does the first job that waits.
    pub(crate) fn step(&self) {
        let job = self.queue().jobs.pop_front();
        job.expect("a job")();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn one_thread_works_in_order_and_ends_with_the_work() {
        let helper = Helper::new("test", None, false);
        for _ in 0..3 {
            let (sender, results) = mpsc::channel();
            for n in 0..20 {
                let sender = sender.clone();
                let job = move || sender.send((n, thread::current().id())).unwrap();
                helper.submit(Box::new(job)).unwrap();
            }
            let seen: Vec<_> = (0..20)
                .map(|_| results.recv_timeout(LONG).unwrap())
                .collect();
            assert!(seen.iter().map(|(n, _)| *n).eq(0..20));
            assert!(seen.iter().all(|(_, id)| *id != thread::current().id()));
            while helper.queue().working {
                thread::yield_now();
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_and_dropped() {
        let helper = Helper::new("test", None, true);
        let counted = Arc::new(());
        for _ in 0..MOST {
            let counted = counted.clone();
            helper.submit(Box::new(move || drop(counted))).unwrap();
        }
        let late = counted.clone();
        let refused = helper.submit(Box::new(move || drop(late)));
        assert!(matches!(refused, Err(RdmaError::Busy(_))));
        assert_eq!(Arc::strong_count(&counted), MOST + 1);
        assert!(helper.drive() && !helper.drive());
        assert_eq!(Arc::strong_count(&counted), 1);
    }
}
