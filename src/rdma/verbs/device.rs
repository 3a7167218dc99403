//! One device as a provider uses it: what it can do, its completion queues with reserved places, its domain.

use std::ffi::CStr;
use std::sync::Arc;

use super::cm::CmId;
use super::quirks::Quirks;
use super::resources::{CompletionChannel, CompletionQueue, Context, ProtectionDomain, Rights};
use super::sys;
use crate::rdma::{Capabilities, Exposure, Fabric, MAX_PIECES, RdmaError, RdmaOperation};

/// Entries of the first completion queue; each further one has twice as many.
const FIRST_QUEUE: u32 = 4096;

/// A device with what the provider keeps on it.
pub(super) struct Device {
    // Dropped in this order: queues, channel, domain, context.
    pub(super) queues: Vec<ReservedQueue>,
    pub(super) channel: Arc<CompletionChannel>,
    shared_domain: Option<Arc<ProtectionDomain>>,
    pub(super) context: Arc<Context>,
    pub(super) port: u8,
    pub(super) capabilities: Capabilities,
    pub(super) quirks: Quirks,
    max_entries: u32,
    /// Gone, or beyond repair: takes no new connections.
    pub(super) dead: bool,
}

/// A completion queue in which every request that may be posted has its place.
pub(super) struct ReservedQueue {
    pub(super) queue: CompletionQueue,
    reserved: u32,
    /// An announcement is asked for and has not come.
    pub(super) armed: bool,
}

impl Device {
    /// The device of a resolved id; `number` marks it in announcements.
    pub(super) fn of(id: &CmId) -> Result<Self, RdmaError> {
        let context = Context::of(id)?;
        let (capabilities, quirks, max_entries) = probe(context.raw(), id.port())?;
        let channel = CompletionChannel::new(&context)?;
        Ok(Self {
            queues: Vec::new(),
            channel,
            shared_domain: None,
            context,
            port: id.port(),
            capabilities,
            quirks,
            max_entries,
            dead: false,
        })
    }

    /// Whether the id's connection is on this device and port.
    pub(super) fn serves(&self, id: &CmId) -> bool {
        id.verbs()
            .is_some_and(|verbs| verbs.as_ptr() == self.context.raw())
            && id.port() == self.port
            && !self.dead
    }

    /// A domain for a new connection. Where peers get keys of windows only, which belong to one queue pair, all
    /// connections share one; keys of regions are valid for the whole domain.
    pub(super) fn domain(&mut self) -> Result<Arc<ProtectionDomain>, RdmaError> {
        let windows = self.capabilities.exposure == Exposure::Window;
        let rights = Rights {
            windows,
            read_sink_is_remote: self.quirks.read_sink_is_remote,
        };
        if !windows || self.capabilities.fabric == Fabric::Iwarp {
            return ProtectionDomain::new(&self.context, rights);
        }
        if let Some(domain) = &self.shared_domain {
            return Ok(domain.clone());
        }
        let domain = ProtectionDomain::new(&self.context, rights)?;
        Ok(self.shared_domain.insert(domain).clone())
    }

    /// Reserves places in a completion queue, a new one if need be, and returns which.
    pub(super) fn reserve(&mut self, places: u32) -> Result<usize, RdmaError> {
        let fits = |queue: &ReservedQueue| queue.queue.entries - queue.reserved >= places;
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
                let queue = CompletionQueue::new(&self.context, &self.channel, entries, place)?;
                self.queues.push(ReservedQueue {
                    queue,
                    reserved: 0,
                    armed: false,
                });
                place
            }
        };
        self.queues[place].reserved += places;
        Ok(place)
    }

    /// Gives places back, when the queue pair is gone and the queue was polled since.
    pub(super) fn release(&mut self, queue: usize, places: u32) {
        if let Some(queue) = self.queues.get_mut(queue) {
            queue.reserved = queue.reserved.saturating_sub(places);
        }
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
    let quirks = Quirks::of(device.vendor_id, fabric);
    let max_entries = count(device.max_cqe).max(1);
    let capabilities = evaluate(name(context), fabric, &device, &link, &quirks);
    Ok((capabilities, quirks, max_entries))
}

fn evaluate(
    name: String,
    fabric: Fabric,
    device: &sys::ibv_device_attr,
    link: &sys::ibv_port_attr,
    quirks: &Quirks,
) -> Capabilities {
    let has = |flag: u32| device.device_cap_flags & flag != 0;
    let windows = quirks.windows && has(sys::DEVICE_MEM_WINDOW_TYPE_2B) && device.max_mw != 0;
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
    capabilities.max_send_depth = depth;
    capabilities.max_receive_depth = depth;
    capabilities.max_initiator_depth = reads(device.max_qp_init_rd_atom);
    capabilities.max_responder_resources = reads(device.max_qp_rd_atom);
    capabilities.max_message = match link.max_msg_sz {
        0 => 1 << 30,
        size => size.min(1 << 30),
    };
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

    fn capabilities(device: &sys::ibv_device_attr, fabric: Fabric) -> Capabilities {
        // SAFETY: a structure of numbers.
        let link = unsafe { std::mem::zeroed() };
        let quirks = Quirks::of(device.vendor_id, fabric);
        evaluate("a".into(), fabric, device, &link, &quirks)
    }

    #[test]
    fn a_device_with_windows_exposes_by_them() {
        let flags = sys::DEVICE_MEM_WINDOW_TYPE_2B | sys::DEVICE_MEM_MGT_EXTENSIONS;
        let rxe = capabilities(&device(flags, VENDOR_RXE), Fabric::Roce);
        assert_eq!(rxe.exposure, Exposure::Window);
        assert!(rxe.remote_invalidation() && rxe.send_with_invalidate);
        // A queue pair's requests fit one completion queue.
        assert_eq!((rxe.max_send_depth, rxe.max_gather), (16383, MAX_PIECES));
        assert_eq!(
            (rxe.max_responder_resources, rxe.max_initiator_depth),
            (128, 254)
        );
    }

    #[test]
    fn a_device_without_them_registers() {
        let flags = sys::DEVICE_MEM_MGT_EXTENSIONS;
        let siw = capabilities(&device(flags, VENDOR_SIW), Fabric::Iwarp);
        assert_eq!(siw.exposure, Exposure::Registration);
        assert!(!siw.remote_invalidation() && siw.send_with_invalidate);
        let mut none = device(sys::DEVICE_MEM_WINDOW_TYPE_2B, 0x8086);
        none.max_mw = 0;
        let none = capabilities(&none, Fabric::Roce);
        assert_eq!(none.exposure, Exposure::Registration);
    }
}
