//! Descriptors that the peer never gave like that, on every provider: what both sides see, that nothing beside the
//! memory is touched and nothing in it changed, and that other connections go on.

use smbdirect::proto::wire::BufferDescriptorV1;
use smbdirect::rdma::{CompletionStatus, IoBuf, ProviderKind, RdmaError, RemoteAccess};
use smbdirect::transport::{
    ApiMisuse, BadDescriptors, DirectPlacement, DisconnectReason, Error, Target, Transport,
    TransportExt,
};

use super::direct::{Pair, descriptor, filled};
use super::guarded::{Flush, Guarded};
use super::{Bed, LONG, World, payload};
use smbdirect::engine::ChannelOptions;

/// What is wrong with a descriptor that looks right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Forgery {
    /// A token that was never given.
    Token,
    /// A byte before the memory.
    Before,
    /// A byte after it.
    After,
    /// Longer than it is.
    Longer,
    /// The memory was reclaimed.
    Revoked,
    /// The memory was reclaimed and exposed again: the old descriptor.
    Reused,
    /// Another connection's.
    Stolen,
    /// Right, but for the other direction.
    Direction,
}

const FORGERIES: [Forgery; 8] = [
    Forgery::Token,
    Forgery::Before,
    Forgery::After,
    Forgery::Longer,
    Forgery::Revoked,
    Forgery::Reused,
    Forgery::Stolen,
    Forgery::Direction,
];

const LEN: usize = 5000;

/// Writing with each of them.
pub(crate) fn forged_descriptors_are_not_written_to(bed: &Bed) {
    let world = bed.world(ChannelOptions::default());
    let other = Pair::new(&world);
    for forgery in FORGERIES {
        attack(&world, &other, forgery, RemoteAccess::Write);
    }
}

/// Reading with each of them.
pub(crate) fn forged_descriptors_are_not_read_from(bed: &Bed) {
    let world = bed.world(ChannelOptions::default());
    let other = Pair::new(&world);
    for forgery in FORGERIES {
        let device = other.client.info().device.clone().unwrap_or_default();
        if forgery == Forgery::Direction && device.starts_with("siw") {
            // Soft-iWARP of Linux answers reads from any registered memory of the connection's domain.
            println!("{forgery:?}: the device does not check the right to read");
            continue;
        }
        attack(&world, &other, forgery, RemoteAccess::Read);
    }
}

fn attack(world: &World, other: &Pair, forgery: Forgery, access: RemoteAccess) {
    let flush = if forgery == Forgery::Before {
        Flush::Low
    } else {
        Flush::High
    };
    let guarded = Guarded::new(LEN, flush);
    let (victim, attacker) = (Pair::new(world), Pair::new(world));
    let mut memory = victim.client.register(guarded.memory()).wait().unwrap();
    memory.copy_from_slice(&payload(3, 0, 0, LEN));
    let given = match (forgery, access) {
        (Forgery::Direction, RemoteAccess::Read) => RemoteAccess::Write,
        (Forgery::Direction, RemoteAccess::Write) => RemoteAccess::Read,
        _ => access,
    };
    let exposed = victim.client.expose(memory, given).unwrap();
    let right = descriptor(&victim, &exposed);
    let mut forged = right;
    let mut exposed = Some(exposed);
    let mut kept = None;
    match forgery {
        // The low byte is the part that devices count up with every bind; the rest names the window.
        Forgery::Token => forged.token = right.token.wrapping_add(0x1000),
        Forgery::Before => forged.offset = right.offset.wrapping_sub(1),
        Forgery::After => forged.offset += 1,
        Forgery::Longer => forged.length += 1,
        Forgery::Revoked | Forgery::Reused => {
            let taken = exposed.take().map(|exposed| exposed.reclaim());
            let memory = taken.expect("exposed").wait().unwrap();
            if forgery == Forgery::Reused {
                let again = victim.client.expose(memory, given).unwrap();
                assert_ne!(descriptor(&victim, &again), right);
                exposed = Some(again);
            } else {
                kept = Some(memory);
            }
        }
        Forgery::Stolen | Forgery::Direction => {}
    }
    let stolen = forgery == Forgery::Stolen;
    let (used, unused) = if stolen {
        (&attacker, &victim)
    } else {
        (&victim, &attacker)
    };
    if let Some(result) = use_it(used, forged, access) {
        // The end of a write says that its buffers are free, and not how the peer took it.
        assert!(
            access == RemoteAccess::Write || result.is_err(),
            "{forgery:?}"
        );
        let initiator = used.server.closed_blocking(Some(LONG));
        let target = used.client.closed_blocking(Some(LONG));
        println!("{forgery:?} {access:?}: initiator {initiator:?}, target {target:?}");
        let device = other.client.info().device.clone().unwrap_or_default();
        assert_seen(&device, forgery, initiator.expect("the initiator's end"));
        assert_target(world, forgery, target.expect("the target's end"));
    }
    let memory = match (exposed, kept) {
        (Some(exposed), _) => exposed.reclaim().wait().unwrap(),
        (None, Some(memory)) => memory,
        (None, None) => unreachable!("the memory is somewhere"),
    };
    // What goes over the end begins within: a transport that cuts writes into segments places those.
    let shift = match (forgery, access) {
        (Forgery::After, RemoteAccess::Write) => Some(1),
        (Forgery::Longer, RemoteAccess::Write) => Some(0),
        _ => None,
    };
    let (own, written) = (payload(3, 0, 0, LEN), payload(4, 0, 0, LEN + 1));
    for (at, byte) in memory.iter().enumerate() {
        let placed = shift.is_some_and(|shift| at >= shift && *byte == written[at - shift]);
        assert!(*byte == own[at] || placed, "{forgery:?}: byte {at}");
    }
    guarded.assert_canary();
    unused.assert_alive();
    other.assert_alive();
}

/// The server's use of a descriptor. `None` if it was refused before anything was posted.
fn use_it(
    pair: &Pair,
    forged: BufferDescriptorV1,
    access: RemoteAccess,
) -> Option<Result<(), Error>> {
    let target = Target::new(forged);
    let len = forged.length as usize;
    let result = match access {
        RemoteAccess::Write => {
            let data: IoBuf = filled(&*pair.server, 4, len);
            pair.direct().write(data.into(), target).wait().map(drop)
        }
        RemoteAccess::Read => {
            let into = pair.server.allocate(len).wait().unwrap();
            pair.direct().read(into, 0..len, target).wait().map(drop)
        }
    };
    if result == Err(Error::BadDescriptors(BadDescriptors::AddressWraps)) {
        // A byte before a window whose offsets begin with 0.
        pair.assert_alive();
        return None;
    }
    Some(result)
}

/// The initiator learns that its access was refused. On devices the target's end of the connection may overtake that,
/// and from soft-iWARP of Linux nobody learns more.
fn assert_seen(device: &str, forgery: Forgery, reason: DisconnectReason) {
    // The simulated one as well.
    let siw = device.contains("siw");
    let fits = match &reason {
        DisconnectReason::Rdma(RdmaError::Completion { status, .. }) => {
            *status == CompletionStatus::RemoteAccess || siw
        }
        DisconnectReason::Rdma(RdmaError::Terminated { .. }) => true,
        DisconnectReason::Rdma(RdmaError::ConnectionLost) => siw,
        DisconnectReason::Peer => siw || device.starts_with("rxe"),
        _ => false,
    };
    assert!(fits, "{forgery:?}: {reason:?}");
}

/// The target learns that the peer did what it may not, where its transport tells; at least that the connection ended.
fn assert_target(world: &World, forgery: Forgery, reason: DisconnectReason) {
    let fits = match world.client.kind() {
        ProviderKind::Verbs => matches!(reason, DisconnectReason::Peer | DisconnectReason::Rdma(_)),
        _ => matches!(
            reason,
            DisconnectReason::Rdma(RdmaError::FabricViolation { .. })
        ),
    };
    assert!(fits, "{forgery:?}: {reason:?}");
}

/// Descriptors that cannot be right are refused before anything is posted.
pub(crate) fn bad_descriptors_post_nothing(bed: &Bed) {
    let world = bed.world(ChannelOptions::default());
    let pair = Pair::new(&world);
    let exposed = pair
        .client
        .expose(pair.memory(1, 100), RemoteAccess::Write)
        .unwrap();
    let good = descriptor(&pair, &exposed);
    let refused = |len: usize, descriptors: Vec<BufferDescriptorV1>, offset: u64| {
        let target = Target {
            descriptors: descriptors.into(),
            offset,
        };
        let data = filled(&*pair.server, 5, len);
        let write = pair.direct().write(data.into(), target.clone()).wait();
        let into = pair.server.allocate(len).wait().unwrap();
        let read = pair.direct().read(into, 0..len, target).wait();
        let error = write.unwrap_err();
        assert_eq!(read.unwrap_err(), error);
        assert!(!error.ends_connection());
        match error {
            Error::BadDescriptors(rule) => rule,
            error => panic!("{error:?}"),
        }
    };
    let empty = BufferDescriptorV1 { length: 0, ..good };
    let wraps = BufferDescriptorV1 {
        offset: u64::MAX - 5,
        ..good
    };
    let huge = BufferDescriptorV1 {
        length: u32::MAX,
        ..good
    };
    assert_eq!(refused(1, vec![], 0), BadDescriptors::None);
    assert_eq!(refused(1, vec![good, empty], 0), BadDescriptors::ZeroLength);
    assert_eq!(refused(1, vec![wraps], 0), BadDescriptors::AddressWraps);
    assert_eq!(
        refused(1, vec![good; 4096], 0),
        BadDescriptors::TooMany(4096)
    );
    let max = pair.server.limits().max_transfer;
    let len = u64::from(max) + 1;
    assert_eq!(
        refused(len as usize, vec![huge], 0),
        BadDescriptors::TooLarge { len, max }
    );
    let available = 100;
    for (len, offset) in [(101, 0), (1, 100), (100, 1), (1, u64::MAX)] {
        let rule = BadDescriptors::BeyondEnd {
            offset,
            len: len as u64,
            available,
        };
        assert_eq!(refused(len, vec![good], offset), rule);
    }
    let large = pair.client.allocate(len as usize).wait().unwrap();
    assert_eq!(
        pair.client.expose(large, RemoteAccess::Read).unwrap_err(),
        ApiMisuse::TransferTooLarge { len, max }.into()
    );
    pair.assert_alive();
    let memory = exposed.reclaim().wait().unwrap();
    assert!(memory[..] == payload(1, 0, 0, 100)[..]);
}
