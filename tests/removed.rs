//! RDMA devices that are removed amid transfers (`rdma link del`), and come back: in the guest, whose devices are
//! software. Needs root; the guest's script `removed.sh` makes the third device.
//!
//! Every connection on a removed device ends with that as its reason, every operation ends, all memory is its owner's
//! again, the deletion returns while the process goes on, connections on other devices go on as well, a listener goes
//! on with what it has left, and the device is used again when it is back.
#![cfg(feature = "verbs")]

use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use smbdirect::engine::{
    Channel, ChannelOptions, DirectListener, Exposed, ListenAt, Reactor, ReactorOptions,
};
use smbdirect::rdma::{IoBuf, ProviderKind, RdmaError, RemoteAccess, open};
use smbdirect::transport::{
    Close, DisconnectReason, Error, Listener, ListenerExt, Message, Op, OutMessage, Target,
    Transport, TransportExt,
};

const LONG: Duration = Duration::from_secs(30);
const TRANSFERS: usize = 8;
const LEN: usize = 20_000;

/// A device, and how to make it again.
struct Device {
    name: String,
    kind: String,
    interface: String,
    address: IpAddr,
}

impl Device {
    /// That of the guest's variables with this prefix.
    fn named(prefix: &str) -> Self {
        let variable = |name: &str| std::env::var(name).expect(name);
        Self {
            name: variable(&format!("{prefix}_DEVICE")),
            kind: variable("DEVICE"),
            interface: variable(&format!("{prefix}_LINK")),
            address: variable(prefix).parse().expect("an address"),
        }
    }

    /// Deletes it; the command has to return while this process lives.
    fn delete(&self) {
        let started = Instant::now();
        let mut command = Command::new("rdma")
            .args(["link", "del", &self.name])
            .stdin(Stdio::null())
            .spawn()
            .expect("rdma");
        loop {
            if let Some(status) = command.try_wait().expect("a status") {
                assert!(status.success(), "{status}");
                break;
            }
            assert!(started.elapsed() < LONG, "the deletion does not return");
            thread::sleep(Duration::from_millis(5));
        }
        println!("{} was deleted in {:?}", self.name, started.elapsed());
    }

    fn begin_to_delete(&self) -> JoinHandle<()> {
        let name = self.name.clone();
        thread::spawn(move || {
            let mut command = Command::new("rdma");
            let deleted = command.args(["link", "del", &name]).status();
            assert!(deleted.expect("rdma").success());
        })
    }

    fn add(&self) {
        let words = ["link", "add", &self.name, "type", &self.kind, "netdev"];
        let mut command = Command::new("rdma");
        let added = command.args(words).arg(&self.interface).status();
        assert!(added.expect("rdma").success());
    }

    fn port(&self) -> ListenAt {
        ListenAt::on_device(self.name.clone(), SocketAddr::new(self.address, 0))
    }
}

/// The guest's devices: those on the two ends of its cable, and one more.
fn devices() -> Option<[Device; 3]> {
    if std::env::var_os("SMBDIRECT_GUEST").is_none() || std::env::var_os("THIRD").is_none() {
        println!("not run: the devices of this machine are not to be deleted");
        return None;
    }
    Some(["LOCAL", "REMOTE", "THIRD"].map(Device::named))
}

fn reactor() -> Reactor {
    let provider = open(ProviderKind::Verbs).expect("a provider");
    let reactor = Reactor::new(provider, ReactorOptions::default()).expect("a reactor");
    reactor.spawn().expect("a thread");
    reactor
}

/// Two reactors, and a listener.
struct Bed {
    server: Reactor,
    client: Reactor,
    listener: DirectListener,
    options: ChannelOptions,
}

impl Bed {
    fn new(places: &[ListenAt]) -> Self {
        // Many requests per transfer are many moments to be hit at.
        let mut options = ChannelOptions::default();
        options.max_rdma_chunk = 2048;
        let (server, client) = (reactor(), reactor());
        let listener = server.listen(places, options.clone()).expect("a listener");
        Self {
            server,
            client,
            listener,
            options,
        }
    }

    fn connect(&self, to: SocketAddr) -> Result<Pair, Error> {
        let connecting = self.client.connect(to, self.options.clone());
        let client = connecting.wait()?;
        let server = self.listener.accept_blocking(Some(LONG))?;
        assert_eq!(server.info().local, to);
        Ok(Pair { client, server })
    }

    /// Connects at last: to a device that is just coming, or with soft-iWARP, which overlooks a message now and then.
    fn connect_at_last(&self, to: SocketAddr) -> Pair {
        let started = Instant::now();
        loop {
            match self.connect(to) {
                Ok(pair) => return pair,
                Err(error) => println!("not connected to {to}: {error}"),
            }
            assert!(started.elapsed() < LONG, "no connection");
            thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.listener.close();
        self.client.shutdown(Duration::from_secs(5));
        self.server.shutdown(Duration::from_secs(5));
    }
}

/// Both ends of a connection.
struct Pair {
    client: Channel,
    server: Arc<dyn Transport>,
}

/// A connection that transfers until it is told to stop, or ends.
struct Busy {
    rounds: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Pair>,
}

impl Busy {
    fn new(pair: Pair, client_exposes: bool) -> Self {
        let (rounds, stop) = (Arc::new(AtomicUsize::new(0)), Arc::default());
        let thread = thread::spawn({
            let (rounds, stop) = (rounds.clone(), Arc::clone(&stop));
            move || {
                while !AtomicBool::load(&stop, Ordering::Relaxed) {
                    if round(&pair, client_exposes).is_err() {
                        break;
                    }
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
                pair
            }
        });
        Self {
            rounds,
            stop,
            thread,
        }
    }

    /// Waits until it has done this many rounds more.
    fn goes_on(&self, more: usize) {
        let (started, wanted) = (Instant::now(), self.rounds() + more);
        while self.rounds() < wanted {
            assert!(!self.thread.is_finished(), "it has ended");
            assert!(started.elapsed() < LONG, "it does not go on");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn rounds(&self) -> usize {
        self.rounds.load(Ordering::Relaxed)
    }

    /// Its ends, when it has stopped by itself. That it stops at all says that every operation has ended.
    fn ended(self) -> Pair {
        let started = Instant::now();
        while !self.thread.is_finished() {
            assert!(started.elapsed() < LONG, "some operation does not end");
            thread::sleep(Duration::from_millis(1));
        }
        self.thread.join().expect("its thread")
    }

    fn stop(self) -> Pair {
        self.stop.store(true, Ordering::Relaxed);
        self.ended()
    }
}

fn filled(transport: &dyn Transport, byte: u8) -> Result<IoBuf, Error> {
    let mut buffer = transport.allocate(LEN).wait()?;
    buffer.fill(byte);
    Ok(buffer)
}

/// Some RDMA writes and reads at once, and messages both ways. All of it ends, and all memory comes back, in either
/// case; what was transferred is right.
fn round(pair: &Pair, client_exposes: bool) -> Result<(), Error> {
    let (client, server): (&dyn Transport, &dyn Transport) = (&pair.client, &*pair.server);
    let (owner, user) = match client_exposes {
        true => (client, server),
        false => (server, client),
    };
    let mut exposed = Vec::new();
    let result = transfer(owner, user, &mut exposed);
    for (n, exposure) in exposed.into_iter().enumerate() {
        let memory = exposure.reclaim().wait().expect("the memory");
        assert_eq!(memory.len(), LEN);
        if result.is_ok() {
            let expected = if n % 2 == 0 { 0xaa } else { n as u8 };
            assert!(memory.iter().all(|byte| *byte == expected));
        }
    }
    result
}

fn transfer(
    owner: &dyn Transport,
    user: &dyn Transport,
    exposed: &mut Vec<Exposed>,
) -> Result<(), Error> {
    let exposing = owner.direct().expect("RDMA");
    let using = user.direct().expect("RDMA");
    for n in 0..TRANSFERS {
        let access = [RemoteAccess::Write, RemoteAccess::Read][n % 2];
        match exposing.expose(filled(owner, n as u8)?, access) {
            Ok(exposure) => exposed.push(exposure),
            Err(error) => return Err(error),
        }
    }
    owner.send_blocking(b"requests", Some(LONG))?;
    message(user)?;
    let mut writes: Vec<Op<_>> = Vec::new();
    let mut reads: Vec<Op<_>> = Vec::new();
    for (n, exposure) in exposed.iter().enumerate() {
        let target = Target::new(exposure.descriptors());
        if n % 2 == 0 {
            let data = filled(user, 0xaa)?.into();
            writes.push(using.write_then_send(data, target, OutMessage::Slice(b"done"), None));
        } else {
            reads.push(using.read(filled(user, 0xbb)?, 0..LEN, target));
        }
    }
    let mut result = Ok(());
    for write in writes {
        if let Err(error) = write.wait() {
            result = Err(error);
        }
    }
    for (n, read) in reads.into_iter().enumerate() {
        match read.wait() {
            Ok(buffer) => assert!(buffer.iter().all(|byte| *byte == 2 * n as u8 + 1)),
            Err(error) => result = Err(error),
        }
    }
    result?;
    for _ in 0..TRANSFERS / 2 {
        message(owner)?;
    }
    Ok(())
}

fn message(side: &dyn Transport) -> Result<Message, Error> {
    let message = side.recv_blocking(Some(LONG))?;
    message.ok_or(Error::Closed(DisconnectReason::Peer))
}

fn removed() -> DisconnectReason {
    DisconnectReason::Rdma(RdmaError::DeviceRemoved)
}

/// Why a side of a connection has ended: the same whoever asks.
fn reason(side: &dyn Transport) -> DisconnectReason {
    let reason = side.closed_blocking(Some(LONG)).expect("the end");
    assert_eq!(side.closed_blocking(Some(LONG)), Some(reason.clone()));
    match side.send_blocking(b"late", Some(LONG)) {
        Err(Error::Closed(said)) => assert_eq!(said, reason),
        other => panic!("{other:?}"),
    }
    reason
}

/// What the kernel has of a device: lines of all kinds that name it.
fn left_on(device: &Device) -> usize {
    let count = |kind| {
        let mut command = Command::new("rdma");
        let output = command.args(["resource", "show", kind]).output();
        let text = String::from_utf8_lossy(&output.expect("rdma").stdout).into_owned();
        let name = format!("{}/", device.name);
        let this = |line: &&str| line.contains(&name) || line.contains(&device.name);
        text.lines().filter(this).count()
    };
    ["qp", "cm_id", "mr", "pd", "cq"].map(count).iter().sum()
}

#[test]
fn a_device_is_removed_amid_transfers_and_comes_back() {
    let Some([local, remote, third]) = devices() else {
        return;
    };
    let bed = Bed::new(&[remote.port(), third.port()]);
    let places = bed.listener.local_addresses();
    let [to_remote, to_third] = places[..] else {
        panic!("{places:?}");
    };
    assert_eq!(
        (to_remote.ip(), to_third.ip()),
        (remote.address, third.address)
    );

    // One listener, two devices: connections come in on both.
    let mut on_third: Vec<Busy> = Vec::new();
    let on_remote = || -> Vec<Busy> {
        (0..4)
            .map(|n| Busy::new(bed.connect_at_last(to_remote), n % 2 == 0))
            .collect()
    };
    let busy = on_remote();
    on_third.extend((0..2).map(|n| Busy::new(bed.connect_at_last(to_third), n % 2 == 0)));
    for one in busy.iter().chain(&on_third) {
        one.goes_on(2);
    }

    // The acceptors' device goes.
    // What somebody keeps does not keep the device.
    let kept = bed.connect_at_last(to_remote);
    let kept_memory = filled(&*kept.server, 0x55).expect("memory");
    kept.client
        .send_blocking(b"kept", Some(LONG))
        .expect("sent");
    let kept_message = message(&*kept.server).expect("a message");
    remote.delete();
    for pair in busy.into_iter().map(Busy::ended).chain([kept]) {
        assert_eq!(reason(&*pair.server), removed());
        println!("the peer's end: {}", reason(&pair.client));
    }
    assert!(kept_memory.iter().all(|byte| *byte == 0x55));
    assert_eq!(&kept_message[..], b"kept");
    assert_eq!(left_on(&remote), 0);
    for one in &on_third {
        one.goes_on(2);
    }
    // The listener goes on with the device that it has left.
    on_third.push(Busy::new(bed.connect_at_last(to_third), true));
    assert!(bed.connect(to_remote).is_err());

    // It comes back, and is used again.
    remote.add();
    let busy = on_remote();
    for one in busy.iter().chain(&on_third) {
        one.goes_on(2);
    }
    drop((kept_memory, kept_message));

    // The initiators' device goes.
    local.delete();
    for pair in busy.into_iter().map(Busy::ended) {
        assert_eq!(reason(&pair.client), removed());
        println!("the peer's end: {}", reason(&*pair.server));
    }
    assert_eq!(left_on(&local), 0);
    local.add();
    let busy = on_remote();
    for one in busy.iter().chain(&on_third) {
        one.goes_on(2);
    }

    // Two reactors of one process have connections on the same device.
    third.delete();
    for pair in on_third.into_iter().map(Busy::ended) {
        assert_eq!(reason(&pair.client), removed());
        assert_eq!(reason(&*pair.server), removed());
    }
    assert_eq!(left_on(&third), 0);
    third.add();
    let again = Busy::new(bed.connect_at_last(to_third), true);
    again.goes_on(2);
    for one in busy.into_iter().chain([again]) {
        let pair = one.stop();
        pair.client.close(Close::Abort);
        assert_eq!(reason(&pair.client), DisconnectReason::Local);
        reason(&*pair.server);
    }

    // A listener without any place says so.
    remote.delete();
    third.delete();
    match bed.listener.accept_blocking(Some(LONG)) {
        Err(error) => assert_eq!(error, Error::Rdma(RdmaError::DeviceRemoved)),
        Ok(_) => panic!("a connection"),
    }
    assert_eq!((bed.client.connections(), bed.server.connections()), (0, 0));

    // librdmacm does not let go of the last device of a machine, until there is another.
    let deletion = local.begin_to_delete();
    thread::sleep(Duration::from_secs(2));
    println!(
        "the last: {}",
        if deletion.is_finished() {
            "deleted"
        } else {
            "waits"
        }
    );
    let started = Instant::now();
    third.add();
    println!("another was added in {:?}", started.elapsed());
    while !deletion.is_finished() {
        assert!(started.elapsed() < LONG, "the deletion does not return");
        thread::sleep(Duration::from_millis(5));
    }
    println!("the last was deleted after {:?}", started.elapsed());
    local.add();
    remote.add();
}
