//! A gateway over the software iWARP in this process, a server made by hand behind it, and clients.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use smbdirect::engine::{
    Channel, ChannelOptions, DirectListener, Exposed, Reactor, ReactorOptions,
};
use smbdirect::rdma::{IoBuf, ProviderKind, RemoteAccess, open};
use smbdirect::transport::tcp::{Tcp, TcpOptions};
use smbdirect::transport::{DirectPlacement, Listener, Message, Transport, TransportExt};

use crate::backend::Backend;
use crate::connections::Connections;
use crate::door::Door;
use crate::report::Log;
use crate::serve::{self, Settings};
use crate::smb2::*;
use crate::watch::Watch;

/// Nothing takes this long, even under load.
pub(crate) const LONG: Duration = Duration::from_secs(40);

/// A gateway, and where its lines go.
pub(crate) struct World {
    reactor: Reactor,
    clients: Reactor,
    listener: Arc<DirectListener>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) door: Arc<Door>,
    pub(crate) address: SocketAddr,
    lines: Mutex<Receiver<String>>,
    accepting: Option<thread::JoinHandle<Result<(), String>>>,
}

/// What may be chosen.
pub(crate) struct Choice {
    pub(crate) backend: String,
    pub(crate) backend_timeout: Duration,
    pub(crate) max_memory: u64,
    pub(crate) max_connections: usize,
    pub(crate) max_per_client: usize,
    /// Whether the server is watched.
    pub(crate) watch: bool,
    /// The door sees places where there are none.
    pub(crate) door_is_blind: bool,
}

impl Choice {
    pub(crate) fn of(backend: &Server) -> Self {
        Self {
            backend: backend.address.to_string(),
            backend_timeout: LONG,
            max_memory: 4 << 20,
            max_connections: 16,
            max_per_client: 16,
            watch: false,
            door_is_blind: false,
        }
    }
}

pub(crate) fn reactor() -> Reactor {
    let provider = open(ProviderKind::Iwarp).expect("the software RNIC");
    let reactor = Reactor::new(provider, ReactorOptions::default()).expect("a reactor");
    reactor.spawn().expect("a thread");
    reactor
}

impl World {
    pub(crate) fn new(choice: &Choice) -> Self {
        let (reactor, clients) = (reactor(), reactor());
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (sender, lines) = channel();
        let sender = Mutex::new(sender);
        let write = move |line: &str| {
            // A test that is over does not read them.
            let _ = sender.lock().expect("a sender").send(line.to_owned());
        };
        let log = Log::new(true, write);
        let watch = Arc::new(Watch::default());
        let connections = Connections::new(choice.max_connections, choice.max_per_client);
        let connections = Arc::new(connections);
        let seen = match choice.door_is_blind {
            true => Arc::new(Connections::new(usize::MAX, usize::MAX)),
            false => connections.clone(),
        };
        let door = Door::new(Vec::new(), watch.clone(), seen, log.clone());
        let door = door.expect("a door");
        let mut options = ChannelOptions::default();
        options.listen.filter = door.filter();
        let listener = reactor.listen(&[any], options);
        let listener = Arc::new(listener.expect("a listener"));
        let backend = Backend::new(&choice.backend, choice.backend_timeout);
        if choice.watch {
            let started = watch.start(backend.clone(), choice.backend_timeout, log.clone());
            started.expect("a thread");
        }
        let settings = Settings {
            backend,
            watch,
            backend_timeout: choice.backend_timeout,
            max_memory: choice.max_memory,
            log,
        };
        let accepting = {
            let (listener, connections) = (listener.clone(), connections.clone());
            thread::spawn(move || serve::accept(&listener, &connections, &settings))
        };
        Self {
            address: listener.local_addresses()[0],
            reactor,
            clients,
            listener,
            connections,
            door,
            lines: Mutex::new(lines),
            accepting: Some(accepting),
        }
    }

    /// A client that has negotiated the dialect and has logged in.
    pub(crate) fn client(&self, dialect: u16) -> Client {
        let client = self.bare_client();
        client.send(&plain(NEGOTIATE, 0));
        let answer = client.receive();
        assert_eq!(get16(&answer, 68), dialect);
        client.send(&plain(SESSION_SETUP, 1_000_000));
        assert_eq!(status(&client.receive()), SUCCESS);
        client
    }

    pub(crate) fn bare_client(&self) -> Client {
        let channel = self
            .clients
            .connect(self.address, ChannelOptions::default());
        Client {
            channel: channel.wait().expect("a channel"),
        }
    }

    /// A client that the gateway sends away, which may happen while it connects.
    pub(crate) fn unwelcome_client(&self) {
        let channel = self
            .clients
            .connect(self.address, ChannelOptions::default());
        if let Ok(channel) = channel.wait() {
            Client { channel }.ends();
        }
    }

    /// The next line of the gateway.
    pub(crate) fn line(&self) -> String {
        let lines = self.lines.lock().expect("lines");
        lines.recv_timeout(LONG).expect("a line")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.connections.stop(Instant::now());
        self.listener.close();
        if let Some(accepting) = self.accepting.take() {
            let result = accepting.join();
            if !thread::panicking() {
                assert_eq!(result.expect("no panic"), Ok(()));
            }
        }
        self.connections.wait_until_empty(LONG);
        self.clients.shutdown(Duration::from_secs(5));
        self.reactor.shutdown(Duration::from_secs(5));
    }
}

/// An SMB client as far as it takes.
pub(crate) struct Client {
    pub(crate) channel: Channel,
}

impl Client {
    pub(crate) fn send(&self, message: &[u8]) {
        self.channel
            .send_blocking(message, Some(LONG))
            .expect("sent");
    }

    pub(crate) fn receive(&self) -> Message {
        let message = self.channel.recv_blocking(Some(LONG));
        message.expect("a message").expect("no end")
    }

    /// Memory for the peer to read or to write, with what it holds.
    pub(crate) fn expose(&self, data: &[u8], access: RemoteAccess) -> Exposed {
        let mut memory = self.channel.allocate(data.len()).wait().expect("memory");
        memory.copy_from_slice(data);
        self.channel.expose(memory, access).expect("exposed")
    }

    /// Reads into `len` bytes of memory; the answer, and the memory.
    pub(crate) fn read(&self, id: u64, len: u32, channel: u32) -> (Message, IoBuf) {
        let mut exposed = self.expose(&vec![0xEE; len as usize], RemoteAccess::Write);
        if channel == INVALIDATE {
            exposed.offer_invalidation();
        }
        self.send(&read(id, len, channel, exposed.descriptors()));
        self.finish(id, exposed)
    }

    /// Writes `data`; the answer.
    pub(crate) fn write(&self, id: u64, data: &[u8], channel: u32) -> Message {
        let mut exposed = self.expose(data, RemoteAccess::Read);
        if channel == INVALIDATE {
            exposed.offer_invalidation();
        }
        self.send(&write(
            id,
            data.len() as u32,
            channel,
            exposed.descriptors(),
        ));
        self.finish(id, exposed).0
    }

    fn finish(&self, id_: u64, exposed: Exposed) -> (Message, IoBuf) {
        let token = exposed.descriptors()[0].token;
        loop {
            let answer = self.receive();
            assert_eq!(id(&answer), id_);
            if status(&answer) == PENDING {
                assert_eq!(answer.invalidated(), None);
                continue;
            }
            if let Some(invalidated) = answer.invalidated() {
                assert_eq!(invalidated.0, token);
            }
            return (answer, exposed.reclaim().wait().expect("the memory"));
        }
    }

    /// The connection must end.
    pub(crate) fn ends(&self) {
        let end = self.channel.closed_blocking(Some(LONG));
        assert!(end.is_some(), "the connection goes on");
    }
}

/// What the server does with a message.
pub(crate) type Script = fn(&Tcp, &[u8], &mut Vec<u8>);

/// An SMB server on TCP that does what its script says; by default it has one file.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    /// Messages that have arrived.
    pub(crate) seen: Mutex<Receiver<Vec<u8>>>,
}

impl Server {
    pub(crate) fn new(file: Vec<u8>, script: Script) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let (sender, seen) = channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.expect("a connection");
                let tcp = Tcp::from_stream(stream, TcpOptions::default()).expect("a connection");
                let (sender, mut file) = (sender.clone(), file.clone());
                thread::spawn(move || serve(&tcp, &sender, &mut file, script));
            }
        });
        Self {
            address,
            seen: Mutex::new(seen),
        }
    }

    /// The next message that has arrived, but those by which a client begins.
    pub(crate) fn seen(&self) -> Vec<u8> {
        let seen = self.seen.lock().expect("messages");
        loop {
            let message = seen.recv_timeout(LONG).expect("a message at the server");
            let begins = message.starts_with(b"\xFESMB")
                && matches!(command(&message), NEGOTIATE | SESSION_SETUP);
            if !begins {
                return message;
            }
        }
    }
}

fn serve(tcp: &Tcp, seen: &Sender<Vec<u8>>, file: &mut Vec<u8>, script: Script) {
    while let Ok(Some(message)) = tcp.recv_blocking(None) {
        // The test may be over.
        let _ = seen.send(message.to_vec());
        match message.starts_with(b"\xFESMB").then(|| command(&message)) {
            Some(NEGOTIATE) => reply(tcp, &negotiate_answer(0x0311, 8 << 20, 8 << 20)),
            Some(SESSION_SETUP) => reply(tcp, &logged_in(&message)),
            _ => script(tcp, &message, file),
        }
    }
}

pub(crate) fn reply(tcp: &Tcp, message: &[u8]) {
    // The gateway may have ended the connection.
    let _ = tcp.send_blocking(message, Some(LONG));
}

/// A server that has one file: answers compounds as compounds.
pub(crate) fn file_server(tcp: &Tcp, message: &[u8], file: &mut Vec<u8>) {
    if !message.starts_with(b"\xFESMB") {
        return reply(tcp, message);
    }
    let answers: Vec<Vec<u8>> = split(message)
        .into_iter()
        .filter(|member| command(member) != CANCEL)
        .map(|member| file_answer(member, file))
        .collect();
    if !answers.is_empty() {
        reply(tcp, &compound(&answers));
    }
}

/// The answer to one request.
pub(crate) fn file_answer(request: &[u8], file: &mut Vec<u8>) -> Vec<u8> {
    let range = |len: usize| {
        let start = u64::from_le_bytes(request[72..80].try_into().expect("8 bytes")) as usize;
        start..start + len
    };
    match command(request) {
        READ => {
            let range = range(get32(request, 68) as usize);
            match file.get(range.start..file.len().min(range.end)) {
                Some(data) if !data.is_empty() => read_answer(request, SUCCESS, data),
                _ => error_answer(request, END_OF_FILE),
            }
        }
        WRITE => {
            let data = &request[usize::from(get16(request, 66))..];
            let data = &data[..get32(request, 68) as usize];
            let range = range(data.len());
            if range.end > 64 << 20 {
                return error_answer(request, DISK_FULL);
            }
            file.resize(file.len().max(range.end), 0);
            file[range].copy_from_slice(data);
            write_answer(request, data.len() as u32)
        }
        _ => answer(request, SUCCESS, &[4, 0, 0, 0]),
    }
}

/// With the offset in the file.
pub(crate) fn at(mut request: Vec<u8>, offset: u64) -> Vec<u8> {
    request[72..80].copy_from_slice(&offset.to_le_bytes());
    request
}

/// Content that differs from place to place.
pub(crate) fn content(len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}
