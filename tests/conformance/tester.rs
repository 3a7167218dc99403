//! The tester: a peer driven by hand, the messages of the cases, and what a case demands of a server.

use super::*;

/// A server with the given protocol settings.
pub(crate) fn serve(
    config: Config,
    answer: impl Fn(&[u8]) -> Vec<u8> + Send + Clone + 'static,
) -> Server {
    let mut options = ChannelOptions::default();
    options.protocol = config;
    let provider = open(ProviderKind::Iwarp).expect("the software RNIC");
    Server::start(provider, options, answer)
}

/// A server that takes WRITEs: it hands them out here, and answers each with 80 bytes.
pub(crate) fn store(config: Config) -> (Server, Receiver<Vec<u8>>) {
    let (sender, receiver) = channel();
    let server = serve(config, move |message| {
        sender.send(message.to_vec()).expect("the test lives");
        vec![0x5A; ANSWER]
    });
    (server, receiver)
}

/// A server that sends back what it gets.
pub(crate) fn echo(config: Config) -> Server {
    serve(config, <[u8]>::to_vec)
}

/// The tester's connection, and its view of the credits.
pub(crate) struct Tester {
    pub(crate) peer: Peer,
    /// Messages it may send.
    pub(crate) credits: u32,
    /// Receives it has granted.
    pub(crate) granted: u32,
}

impl Tester {
    pub(crate) fn connect(server: &Server) -> Self {
        Self {
            peer: Peer::connect(server.address),
            credits: 0,
            granted: 0,
        }
    }

    /// Connects and negotiates.
    pub(crate) fn negotiated(
        server: &Server,
        request: &NegotiateRequest,
    ) -> (Self, NegotiateResponse) {
        let mut tester = Self::connect(server);
        let response = tester.negotiate(&request.encode()).expect("a response");
        check_response(request, &response);
        tester.credits = response.credits_granted.into();
        (tester, response)
    }

    pub(crate) fn negotiate(&mut self, bytes: &[u8]) -> Option<NegotiateResponse> {
        self.peer.send(bytes);
        let message = self.peer.message(LONG)?;
        assert_eq!(message.len(), NegotiateResponse::LEN);
        assert_eq!(message[6..8], [0, 0], "reserved");
        Some(NegotiateResponse::parse(&message).expect("a negotiate response"))
    }

    /// Sends, counting the credits; they are not waited for.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.credits = self.credits.checked_sub(1).expect("a credit");
        if let Ok(header) = DataTransfer::parse(bytes) {
            self.granted += u32::from(header.credits_granted);
        }
        self.peer.send(bytes);
    }

    /// The next message, checked and counted.
    pub(crate) fn receive(&mut self, within: Duration) -> Option<(DataTransfer, Vec<u8>)> {
        let message = self.peer.message(within)?;
        self.granted = (self.granted.checked_sub(1)).expect("the server had a credit for it");
        let header = DataTransfer::parse(&message).expect("a data transfer message");
        assert!(header.credits_requested > 0);
        assert_eq!(message[6..8], [0, 0], "reserved");
        if header.data_length == 0 {
            assert_eq!(message.len(), DataTransfer::LEN, "no padding");
            assert_eq!((header.data_offset, header.remaining_data_length), (0, 0));
        } else {
            assert!(header.data_offset.is_multiple_of(8));
        }
        self.credits += u32::from(header.credits_granted);
        let payload = header.payload(message.len()).expect("within the message");
        Some((header, message[payload].to_vec()))
    }

    /// Waits until it may send; nothing but grants may come.
    pub(crate) fn await_credit(&mut self) {
        while self.credits == 0 {
            let (header, _) = self.receive(LONG).expect("a grant");
            assert_eq!((header.data_length, header.flags), (0, 0));
            assert!(header.credits_granted > 0);
        }
    }

    /// The next message that is no mere grant.
    pub(crate) fn answer(&mut self) -> (DataTransfer, Vec<u8>) {
        loop {
            let (header, payload) = self.receive(LONG).expect("an answer");
            if header.data_length > 0 {
                return (header, payload);
            }
        }
    }
}

/// What the suite checks in every response that is a success.
pub(crate) fn check_response(request: &NegotiateRequest, response: &NegotiateResponse) {
    assert_eq!(
        (
            response.min_version,
            response.max_version,
            response.negotiated_version
        ),
        (0x0100, 0x0100, 0x0100)
    );
    assert!((1..=request.credits_requested).contains(&response.credits_granted));
    assert!(response.credits_requested > 0);
    assert_eq!(response.status, STATUS_SUCCESS);
    assert!(response.max_read_write_size >= 1 << 20);
    assert!(response.max_receive_size >= 128);
    if request.preferred_send_size >= 128 {
        assert!(response.max_receive_size <= request.preferred_send_size);
    }
    assert!((128..=request.max_receive_size).contains(&response.preferred_send_size));
    assert!(response.max_fragmented_size >= 131_072);
}

/// The request of most negotiation cases.
pub(crate) fn request() -> NegotiateRequest {
    NegotiateRequest {
        min_version: 0x0100,
        max_version: 0x0100,
        credits_requested: 10,
        preferred_send_size: 1024,
        max_receive_size: 1024,
        max_fragmented_size: 131_072,
    }
}

/// The request of the data transfer cases.
pub(crate) fn request_255() -> NegotiateRequest {
    NegotiateRequest {
        credits_requested: 255,
        ..request()
    }
}

/// A message with payload behind four bytes of padding.
pub(crate) fn data_message(granted: u16, remaining: usize, data: &[u8]) -> Vec<u8> {
    let header = DataTransfer {
        credits_requested: 255,
        credits_granted: granted,
        remaining_data_length: remaining as u32,
        data_offset: 24,
        data_length: data.len() as u32,
        ..DataTransfer::default()
    };
    [&header.encode()[..], &[0; 4], data].concat()
}

/// A message without payload.
pub(crate) fn control(granted: u16, flags: u16) -> Vec<u8> {
    let header = DataTransfer {
        credits_requested: 255,
        credits_granted: granted,
        flags,
        ..DataTransfer::default()
    };
    header.encode().to_vec()
}

/// The payload cut into messages that grant one credit each.
pub(crate) fn cut(data: &[u8], size: usize) -> impl Iterator<Item = Vec<u8>> {
    let mut remaining = data.len();
    data.chunks(size).map(move |chunk| {
        remaining -= chunk.len();
        data_message(1, remaining, chunk)
    })
}

/// `bytes` with zeros behind, up to `len`.
pub(crate) fn padded(mut bytes: Vec<u8>, len: usize) -> Vec<u8> {
    bytes.resize(len, 0);
    bytes
}

/// Printable bytes, as in the suite's files.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| b' ' + (n * 31 % 95) as u8).collect()
}

/// A WRITE: every message as credits allow, then the content arrived and the answer is right.
pub(crate) fn write(
    tester: &mut Tester,
    stored: &Receiver<Vec<u8>>,
    messages: impl Iterator<Item = Vec<u8>>,
    content: &[u8],
) {
    for message in messages {
        tester.await_credit();
        tester.send(&message);
    }
    let (header, payload) = tester.answer();
    assert_eq!(header.remaining_data_length, 0);
    assert_eq!(payload, [0x5A; ANSWER]);
    assert!(stored.recv_timeout(LONG).expect("the content") == content);
}

/// The server ends a connection over its first bytes, without an answer, and serves the next.
pub(crate) fn negotiate_refused(bytes: &[u8]) {
    let server = echo(Config::default());
    let mut tester = Tester::connect(&server);
    tester.peer.send(bytes);
    assert!(tester.peer.ends(DISCONNECT), "still connected");
    assert_eq!(tester.peer.message(Duration::ZERO), None, "no answer");
    let deadline = Instant::now() + LONG;
    while server.listener.failed_handshakes() == 0 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(server.listener.failed_handshakes(), 1);
    Tester::negotiated(&server, &request());
}

/// The server ends the connection over the last of these messages, for this reason, and gives its
/// application nothing. Credits are not waited for: the server grants as many as it is asked for.
pub(crate) fn refused(messages: &[Vec<u8>], reason: impl Into<smbdirect::proto::DisconnectReason>) {
    let config = Config {
        credit_profile: CreditProfile::Full,
        ..Config::default()
    };
    let (server, stored) = store(config);
    let (mut tester, _) = Tester::negotiated(&server, &request_255());
    for message in messages {
        tester.send(message);
    }
    assert!(tester.peer.ends(DISCONNECT), "still connected");
    assert_eq!(server.end(), DisconnectReason::Protocol(reason.into()));
    assert!(stored.try_recv().is_err(), "something was delivered");
}
