//! What soft-iWARP overlooks: the first message of a peer that sends it right behind the MPA reply. The peer is the
//! software iWARP, which then waits and sends nothing more by itself.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::thread;
use std::time::Instant;

use super::end::{End, check, pattern};
use super::world::{PATIENCE, Who, World};
use crate::rdma::iwarp::{IwarpConfig, IwarpProvider};
use crate::rdma::{
    Close, ConnectParams, Event, Fabric, IoBuf, Operation, Pieces, PlainDomain, Provider,
    QpOptions, ResolveOptions, SendRequest, Slab, SlabOptions,
};

#[test]
fn a_first_message_that_soft_iwarp_overlooked_is_found() {
    for round in 0..20 {
        let Some(mut world) = World::new() else {
            return;
        };
        let target = world.target();
        // A thread of its own: the message must come while `accept` is under way.
        let client = thread::spawn(move || converse(target, round));
        let Some(incoming) = incoming(&mut world) else {
            return eprintln!("not run: the software iWARP has nobody to talk to here");
        };
        let conn = world.server.verbs.adopt(incoming, Instant::now()).unwrap();
        let end = End::new(Who::Server, &mut world, conn);
        let params = ConnectParams::default();
        world
            .server
            .verbs
            .accept(conn, &params, Instant::now())
            .unwrap();
        let (buffer, _) = world.received(&end);
        check(&buffer, round);
        assert_eq!(buffer.len(), 100);
        drop(buffer);
        world.execute(&end, vec![end.send(200, round)]);
        world.disconnected(&end);
        world.balanced(&end);
        client.join().unwrap();
    }
}

/// `None` on devices of another fabric.
fn incoming(world: &mut World) -> Option<crate::rdma::Incoming> {
    let conn = world.resolve();
    let fabric = world.client.verbs.capabilities(conn).unwrap().fabric;
    world.client.verbs.close(conn, Close::Abort, Instant::now());
    (fabric == Fabric::Iwarp).then(|| world.incoming())
}

/// Sends a message the moment it may, and reads the answer.
fn converse(target: SocketAddr, seed: u8) {
    let mut provider = IwarpProvider::new(IwarpConfig {
        nudge: None,
        ..IwarpConfig::default()
    })
    .unwrap();
    let slab = Slab::new(&PlainDomain::shared(), 2048, 4, SlabOptions::default()).unwrap();
    let now = Instant::now();
    let Ok(conn) = provider.resolve(target, &ResolveOptions::default(), now) else {
        return;
    };
    provider.create_qp(conn, &QpOptions::default()).unwrap();
    let mut receives: VecDeque<IoBuf> = slab.take().into_iter().collect();
    provider.post_receive(conn, &mut receives).unwrap();
    provider
        .connect(conn, &ConnectParams::default(), now)
        .unwrap();
    let mut events = VecDeque::new();
    let end = now + PATIENCE;
    while Instant::now() < end {
        provider.poll(Instant::now(), &mut events, 16);
        match events.pop_front() {
            Some(Event::Established { .. }) => {
                let mut buffer = slab.take().unwrap();
                buffer.set_len(100);
                for (i, byte) in buffer.iter_mut().enumerate() {
                    *byte = pattern(i, seed);
                }
                let mut chain = VecDeque::from([SendRequest {
                    cookie: 0,
                    signalled: true,
                    operation: Operation::Send {
                        message: Pieces::one(buffer.freeze()),
                        invalidate: None,
                        solicited: false,
                    },
                }]);
                provider.post_send(conn, &mut chain).unwrap();
            }
            Some(Event::Received { buffer, .. }) => {
                assert_eq!(buffer.len(), 200);
                provider.close(conn, Close::Abort, Instant::now());
            }
            Some(Event::Disconnected { .. }) => return,
            _ => {}
        }
    }
    panic!("no end of the conversation");
}
