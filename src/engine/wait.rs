//! The descriptor a reactor sleeps on: an epoll of the provider's descriptor, an eventfd and a timerfd.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

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
    /// The eventfd was written and not yet read: writing again would change nothing.
    woken: AtomicBool,
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
            woken: AtomicBool::new(false),
        })
    }

    /// Becomes readable when the reactor has something to do.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Ends the sleep of whoever sleeps on the descriptor.
    pub(crate) fn wake(&self) {
        if !self.woken.swap(true, Ordering::SeqCst) {
            // It can fail only with a full counter, and then it is readable anyway.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }

    /// Takes the wake-up back. Look for work after it.
    pub(crate) fn acknowledge(&self) {
        // The mark goes first: a waker that comes after it writes again.
        self.woken.store(false, Ordering::SeqCst);
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
        let limit = limit.map(timespec);
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
