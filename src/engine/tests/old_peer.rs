//! A server whose iWARP knows MPA revision 1 only, which says nothing of the depths of RDMA reads.
#![cfg(feature = "iwarp")]

use std::time::Instant;

use super::*;
use crate::rdma::iwarp::{IwarpConfig, IwarpProvider};

/// [MS-SMBD] 6: then the header in the private data says how many reads the server serves. One more would be the
/// connection's end.
#[test]
fn reads_keep_to_the_depth_of_a_server_that_can_say_so_only_in_private_data() {
    let reactor = |config| {
        let provider = IwarpProvider::new(config).unwrap();
        Reactor::new(Box::new(provider), ReactorOptions::default()).unwrap()
    };
    let old = IwarpConfig {
        revision: 1,
        ..IwarpConfig::default()
    };
    let (server, client) = (reactor(old), reactor(IwarpConfig::default()));
    let options = ChannelOptions {
        responder_resources: 2,
        ..ChannelOptions::default()
    };
    let loopback: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let listener = server.listen(&[loopback], options).unwrap();
    let start = Instant::now();
    let until = |what: &mut dyn FnMut() -> bool| {
        while !what() {
            server.poll();
            client.poll();
            assert!(start.elapsed() < Duration::from_secs(60));
        }
    };
    let options = ChannelOptions {
        max_rdma_chunk: 10_000,
        ..ChannelOptions::default()
    };
    let mut connecting = client.connect(listener.local_addresses()[0], options);
    let (mut ours, mut theirs) = (None, None);
    until(&mut || {
        ours = ours.take().or_else(|| connecting.try_take());
        if let Poll::Ready(channel) = listener.poll_accept_channel(&mut cx()) {
            theirs = Some(channel.unwrap());
        }
        ours.is_some() && theirs.is_some()
    });
    let (ours, theirs) = (ours.unwrap().unwrap(), theirs.unwrap());
    const LEN: usize = 1 << 20;
    let mut memory = theirs.allocate(LEN).try_take().unwrap().unwrap();
    memory.fill(7);
    let exposed = theirs.expose(memory, RemoteAccess::Read).unwrap();
    let into = ours.allocate(LEN).try_take().unwrap().unwrap();
    let mut read = ours.read(into, 0..LEN, Target::new(exposed.descriptors()));
    let mut result = None;
    until(&mut || {
        result = read.try_take();
        result.is_some()
    });
    assert!(result.unwrap().unwrap().iter().all(|byte| *byte == 7));
}
