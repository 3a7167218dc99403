//! The descriptor a reactor sleeps on: an epoll of the provider's descriptor, an eventfd and a timerfd.

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, Ordering};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// The longest sleep.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// What became readable.
const WAKE: u64 = 0;
const TIMER: u64 = 1;
const PROVIDER: u64 = 2;

/// Sleeps for a reactor, and wakes it.
#[derive(Debug)]
pub(crate) struct Wait {
    epoll: OwnedFd,
    wake: OwnedFd,
    timer: OwnedFd,
    woken: Mark,
}

/// The eventfd was written and not yet read: writing again would change nothing.
#[derive(Debug, Default)]
struct Mark(AtomicBool);

impl Mark {
    /// Writes, unless a wake-up is on its way that nobody has taken back.
    fn set(&self, write: impl FnOnce()) {
        if !self.0.swap(true, Ordering::SeqCst) {
            write();
        }
    }

    /// Reads, and lets wakers write again. In this order: a waker in between writes nothing, and what it wakes for is
    /// there to be found. Were the mark taken off first, its writing would be read along with the earlier one, and the
    /// mark stay behind, with nothing to read and nobody to write ever again.
    fn clear(&self, read: impl FnOnce()) {
        read();
        self.0.swap(false, Ordering::SeqCst);
    }
}

impl Wait {
    /// Over the provider's descriptor; `None` for a provider whose time is virtual.
    pub(crate) fn new(provider: Option<BorrowedFd<'_>>) -> Result<Self, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        let watched = [
            (WAKE, Some(wake.as_fd())),
            (TIMER, Some(timer.as_fd())),
            (PROVIDER, provider),
        ];
        for (data, fd) in watched {
            if let Some(fd) = fd {
                let data = epoll::EventData::new_u64(data);
                epoll::add(&epoll, fd, data, epoll::EventFlags::IN)?;
            }
        }
        Ok(Self {
            epoll,
            wake,
            timer,
            woken: Mark::default(),
        })
    }

    /// Becomes readable when the reactor has something to do.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Ends the sleep of whoever sleeps on the descriptor.
    pub(crate) fn wake(&self) {
        // It can fail only with a full counter, and then it is readable anyway.
        self.woken.set(|| {
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        });
    }

    /// Takes the wake-up back. Look for work after it.
    pub(crate) fn acknowledge(&self) {
        self.woken.clear(|| self.read());
    }

    fn read(&self) {
        let mut count = [0; 8];
        // Nothing to read: the wake-up is still on its way, and the next sleep will be a short one.
        let _ = rustix::io::read(&self.wake, &mut count);
    }

    /// Lets the descriptor become readable after this time; `None`: no timer.
    pub(crate) fn set_timer(&self, after: Option<Duration>) {
        // Zero would disarm it.
        let value = after.map_or(
            Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            |after| timespec(after.max(Duration::from_nanos(1))),
        );
        let spec = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: value,
        };
        // Fails only for invalid times, which `timespec` never makes.
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec);
    }

    /// Sleeps until there is something to do or the time is over; `None`: no limit.
    pub(crate) fn sleep(&self, limit: Option<Duration>) {
        // Longer sleeps are not to be had everywhere.
        let limit = limit.map(|limit| timespec(limit.min(LONGEST)));
        let mut events = [const { MaybeUninit::<epoll::Event>::uninit() }; 4];
        // An interrupted sleep is a short one.
        if let Ok((events, _)) = epoll::wait(&self.epoll, &mut events[..], limit.as_ref())
            && events.iter().any(|event| event.data.u64() == WAKE)
        {
            self.acknowledge();
        }
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};

    fn is_readable(wait: &Wait) -> bool {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut fds = [PollFd::new(&wait.epoll, PollFlags::IN)];
        poll(&mut fds, Some(&now)).unwrap() == 1
    }

    #[test]
    fn waking_in_the_middle_of_an_acknowledgement_does_not_make_deaf() {
        let acts: [fn(&Wait); 2] = [
            |wait| {
                wait.wake();
                wait.read();
            },
            |wait| {
                wait.read();
                wait.wake();
            },
        ];
        for act in acts {
            let wait = Wait::new(None).unwrap();
            wait.wake();
            assert!(is_readable(&wait));
            wait.woken.clear(|| act(&wait));
            wait.wake();
            assert!(is_readable(&wait));
            wait.acknowledge();
            assert!(!is_readable(&wait));
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicUsize;
    use loom::thread;

    /// What two leave work for a third, who looks for it after having acknowledged: it is found, or announced.
    #[test]
    fn no_wake_up_is_lost() {
        let mut model = loom::model::Builder::new();
        // All interleavings take minutes.
        model.preemption_bound = Some(3);
        model.check(|| {
            let mark = Arc::new(Mark::default());
            let (eventfd, work) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let wakers: Vec<_> = (0..2)
                .map(|_| {
                    let (mark, eventfd, work) = (mark.clone(), eventfd.clone(), work.clone());
                    thread::spawn(move || {
                        work.fetch_add(1, Ordering::SeqCst);
                        mark.set(|| _ = eventfd.fetch_add(1, Ordering::SeqCst));
                    })
                })
                .collect();
            mark.clear(|| _ = eventfd.swap(0, Ordering::SeqCst));
            let found = work.load(Ordering::SeqCst);
            for waker in wakers {
                waker.join().unwrap();
            }
            assert!(found == 2 || eventfd.load(Ordering::SeqCst) > 0);
            mark.set(|| _ = eventfd.fetch_add(1, Ordering::SeqCst));
            assert!(eventfd.load(Ordering::SeqCst) > 0, "deaf");
        });
    }
}
