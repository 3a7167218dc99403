//! Descriptors that were never given like that, on every kind of simulated device. The transport suite has the same
//! table on real ones.

use super::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Forgery {
    Token,
    Before,
    After,
    Longer,
    Revoked,
    Reused,
    Stolen,
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

const LEN: usize = 4096;

#[test]
fn forged_descriptors_end_their_connection_and_touch_nothing() {
    for (seed, device) in (40..).zip(devices()) {
        let world = World::new(seed, device, ChannelOptions::default());
        let other = world.connect(ChannelOptions::default());
        for forgery in FORGERIES {
            for access in [RemoteAccess::Write, RemoteAccess::Read] {
                attack(&world, forgery, access);
                other.0.start_send(b"fine".into()).unwrap();
                assert_eq!(world.recv(&other.1).unwrap().unwrap(), b"fine");
            }
        }
    }
}

fn attack(world: &World, forgery: Forgery, access: RemoteAccess) {
    let victim = world.connect(ChannelOptions::default());
    let attacker = world.connect(ChannelOptions::default());
    let given = match (forgery, access) {
        (Forgery::Direction, RemoteAccess::Read) => RemoteAccess::Write,
        (Forgery::Direction, RemoteAccess::Write) => RemoteAccess::Read,
        _ => access,
    };
    let mut exposed = victim.0.expose(filled(&victim.0, LEN, 1), given).unwrap();
    let mut forged = exposed.descriptors()[0];
    match forgery {
        Forgery::Token => forged.token ^= 0x1000,
        Forgery::Before => forged.offset = forged.offset.wrapping_sub(1),
        Forgery::After => forged.offset = forged.offset.wrapping_add(1),
        Forgery::Longer => forged.length += 1,
        Forgery::Revoked | Forgery::Reused => {
            let memory = world.finish(exposed.reclaim()).unwrap();
            if forgery == Forgery::Reused {
                exposed = victim.0.expose(memory, given).unwrap();
            } else {
                // Something else is exposed instead.
                drop(memory);
                exposed = victim.0.expose(filled(&victim.0, LEN, 1), given).unwrap();
            }
        }
        Forgery::Stolen | Forgery::Direction => {}
    }
    // What was exposed is the peer's from here on.
    victim.0.start_send(b"ready".into()).unwrap();
    world.recv(&victim.1).unwrap().unwrap();
    let used = if forgery == Forgery::Stolen {
        &attacker
    } else {
        &victim
    };
    let (target, len) = (Target::new(forged), forged.length as usize);
    let result = match access {
        RemoteAccess::Write => {
            let data = filled(&used.1, len, 77).into();
            world.finish(used.1.write(data, target)).map(drop)
        }
        RemoteAccess::Read => {
            let into = filled(&used.1, len, 77);
            world.finish(used.1.read(into, 0..len, target)).map(drop)
        }
    };
    if result != Err(Error::BadDescriptors(BadDescriptors::AddressWraps)) {
        assert!(access == RemoteAccess::Write || result.is_err());
        let ends = (world.closed(&used.0), world.closed(&used.1));
        let rdma = |reason: &DisconnectReason| matches!(reason, DisconnectReason::Rdma(_));
        assert!(rdma(&ends.0) || rdma(&ends.1), "{forgery:?}: {ends:?}");
    }
    let memory = world.finish(exposed.reclaim()).unwrap();
    let expected = |(i, byte): (usize, &u8)| *byte == (i as u8).wrapping_mul(31).wrapping_add(1);
    assert!(memory.iter().enumerate().all(expected), "{forgery:?}");
}
