//! One device as a provider uses it: what it can do, its completion queues with reserved places, its domain.

use std::ffi::CStr;
use std::sync::{Arc, OnceLock};

use super::VerbsOptions;
use super::cm::{CmId, EventChannel};
use super::context::Context;
use super::domain::{ProtectionDomain, Rights};
use super::nudge::NUDGES;
use super::quirks::Quirks;
use super::resources::{CompletionChannel, CompletionQueue};
use super::sys;
use crate::rdma::{Capabilities, Exposure, Fabric, MAX_PIECES, RdmaError, RdmaOperation};

/// Entries of the first completion queue; each further one has twice as many.
const FIRST_QUEUE: u32 = 4096;

/// A device with what the provider keeps on it.
pub(super) struct Device {
    // Dropped in this order: queues, domain, channel and context.
    pub(super) queues: Vec<ReservedQueue>,
    shared_domain: Option<Arc<ProtectionDomain>>,
    /// `None` after it was lost, when nothing is left on it.
    pub(super) open: Option<Open>,
    pub(super) port: u8,
    pub(super) capabilities: Capabilities,
    pub(super) quirks: Quirks,
    max_entries: u32,
    /// Gone, or beyond repair: takes no new connections.
    pub(super) dead: bool,
}

/// What is open of a device.
pub(super) struct Open {
    pub(super) channel: Arc<CompletionChannel>,
    pub(super) context: Arc<Context>,
}

/// What is left of a lost device. Dropping it may block.
pub(super) struct Remains {
    _queues: Vec<ReservedQueue>,
    _domain: Option<Arc<ProtectionDomain>>,
    pub(super) open: Open,
}

impl Drop for Remains {
    fn drop(&mut self) {
        self.open.context.end_domains();
    }
}

/// A completion queue, from the first queue pair on that is made for it.
pub(super) type LazyQueue = Arc<OnceLock<CompletionQueue>>;

/// A completion queue in which every request that may be posted has its place.
pub(super) struct ReservedQueue {
    queue: LazyQueue,
    /// Entries that it has at least.
    entries: u32,
    reserved: u32,
    /// An announcement is asked for and has not come.
    pub(super) armed: bool,
}

#[cfg(test)]
impl ReservedQueue {
    /// Places that are taken, and those that there are.
    pub(super) fn places(&self) -> (u32, u32) {
        (self.reserved, self.entries)
    }
}

impl Device {
    /// The device of a resolved id. Its own events come to `events`.
    pub(super) fn of(
        id: &CmId,
        options: &VerbsOptions,
        events: &Arc<EventChannel>,
    ) -> Result<Self, RdmaError> {
        let context = Context::of(id, events)?;
        let (capabilities, quirks, max_entries) = probe(context.raw(), id.port(), options)?;
        let channel = CompletionChannel::new(&context)?;
        Ok(Self {
            queues: Vec::new(),
            shared_domain: None,
            open: Some(Open { channel, context }),
            port: id.port(),
            capabilities,
            quirks,
            max_entries,
            dead: false,
        })
    }

    /// Whether the id's connection is on this device and port, which may be dead.
    pub(super) fn serves(&self, id: &CmId) -> bool {
        let context = self.open.as_ref().map(|open| open.context.raw());
        id.verbs()
            .is_some_and(|verbs| Some(verbs.as_ptr()) == context)
            && id.port() == self.port
    }

    /// Whether the system has removed it, and nobody has noticed here.
    pub(super) fn is_removed(&self) -> bool {
        let removed = |open: &Open| open.context.is_removed();
        !self.dead && self.open.as_ref().is_some_and(removed)
    }

    /// It was removed: nothing more is made on it. Whether that is new.
    pub(super) fn set_removed(&self) -> bool {
        (self.open.as_ref()).is_some_and(|open| open.context.set_removed())
    }

    /// What is left on a lost device without connections: ended when it is dropped.
    pub(super) fn close(&mut self) -> Option<Remains> {
        Some(Remains {
            open: self.open.take()?,
            _queues: std::mem::take(&mut self.queues),
            _domain: self.shared_domain.take(),
        })
    }

    /// Whether its connections share one domain: where peers get keys of windows only, which belong to one queue pair.
    /// Keys of regions are valid for the whole domain.
    fn shares_domain(&self) -> bool {
        self.capabilities.exposure == Exposure::Window && self.capabilities.fabric != Fabric::Iwarp
    }

    /// The domain for a new connection, if it is there already.
    pub(super) fn shared_domain(&self) -> Option<Arc<ProtectionDomain>> {
        self.shared_domain.clone()
    }

    /// What makes the domain of a new connection. May block; to be kept with [`Device::keep_domain`].
    pub(super) fn domain_maker(
        &self,
    ) -> impl FnOnce() -> Result<Arc<ProtectionDomain>, RdmaError> + Send + 'static {
        let context = self.open.as_ref().map(|open| open.context.clone());
        let rights = Rights {
            windows: self.capabilities.exposure == Exposure::Window,
            window_alone: self.quirks.window_ignores_range,
            read_sink_is_remote: self.quirks.read_sink_is_remote,
        };
        move || ProtectionDomain::new(&context.ok_or(RdmaError::DeviceRemoved)?, rights)
    }

    /// A domain that was made: others may share it, if it is the first.
    pub(super) fn keep_domain(&mut self, domain: &Arc<ProtectionDomain>) {
        if self.shares_domain() && self.shared_domain.is_none() {
            self.shared_domain = Some(domain.clone());
        }
    }

    /// The domain for a new connection. May block.
    pub(super) fn domain(&mut self) -> Result<Arc<ProtectionDomain>, RdmaError> {
        if let Some(domain) = self.shared_domain() {
            return Ok(domain);
        }
        let domain = self.domain_maker()()?;
        self.keep_domain(&domain);
        Ok(domain)
    }

    /// What gives a completion queue in which places were reserved. May block, the first time.
    pub(super) fn queue_maker(
        &self,
        place: usize,
    ) -> impl FnOnce() -> Result<LazyQueue, RdmaError> + Send + 'static {
        let open = self.open.as_ref();
        let open = open.map(|open| (open.context.clone(), open.channel.clone()));
        let queue = &self.queues[place];
        let (lazy, entries) = (queue.queue.clone(), queue.entries);
        move || {
            if lazy.get().is_none() {
                let (context, channel) = open.ok_or(RdmaError::DeviceRemoved)?;
                let made = CompletionQueue::new(&context, &channel, entries, place)?;
                // Should another one have come first, that is the one.
                let _ = lazy.set(made);
            }
            Ok(lazy)
        }
    }

    /// Reserves places in a completion queue, a new one if need be, and returns which.
    pub(super) fn reserve(&mut self, places: u32) -> Result<usize, RdmaError> {
        let fits = |queue: &ReservedQueue| queue.entries - queue.reserved >= places;
        let place = match self.queues.iter().position(fits) {
            Some(place) => place,
            None => {
                if places > self.max_entries {
                    return Err(RdmaError::Limit {
                        operation: RdmaOperation::CreateCompletionQueue,
                        asked: places.into(),
                        limit: self.max_entries.into(),
                    });
                }
                let place = self.queues.len();
                let wish = FIRST_QUEUE << place.min(8);
                let entries = wish.max(places).min(self.max_entries);
                self.queues.push(ReservedQueue {
                    queue: LazyQueue::default(),
                    entries,
                    reserved: 0,
                    armed: false,
                });
                place
            }
        };
        self.queues[place].reserved += places;
        Ok(place)
    }

    /// What queue pairs stand on that outlive the provider's table.
    pub(super) fn queues_kept(&self) -> impl Iterator<Item = LazyQueue> {
        self.queues.iter().map(ReservedQueue::shared)
    }

    #[cfg(test)]
    pub(super) fn max_entries(&self) -> u32 {
        self.max_entries
    }

    /// Gives places back, when the queue pair is gone and the queue was polled since.
    pub(super) fn release(&mut self, queue: usize, places: u32) {
        if let Some(queue) = self.queues.get_mut(queue) {
            queue.reserved = queue.reserved.saturating_sub(places);
        }
    }
}

impl ReservedQueue {
    /// The queue, to be kept as long as something is on it.
    pub(super) fn shared(&self) -> LazyQueue {
        self.queue.clone()
    }

    /// The queue, if there is one yet.
    pub(super) fn get(&self) -> Option<&CompletionQueue> {
        self.queue.get()
    }

    /// Asks for an announcement, unless one is asked for already. Whether it was asked now: what came before is not
    /// announced.
    pub(super) fn arm(&mut self) -> Result<bool, RdmaError> {
        let Some(queue) = self.queue.get().filter(|_| !self.armed) else {
            return Ok(false);
        };
        queue
            .request_notification()
            .map_err(|error| RdmaError::os(RdmaOperation::Wait, &error))?;
        self.armed = true;
        Ok(true)
    }
}

/// The name of the device of an open context.
pub(super) fn name(context: *mut sys::ibv_context) -> String {
    // SAFETY: the caller's context is open; libibverbs ends the name with a zero byte.
    unsafe { CStr::from_ptr((*(*context).device).name.as_ptr()) }
        .to_string_lossy()
        .into_owned()
}

/// What a device can do on a port, its quirks, and the entries that a completion queue may have.
pub(super) fn probe(
    context: *mut sys::ibv_context,
    port: u8,
    options: &VerbsOptions,
) -> Result<(Capabilities, Quirks, u32), RdmaError> {
    // SAFETY: structures of numbers, for which all zeroes is valid; the newer fields of the port's may stay so.
    let (mut device, mut link): (sys::ibv_device_attr, sys::ibv_port_attr) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    let failed = |error: std::io::Error| RdmaError::os(RdmaOperation::Open, &error);
    // SAFETY: the caller's context is open; both places are valid.
    let (transport, device_asked, port_asked) = unsafe {
        (
            (*(*context).device).transport_type,
            sys::ibv_query_device(context, &mut device),
            sys::ibv_query_port(context, port, &mut link),
        )
    };
    sys::verbs_result(device_asked).map_err(failed)?;
    sys::verbs_result(port_asked).map_err(failed)?;
    let fabric = if transport == sys::TRANSPORT_IWARP {
        Fabric::Iwarp
    } else if link.link_layer == sys::LINK_LAYER_ETHERNET {
        Fabric::Roce
    } else {
        Fabric::Infiniband
    };
    let quirks = Quirks::of(device.vendor_id, fabric, options);
    let max_entries = count(device.max_cqe).max(1);
    // SAFETY: the caller's context is open.
    let makes_windows = || unsafe { makes_windows(context) };
    let capabilities = evaluate(
        name(context),
        fabric,
        &device,
        &link,
        &quirks,
        makes_windows,
    );
    Ok((capabilities, quirks, max_entries))
}

/// Whether windows of type 2 can be made, tried out: that a device has them is what its driver says, and its library may
/// know nothing of them yet (irdma's learned it after the driver).
///
/// # Safety
/// `context` is open.
unsafe fn makes_windows(context: *mut sys::ibv_context) -> bool {
    // SAFETY: the caller's promise. The window is freed before its domain, both once, and nothing else is in it.
    unsafe {
        let domain = sys::ibv_alloc_pd(context);
        if domain.is_null() {
            return false;
        }
        let window = sys::ibv_alloc_mw(domain, sys::MW_TYPE_2);
        let made = !window.is_null();
        if made {
            sys::ibv_dealloc_mw(window);
        }
        sys::ibv_dealloc_pd(domain);
        made
    }
}

fn evaluate(
    name: String,
    fabric: Fabric,
    device: &sys::ibv_device_attr,
    link: &sys::ibv_port_attr,
    quirks: &Quirks,
    makes_windows: impl FnOnce() -> bool,
) -> Capabilities {
    let has = |flag: u32| device.device_cap_flags & flag != 0;
    let windows = quirks.windows
        && has(sys::DEVICE_MEM_WINDOW_TYPE_2B)
        && device.max_mw != 0
        && makes_windows();
    let exposure = if windows {
        Exposure::Window
    } else {
        Exposure::Registration
    };
    // Both queues of a queue pair have their places in one completion queue.
    let depth = count(device.max_qp_wr)
        .min(count(device.max_cqe) / 2)
        .max(1);
    let mut capabilities = Capabilities::new(name, fabric, exposure);
    capabilities.send_with_invalidate =
        quirks.send_with_invalidate && (has(sys::DEVICE_MEM_MGT_EXTENSIONS) || windows);
    capabilities.reports_invalidation = quirks.invalidation_bits != 0;
    capabilities.max_gather = MAX_PIECES.min(count(device.max_sge).max(1) as usize);
    capabilities.max_send_depth = match fabric {
        Fabric::Iwarp => depth.saturating_sub(NUDGES).max(1),
        _ => depth,
    };
    capabilities.max_receive_depth = depth;
    capabilities.max_initiator_depth = reads(device.max_qp_init_rd_atom);
    capabilities.max_responder_resources = reads(device.max_qp_rd_atom);
    capabilities.max_message = match link.max_msg_sz {
        0 => 1 << 30,
        size => size.min(1 << 30),
    };
    if device.max_mr_size > 0 {
        capabilities.max_exposure = device.max_mr_size;
    }
    capabilities.quirks = quirks.notes.clone();
    capabilities
}

fn count(number: i32) -> u32 {
    u32::try_from(number).unwrap_or(0)
}

/// RDMA reads in flight. The highest value of a byte means "as many as possible" to librdmacm.
fn reads(number: i32) -> u16 {
    count(number).min(254) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rdma::verbs::quirks::{VENDOR_RXE, VENDOR_SIW};

    const PLAIN: VerbsOptions = VerbsOptions {
        soft_roce_windows: false,
    };

    fn device(flags: u32, vendor: u32) -> sys::ibv_device_attr {
        // SAFETY: a structure of numbers.
        let mut device: sys::ibv_device_attr = unsafe { std::mem::zeroed() };
        device.device_cap_flags = flags;
        device.vendor_id = vendor;
        device.max_mw = 1000;
        device.max_qp_wr = 1 << 20;
        device.max_cqe = 32767;
        device.max_sge = 32;
        device.max_qp_rd_atom = 128;
        device.max_qp_init_rd_atom = 100_000;
        device
    }

    fn capabilities(
        device: &sys::ibv_device_attr,
        fabric: Fabric,
        options: &VerbsOptions,
    ) -> Capabilities {
        // SAFETY: a structure of numbers.
        let link = unsafe { std::mem::zeroed() };
        let quirks = Quirks::of(device.vendor_id, fabric, options);
        evaluate("a".into(), fabric, device, &link, &quirks, || true)
    }

    #[test]
    fn a_device_with_windows_exposes_by_them() {
        let flags = sys::DEVICE_MEM_WINDOW_TYPE_2B | sys::DEVICE_MEM_MGT_EXTENSIONS;
        let card = capabilities(&device(flags, 0x02c9), Fabric::Roce, &PLAIN);
        assert_eq!(card.exposure, Exposure::Window);
        assert!(card.remote_invalidation() && card.send_with_invalidate);
        // A queue pair's requests fit one completion queue.
        assert_eq!((card.max_send_depth, card.max_gather), (16383, MAX_PIECES));
        assert_eq!(
            (card.max_responder_resources, card.max_initiator_depth),
            (128, 254)
        );
    }

    #[test]
    fn a_device_whose_library_makes_no_windows_registers() {
        let flags = sys::DEVICE_MEM_WINDOW_TYPE_2B | sys::DEVICE_MEM_MGT_EXTENSIONS;
        // SAFETY: a structure of numbers.
        let link = unsafe { std::mem::zeroed() };
        let quirks = Quirks::of(0x8086, Fabric::Roce, &PLAIN);
        let of = |flags, makes: &dyn Fn() -> bool| {
            let device = device(flags, 0x8086);
            evaluate("a".into(), Fabric::Roce, &device, &link, &quirks, makes)
        };
        let card = of(flags, &|| false);
        assert_eq!(card.exposure, Exposure::Registration);
        assert!(!card.remote_invalidation() && card.send_with_invalidate);
        // Where the driver has none nobody tries.
        let none = of(sys::DEVICE_MEM_MGT_EXTENSIONS, &|| panic!("tried"));
        assert_eq!(none.exposure, Exposure::Registration);
    }

    #[test]
    fn soft_roce_registers_unless_its_peers_are_trusted() {
        let flags = sys::DEVICE_MEM_WINDOW_TYPE_2B | sys::DEVICE_MEM_MGT_EXTENSIONS;
        let rxe = device(flags, VENDOR_RXE);
        let plain = capabilities(&rxe, Fabric::Roce, &PLAIN);
        assert_eq!(plain.exposure, Exposure::Registration);
        // As a server it invalidates what its clients ask it to.
        assert!(!plain.remote_invalidation() && plain.send_with_invalidate);
        let options = VerbsOptions {
            soft_roce_windows: true,
        };
        let trusting = capabilities(&rxe, Fabric::Roce, &options);
        assert_eq!(trusting.exposure, Exposure::Window);
        assert!(trusting.remote_invalidation() && trusting.send_with_invalidate);
    }

    #[test]
    fn a_device_without_them_registers() {
        let flags = sys::DEVICE_MEM_MGT_EXTENSIONS;
        let siw = capabilities(&device(flags, VENDOR_SIW), Fabric::Iwarp, &PLAIN);
        assert_eq!(siw.exposure, Exposure::Registration);
        assert!(!siw.remote_invalidation() && siw.send_with_invalidate);
        let mut none = device(sys::DEVICE_MEM_WINDOW_TYPE_2B, 0x8086);
        none.max_mw = 0;
        let none = capabilities(&none, Fabric::Roce, &PLAIN);
        assert_eq!(none.exposure, Exposure::Registration);
    }
}
