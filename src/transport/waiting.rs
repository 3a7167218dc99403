//! Tasks that wait for the same thing.

use std::task::Waker;

/// New tasks that are not worth asking the others whether they still wait.
const FEW: usize = 32;

/// Wakers, each task's once. They are all woken together: who finds that there is not enough for all waits again.
///
/// Nobody says that a task waits no longer. So that those which are gone do not pile up, all are woken when most have come
/// since the last time: who still waits says so again.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    wakers: Vec<Waker>,
    /// Tasks that came since the last time, and had not been asked then.
    new: usize,
    /// Who was asked and has not answered, by the wakers' addresses. One that is there for another task by now is
    /// taken for an answer, which only delays the next time.
    asked: Vec<usize>,
}

impl Waiting {
    /// Adds a task, unless it waits already. Returns those that are to say whether they do: to be woken when locks are
    /// released.
    #[must_use]
    pub(crate) fn add(&mut self, waker: &Waker) -> Vec<Waker> {
        if self.wakers.iter().any(|one| one.will_wake(waker)) {
            return Vec::new();
        }
        let new = address(waker);
        if let Some(at) = self.asked.iter().position(|one| *one == new) {
            self.asked.swap_remove(at);
        } else {
            self.new += 1;
        }
        let mut old = Vec::new();
        if self.new > FEW.max(self.wakers.len() / 2) {
            self.new = 0;
            self.asked.clear();
            self.asked.extend(self.wakers.iter().map(address));
            old = std::mem::take(&mut self.wakers);
        }
        self.wakers.push(waker.clone());
        old
    }

    /// Hands out all of them. What the list has allocated it keeps.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Waker> + '_ {
        self.new = 0;
        self.asked.clear();
        self.wakers.drain(..)
    }
}

fn address(waker: &Waker) -> usize {
    waker.data().addr()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Task(AtomicUsize);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl Task {
        fn woken(&self) -> usize {
            self.0.swap(0, Ordering::SeqCst)
        }
    }

    #[test]
    fn those_that_went_are_forgotten_and_those_that_stay_are_rarely_asked() {
        for staying in [0, 1, 20, 500] {
            let mut waiting = Waiting::default();
            let tasks: Vec<Arc<Task>> = (0..staying).map(|_| Arc::default()).collect();
            let wakers: Vec<Waker> = tasks.iter().cloned().map(Waker::from).collect();
            let mut asked = 0;
            let mut poll_all = |waiting: &mut Waiting| {
                for (task, waker) in tasks.iter().zip(&wakers) {
                    let woken = task.woken();
                    asked += woken;
                    if woken > 0 {
                        waiting.add(waker).into_iter().for_each(Waker::wake);
                    }
                }
            };
            for waker in &wakers {
                waiting.add(waker).into_iter().for_each(Waker::wake);
                poll_all(&mut waiting);
            }
            const WENT: usize = 20_000;
            // Kept, so that each has an address of its own.
            let went: Vec<Arc<Task>> = (0..WENT).map(|_| Arc::default()).collect();
            for task in &went {
                let waker = Waker::from(task.clone());
                waiting.add(&waker).into_iter().for_each(Waker::wake);
                poll_all(&mut waiting);
                let most = 2 * staying + 4 * FEW;
                assert!(waiting.wakers.len() <= most, "{}", waiting.wakers.len());
            }
            assert!(asked <= 4 * (WENT + staying), "{asked} for {staying}");
            // None of those that stay was lost.
            assert!(tasks.iter().all(|task| task.woken() == 0));
            waiting.drain().for_each(Waker::wake);
            assert!(tasks.iter().all(|task| task.woken() == 1));
        }
    }

    #[test]
    fn few_are_never_asked() {
        let mut waiting = Waiting::default();
        let tasks: [Arc<Task>; FEW] = std::array::from_fn(|_| Arc::default());
        for _ in 0..3 {
            for task in &tasks {
                let waker = Waker::from(task.clone());
                for _ in 0..2 {
                    assert!(waiting.add(&waker).is_empty());
                }
            }
            assert_eq!(waiting.drain().count(), FEW);
        }
    }
}
