//! The cases of the public conformance suite about descriptors and invalidation, by their names, over the software
//! iWARP on loopback. They ask for an SMB2 server: the one here knows READ and WRITE of one file, made of this crate's
//! codec of the RDMA parts of SMB2 and of its direct placement, as an SMB server would be.
#![cfg(feature = "iwarp")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::Duration;

use smbdirect::engine::{Channel, ChannelOptions, DirectListener, Reactor, ReactorOptions};
use smbdirect::proto::wire::BufferDescriptorV1;
use smbdirect::rdma::{IoBuf, ProviderKind, RemoteAccess, open};
use smbdirect::smb2::{ChannelRules, Dialect, PlacedRead, Placement};
use smbdirect::transport::{
    DirectPlacement, Error, Listener, ListenerExt, Message, SteeringTag, Target, Transport,
    TransportExt,
};

const LONG: Duration = Duration::from_secs(40);
/// What the server says are its MaxReadSize and MaxWriteSize.
const MAX: usize = 1 << 20;
/// Bytes of the file.
const FILE: usize = 4 * MAX;

const READ: u16 = 8;
const WRITE: u16 = 9;
const STATUS_SUCCESS: u32 = 0;
const STATUS_INVALID_PARAMETER: u32 = 0xc000_000d;
/// Bytes of a request in front of its buffer.
const REQUEST: usize = 112;
/// Bytes of a response to either, without a buffer.
const RESPONSE: usize = 80;

/// The content of a new file.
fn content() -> &'static [u8] {
    static CONTENT: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (state >> 56) as u8
        };
        (0..FILE).map(|_| next()).collect()
    });
    &CONTENT
}

fn rules(dialect: Dialect) -> ChannelRules {
    ChannelRules {
        dialect,
        transforms: Default::default(),
    }
}

/// A server with its reactor and a tester with its own.
struct World {
    reactors: [Reactor; 2],
    listener: Arc<DirectListener>,
}

impl World {
    fn new(dialect: Dialect) -> Self {
        let reactors = [(); 2].map(|()| {
            let provider = open(ProviderKind::Iwarp).expect("the software RNIC");
            let reactor = Reactor::new(provider, ReactorOptions::default()).expect("a reactor");
            reactor.spawn().expect("a thread");
            reactor
        });
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = reactors[0]
            .listen(&[any_port], ChannelOptions::default())
            .expect("a listener");
        let listener = Arc::new(listener);
        let accepting = listener.clone();
        // Ends with the listener.
        thread::spawn(move || {
            while let Ok(channel) = accepting.accept_blocking(None) {
                // How the connection ends is the tester's to see.
                thread::spawn(move || drop(serve(&*channel, &rules(dialect))));
            }
        });
        Self { reactors, listener }
    }

    fn connect(&self) -> Tester {
        let to = self.listener.local_addresses()[0];
        let channel = self.reactors[1].connect(to, ChannelOptions::default());
        Tester(channel.wait().expect("a channel"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.listener.close();
        for reactor in &self.reactors {
            reactor.shutdown(Duration::from_secs(2));
        }
    }
}

/// The server's side of one connection, with a file of its own.
fn serve(channel: &dyn Transport, rules: &ChannelRules) -> Result<(), Error> {
    let direct = channel.direct().expect("direct placement");
    let mut file = content().to_vec();
    while let Some(request) = channel.recv_blocking(None)? {
        let command = u16::from_le_bytes([request[12], request[13]]);
        let offset = u64::from_le_bytes(request[72..80].try_into().expect("eight bytes")) as usize;
        let parsed = match command {
            READ => Placement::parse_read(&request, rules),
            _ => Placement::parse_write(&request, rules),
        };
        let placement = match parsed {
            Ok(Some(placement)) if placement.length as usize <= MAX => placement,
            _ => {
                let refused = response(command, STATUS_INVALID_PARAMETER);
                channel.send_blocking(&refused, None)?;
                continue;
            }
        };
        let len = placement.length as usize;
        let token = placement.token_to_invalidate().map(SteeringTag);
        let target = Target::new(placement.descriptors);
        let moved = match command {
            READ => {
                let mut data = channel.allocate(len).wait()?;
                data.copy_from_slice(&file[offset..offset + len]);
                let mut answer = response(READ, STATUS_SUCCESS);
                let placed = PlacedRead {
                    placed: placement.length,
                    transform: None,
                };
                placed.encode(&mut answer, rules).expect("a READ response");
                let op = direct.write_then_send(data.into(), target, (&answer).into(), token);
                op.wait().map(drop)
            }
            _ => {
                let into = channel.allocate(len).wait()?;
                direct.read(into, 0..len, target).wait().and_then(|data| {
                    file[offset..offset + len].copy_from_slice(&data);
                    let mut answer = response(WRITE, STATUS_SUCCESS);
                    // Count.
                    answer[68..72].copy_from_slice(&placement.length.to_le_bytes());
                    channel.respond_blocking(&answer, token, None)
                })
            }
        };
        match moved {
            Err(Error::BadDescriptors(_)) => {
                let refused = response(command, STATUS_INVALID_PARAMETER);
                channel.send_blocking(&refused, None)?;
            }
            moved => moved?,
        }
    }
    Ok(())
}

/// Header and body, but for the fields that depend on what was done.
fn response(command: u16, status: u32) -> Vec<u8> {
    let mut message = header(command, RESPONSE);
    message[8..12].copy_from_slice(&status.to_le_bytes());
    message[64] = 17;
    message
}

fn header(command: u16, len: usize) -> Vec<u8> {
    let mut message = vec![0; len];
    message[..4].copy_from_slice(b"\xFESMB");
    message[4] = 64;
    message[12..14].copy_from_slice(&command.to_le_bytes());
    message
}

fn status(message: &[u8]) -> u32 {
    u32::from_le_bytes(message[8..12].try_into().expect("four bytes"))
}

/// The client of the cases.
struct Tester(Channel);

impl Tester {
    fn memory(&self, len: usize) -> IoBuf {
        let mut memory = self.0.allocate(len).wait().expect("memory");
        memory.fill(0xee);
        memory
    }

    /// Sends a request with this channel information.
    fn request(
        &self,
        command: u16,
        (offset, len): (usize, usize),
        invalidate: bool,
        descriptors: &[BufferDescriptorV1],
    ) {
        let placement = Placement {
            length: len as u32,
            invalidate,
            descriptors: descriptors.to_vec(),
            transform: None,
        };
        let mut message = header(command, REQUEST);
        message[64] = 49;
        message[72..80].copy_from_slice(&(offset as u64).to_le_bytes());
        // The tester may ask for what the dialect does not have.
        let rules = rules(Dialect::Smb302);
        match command {
            READ => placement.encode_read(&mut message, &rules),
            _ => placement.encode_write(&mut message, &rules),
        }
        .expect("a request");
        self.0.send_blocking(&message, Some(LONG)).expect("sent");
    }

    fn answer(&self) -> Message {
        let answer = self.0.recv_blocking(Some(LONG)).expect("no error");
        answer.expect("an answer")
    }

    /// The response to a READ that placed so much: in every case it looks like this.
    fn placed(&self, len: usize) -> Message {
        let answer = self.answer();
        assert_eq!((status(&answer), answer.len()), (STATUS_SUCCESS, RESPONSE));
        assert_eq!(answer[66], RESPONSE as u8, "DataOffset");
        assert_eq!(answer[68..72], [0; 4], "DataLength");
        let read = PlacedRead::parse(&answer, len as u32, &rules(Dialect::Smb302));
        assert_eq!(read.expect("a READ response").placed as usize, len);
        answer
    }

    /// A READ into new memory, with one descriptor that is taken back afterwards.
    fn read(&self, offset: usize, len: usize) -> IoBuf {
        let exposed = self.0.expose(self.memory(len), RemoteAccess::Write);
        let exposed = exposed.expect("exposed");
        self.request(READ, (offset, len), false, exposed.descriptors());
        self.placed(len);
        exposed.reclaim().wait().expect("the memory")
    }

    /// A READ that cannot be served: refused, or the end of the connection.
    fn read_fails(&self, descriptors: &[BufferDescriptorV1]) {
        self.request(READ, (0, MAX), false, descriptors);
        if let Ok(Some(answer)) = self.0.recv_blocking(Some(LONG)) {
            assert_ne!(status(&answer), STATUS_SUCCESS);
        }
    }
}

#[test]
fn bvt_smb2_over_rdma_channel_read_large_file() {
    let world = World::new(Dialect::Smb302);
    let tester = world.connect();
    for offset in (0..FILE).step_by(MAX) {
        let read = tester.read(offset, MAX);
        assert!(read[..] == content()[offset..offset + MAX]);
    }
}

#[test]
fn smb2_over_rdma_channel_read_multiple_operation() {
    let world = World::new(Dialect::Smb302);
    let tester = world.connect();
    let size = MAX / 64;
    for n in 0..64 {
        let read = tester.read(n * size, size);
        assert!(read[..] == content()[n * size..][..size]);
    }
}

#[test]
fn smb2_over_rdma_channel_read_write_multiple_buffer_descriptor_list() {
    const COUNT: usize = 65_535 / BufferDescriptorV1::LEN;
    let world = World::new(Dialect::Smb302);
    let tester = world.connect();
    let each = MAX / COUNT + 1;
    let written: Vec<u8> = (0..MAX).map(|i| (i / 3) as u8).collect();
    let mut buffers = Vec::new();
    for n in 0..COUNT {
        let mut memory = tester.memory(each);
        for (i, byte) in memory.iter_mut().enumerate() {
            *byte = written.get(n * each + i).copied().unwrap_or(0);
        }
        buffers.push(memory);
    }
    let exposed = tester.0.expose_list(buffers, RemoteAccess::Read);
    let exposed = exposed.expect("exposed");
    assert_eq!(exposed.descriptors().len(), COUNT);
    tester.request(WRITE, (0, MAX), false, exposed.descriptors());
    let answer = tester.answer();
    assert_eq!(status(&answer), STATUS_SUCCESS);
    assert_eq!(answer[68..72], (MAX as u32).to_le_bytes(), "Count");
    let buffers = exposed.reclaim().wait().expect("the memory");

    let exposed = tester.0.expose_list(buffers, RemoteAccess::Write);
    let exposed = exposed.expect("exposed");
    tester.request(READ, (0, MAX), false, exposed.descriptors());
    tester.placed(MAX);
    let buffers = exposed.reclaim().wait().expect("the memory");
    let read: Vec<u8> = buffers.iter().flat_map(|buffer| buffer.to_vec()).collect();
    assert!(read[..MAX] == written);
}

#[test]
fn smb2_over_rdma_channel_invalid_buffer_descriptor_length() {
    let world = World::new(Dialect::Smb302);
    let tester = world.connect();
    let exposed = tester
        .0
        .expose(tester.memory(MAX - 1), RemoteAccess::Write)
        .expect("exposed");
    let mut descriptor = exposed.descriptors()[0];
    descriptor.length += 1;
    tester.read_fails(&[descriptor]);
    drop(exposed.reclaim().wait());
    // The server survives it.
    assert!(world.connect().read(0, 100)[..] == content()[..100]);
}

#[test]
fn smb2_over_rdma_channel_invalid_buffer_descriptor_deregistered_buffer() {
    let world = World::new(Dialect::Smb302);
    let tester = world.connect();
    let exposed = tester
        .0
        .expose(tester.memory(MAX), RemoteAccess::Write)
        .expect("exposed");
    let stale = exposed.descriptors().to_vec();
    let memory = exposed.reclaim().wait().expect("the memory");
    tester.read_fails(&stale);
    assert!(memory.iter().all(|byte| *byte == 0xee));
    assert!(world.connect().read(0, 100)[..] == content()[..100]);
}

#[test]
fn bvt_smb2_over_rdma_smb302_read_smb2_channel_rdma_v1_invalidate() {
    let world = World::new(Dialect::Smb302);
    let tester = world.connect();
    let mut exposed = tester
        .0
        .expose(tester.memory(MAX), RemoteAccess::Write)
        .expect("exposed");
    exposed.offer_invalidation();
    let descriptors = exposed.descriptors().to_vec();
    tester.request(READ, (0, MAX), true, &descriptors);
    let answer = tester.placed(MAX);
    let token = SteeringTag(descriptors[0].token);
    assert_eq!(answer.invalidated(), Some(token));
    let memory = exposed.reclaim().wait().expect("the memory");
    assert!(memory[..] == content()[..MAX]);
    // The same descriptor again: the connection is terminated.
    tester.request(READ, (0, MAX), true, &descriptors);
    assert!(tester.0.closed_blocking(Some(LONG)).is_some());
}

#[test]
fn smb2_over_rdma_read_smb2_channel_rdma_v1() {
    let world = World::new(Dialect::Smb302);
    let tester = world.connect();
    let mut memory = tester.memory(MAX);
    memory.fill(0x42);
    let exposed = tester
        .0
        .expose(memory, RemoteAccess::Read)
        .expect("exposed");
    tester.request(WRITE, (0, MAX), false, exposed.descriptors());
    assert_eq!(status(&tester.answer()), STATUS_SUCCESS);
    let mut memory = exposed.reclaim().wait().expect("the memory");
    memory.fill(0);
    let exposed = tester
        .0
        .expose(memory, RemoteAccess::Write)
        .expect("exposed");
    // Twice with the same descriptor.
    for _ in 0..2 {
        tester.request(READ, (0, MAX), false, exposed.descriptors());
        assert_eq!(tester.placed(MAX).invalidated(), None);
    }
    let memory = exposed.reclaim().wait().expect("the memory");
    assert!(memory.iter().all(|byte| *byte == 0x42));
}

#[test]
fn smb2_over_rdma_smb300_read_smb2_channel_rdma_v1_invalidate() {
    let world = World::new(Dialect::Smb300);
    let tester = world.connect();
    let exposed = tester
        .0
        .expose(tester.memory(MAX), RemoteAccess::Write)
        .expect("exposed");
    tester.request(READ, (0, MAX), true, exposed.descriptors());
    let answer = tester.answer();
    assert_eq!(status(&answer), STATUS_INVALID_PARAMETER);
    assert_eq!(answer.invalidated(), None);
    // It may be used as the dialect has it.
    tester.request(READ, (0, MAX), false, exposed.descriptors());
    tester.placed(MAX);
    let memory = exposed.reclaim().wait().expect("the memory");
    assert!(memory[..] == content()[..MAX]);
}
