//! A device that is taken away: `rdma link del`, a driver that is unloaded, a card that is pulled.
//!
//! Three may say so, and none does always. A driver that can take a device away from programs destroys what they have
//! on it and sends an async event (every call says EIO from then on). The connection manager tells each id. Where the
//! driver cannot (soft-RoCE, soft-iWARP), the kernel may say nothing to anybody who has the device open, and waits for
//! all to close it, while everything on it goes on working: then its entry in sysfs is gone, and the kernel's device
//! events (uevents) say when it is worth while to look.
//!
//! Whoever says it first, the provider does the same: every connection on the device ends with
//! [`RdmaError::DeviceRemoved`], listeners on it fail with that, and when the last connection is gone, all that was made
//! on the device is given back and the device closed, whoever still has memory that was registered there.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::event::epoll;

use super::conn::Conn;
use super::connector::drop_aside;
use super::context::look_for_devices;
use super::device::{Device, LazyQueue};
use super::provider::Verbs;
use crate::rdma::{ConnId, Event, ListenerId, LossReason, RdmaError, may_block};

/// The kernel's own device events, as multicast group; others are from udev.
const KERNEL_GROUP: u32 = 1;

/// Where the kernel announces that devices come and go.
pub(super) struct DeviceEvents(OwnedFd);

/// What the announcements since the last time say of RDMA devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Changes {
    pub(super) came: bool,
    pub(super) went: bool,
}

impl DeviceEvents {
    /// Needs no privileges. The kernel announces nothing to a network namespace of an unprivileged container.
    pub(super) fn open() -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked.
        let fd = unsafe {
            libc::socket(
                libc::AF_NETLINK,
                libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                libc::NETLINK_KOBJECT_UEVENT,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor of ours.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: a structure of numbers, for which all zeroes is valid.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = KERNEL_GROUP;
        // SAFETY: the address is valid for the call, and its length right.
        let bound = unsafe {
            libc::bind(
                fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_nl>() as libc::socklen_t,
            )
        };
        if bound != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(fd))
    }

    /// What there is to hear.
    pub(super) fn hear(&self) -> Changes {
        let mut changes = Changes::default();
        let mut message = [0; 2048];
        // More of them are heard the next time.
        for _ in 0..256 {
            match rustix::io::read(&self.0, &mut message) {
                Ok(0) | Err(rustix::io::Errno::AGAIN) => return changes,
                Ok(len) => changes.add(&message[..len]),
                Err(rustix::io::Errno::INTR) => {}
                // Some were lost: they may have been anything.
                Err(rustix::io::Errno::NOBUFS) => {
                    (changes.came, changes.went) = (true, true);
                }
                Err(_) => return changes,
            }
        }
        changes
    }
}

impl AsFd for DeviceEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Changes {
    /// Takes in an announcement: `ACTION@PATH`, and assignments, each with a zero byte at its end.
    fn add(&mut self, message: &[u8]) {
        let mut words = message.split(|byte| *byte == 0);
        let action = words.next().unwrap_or_default();
        if words.any(|word| word == b"SUBSYSTEM=infiniband_verbs") {
            self.came |= action.starts_with(b"add@");
            self.went |= action.starts_with(b"remove@");
        }
    }
}

impl Verbs {
    /// Devices may have come or gone.
    pub(super) fn device_changes(&mut self, now: Instant, out: &mut VecDeque<Event>) {
        let Some(events) = &self.device_events else {
            return;
        };
        let changes = events.hear();
        if changes.went {
            let gone = |place: &usize| self.devices[*place].is_removed();
            let gone: Vec<usize> = (0..self.devices.len()).filter(gone).collect();
            for place in gone {
                self.devices[place].set_removed();
                self.lose_device(place, now);
            }
            self.fail_listeners(out);
        }
        if changes.went || (changes.came && self.unclosed.load(Ordering::Acquire)) {
            self.close_removed();
        }
    }

    /// The connection manager says that a device is gone.
    pub(super) fn device_removed(&mut self, place: usize, now: Instant) {
        // Every id on it is told.
        if self.devices[place].set_removed() {
            self.lose_device(place, now);
            self.close_removed();
        }
    }

    /// A device is gone, or beyond repair: ends all that is on it.
    pub(super) fn lose_device(&mut self, place: usize, now: Instant) {
        let device = &mut self.devices[place];
        if std::mem::replace(&mut device.dead, true) {
            return;
        }
        tracing::warn!(device = device.capabilities.device, "the device is lost");
        self.losing = true;
        for index in 0..self.conns.len() as u32 {
            let on_it = |conn: &Conn| conn.device == Some(place);
            let slot = &self.conns[index as usize];
            if slot.content.as_ref().is_some_and(on_it) {
                let removed = LossReason::Failed(RdmaError::DeviceRemoved);
                self.lose(index, Some(removed), now);
            }
        }
    }

    /// Ends the listeners whose device is gone. Those of all addresses are on none.
    fn fail_listeners(&mut self, out: &mut VecDeque<Event>) {
        for index in 0..self.listeners.len() as u32 {
            let listener = self.listeners[index as usize].content.as_ref();
            if listener.is_some_and(|listener| listener.is_removed()) {
                self.fail_listener(index, out);
            }
        }
    }

    /// Ends a listener whose device is gone.
    pub(super) fn fail_listener(&mut self, index: u32, out: &mut VecDeque<Event>) {
        let slot = &mut self.listeners[index as usize];
        let listener = ListenerId {
            index,
            generation: slot.generation,
        };
        if let Some(gone) = slot.content.take() {
            slot.generation = slot.generation.wrapping_add(1);
            self.ids.remove(&gone.cm.key());
            out.push_back(Event::ListenerFailed {
                listener,
                error: RdmaError::DeviceRemoved,
            });
        }
    }

    /// Gives back what is left of lost devices on which no connection is left.
    pub(super) fn release_devices(&mut self) {
        if !self.losing {
            return;
        }
        self.losing = false;
        // Nobody may answer these any more, and destroying them may sleep.
        let devices = &self.devices;
        let given_up = self.parked.extract_if(.., |(_, conn)| {
            !conn.calling && conn.device.is_some_and(|device| devices[device].dead)
        });
        let given_up: Vec<(ConnId, Conn)> = given_up.collect();
        if !given_up.is_empty() {
            let queues = devices.iter().flat_map(Device::queues_kept);
            drop_aside((given_up, queues.collect::<Vec<LazyQueue>>()));
        }
        for place in 0..self.devices.len() {
            if !self.devices[place].dead || self.devices[place].open.is_none() {
                continue;
            }
            let on_it = |conn: &Conn| conn.device == Some(place);
            let used = (self.conns.iter().filter_map(|slot| slot.content.as_ref()))
                .chain(self.parked.iter().map(|(_, conn)| conn))
                .any(on_it);
            if used {
                self.losing = true;
                continue;
            }
            if let Some(remains) = self.devices[place].close() {
                let open = &remains.open;
                if let Some(key) = open.context.key() {
                    self.ids.remove(&key);
                }
                // Another port of the device may share the descriptor, and be lost with it; or have been before.
                let _ = epoll::delete(&self.epoll, open.channel.as_fd());
                let _ = epoll::delete(&self.epoll, open.context.async_fd());
                self.leave(remains);
            }
        }
    }

    /// Has librdmacm close removed devices, as soon as nobody has an id there.
    pub(super) fn close_removed(&mut self) {
        let unclosed = self.unclosed.clone();
        self.leave(Look { unclosed });
    }
}

/// Looks which devices there are when it is dropped, which may block.
struct Look {
    unclosed: Arc<AtomicBool>,
}

impl Drop for Look {
    fn drop(&mut self) {
        may_block("looking for devices");
        // Without any device it does nothing, until there is one again.
        let looked = look_for_devices();
        self.unclosed.store(looked.is_err(), Ordering::Release);
        if let Err(error) = looked {
            tracing::debug!(%error, "removed devices may stay open");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcements_of_rdma_devices_are_told_from_others() {
        let heard = |messages: &[&str]| {
            let mut changes = Changes::default();
            for message in messages {
                changes.add(message.as_bytes());
            }
            (changes.came, changes.went)
        };
        let verbs = "@/devices/virtual/infiniband_verbs/uverbs0\0ACTION=add\0\
            SUBSYSTEM=infiniband_verbs\0DEVNAME=infiniband/uverbs0\0";
        let (add, remove) = (format!("add{verbs}"), format!("remove{verbs}"));
        let other = "remove@/devices/virtual/net/v0\0ACTION=remove\0SUBSYSTEM=net\0";
        assert_eq!(heard(&[&add]), (true, false));
        assert_eq!(heard(&[&remove]), (false, true));
        assert_eq!(heard(&[&add, other, &remove]), (true, true));
        assert_eq!(heard(&[other, "", "remove@", "\0\0"]), (false, false));
    }

    #[test]
    fn nothing_is_heard_where_nothing_happens() {
        if let Ok(events) = DeviceEvents::open() {
            // Whatever else this machine is doing: it is no RDMA device that comes or goes.
            assert_eq!(events.hear(), Changes::default());
        }
    }
}
