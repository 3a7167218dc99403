//! A client and a server around the rewriting, made of arbitrary bytes, and what must hold between
//! them whatever they do. For property tests and for fuzzing.
//!
//! While both keep the protocol's rules, everything is compared with a model. Once a message was
//! spoiled, what remains is that nothing panics and that outputs are well-formed.

use std::collections::{HashMap, HashSet, VecDeque};

use bytes::Bytes;

use crate::rewrite::{Data, Limits, Output, PREFIX, Piece, Rewriter, TransferId};
use crate::smb2::*;

const MAX_MEMORY: u64 = 1 << 15;
const MAX_READ: u32 = 8_000;

/// Runs what `bytes` say. With `spoil` some messages are spoiled.
pub(crate) fn run(bytes: &[u8], spoil: bool) {
    let mut world = World::new(Source { bytes }, spoil);
    while !world.over && !world.source.bytes.is_empty() {
        world.step();
    }
    if !world.wild && !world.over {
        world.finish();
    }
}

/// Where decisions come from; zeros at its end.
struct Source<'a> {
    bytes: &'a [u8],
}

impl Source<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.bytes.split_first() else {
            return 0;
        };
        self.bytes = rest;
        *first
    }

    fn below(&mut self, n: usize) -> usize {
        usize::from(self.byte()) % n
    }

    /// Small ones, and ones that memory for data has to wait for.
    fn length(&mut self) -> u32 {
        match self.below(4) {
            0 => 1 + u32::from(self.byte()),
            1 => 4096,
            2 => 1_500 + u32::from(self.byte()),
            _ => 30 * (1 + u32::from(self.byte())),
        }
    }
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Verbatim,
    Read(u32),
    Write(u32),
    Refused,
}

struct Sent {
    member: Vec<u8>,
    fate: Fate,
    token: Option<u32>,
}

struct World<'a> {
    source: Source<'a>,
    spoil: bool,
    /// A message was spoiled.
    wild: bool,
    /// The connection has ended.
    over: bool,
    rewriter: Rewriter,
    next_id: u64,
    /// What the client has sent, by id, until it is answered.
    sent: HashMap<u64, Sent>,
    /// Ids that the server has been sent.
    arrived: HashSet<u64>,
    /// Requests that the server has not answered finally.
    owed: Vec<Vec<u8>>,
    /// Those of them with an interim response.
    slow: HashSet<u64>,
    /// Answers of the server that the client has not seen, by id.
    answers: HashMap<u64, VecDeque<Vec<u8>>>,
    fetching: Vec<(TransferId, u32)>,
    fetched: HashMap<TransferId, u32>,
    placing: Vec<(TransferId, u32)>,
}

impl<'a> World<'a> {
    fn new(source: Source<'a>, spoil: bool) -> Self {
        let mut world = Self {
            source,
            spoil,
            wild: false,
            over: false,
            rewriter: Rewriter::new(Limits {
                max_transfer: MAX_READ,
                max_to_client: 1 << 24,
                max_backend: 1 << 14,
                max_memory: MAX_MEMORY,
            }),
            next_id: 2,
            sent: HashMap::new(),
            arrived: HashSet::new(),
            owed: Vec::new(),
            slow: HashSet::new(),
            answers: HashMap::new(),
            fetching: Vec::new(),
            fetched: HashMap::new(),
            placing: Vec::new(),
        };
        world.learn(0, plain(NEGOTIATE, 0), Fate::Verbatim, None);
        world.client_sends(plain(NEGOTIATE, 0));
        let negotiated = negotiate_answer(0x0302, MAX_READ, MAX_READ);
        world.owed.clear();
        world
            .answers
            .entry(0)
            .or_default()
            .push_back(negotiated.clone());
        world.server_sends(negotiated);
        let setup = plain(SESSION_SETUP, 1);
        world.learn(1, setup.clone(), Fate::Verbatim, None);
        world.client_sends(setup.clone());
        world.owed.clear();
        let answer = logged_in(&setup);
        world
            .answers
            .entry(1)
            .or_default()
            .push_back(answer.clone());
        world.server_sends(answer);
        world
    }

    fn step(&mut self) {
        match self.source.below(16) {
            0..5 if self.rewriter.takes_requests() => {
                let count = 1 + self.source.below(8).saturating_sub(4);
                let members: Vec<_> = (0..count).map(|_| self.request()).collect();
                self.client_sends(compound(&members));
            }
            5 if self.rewriter.takes_requests() => {
                let id = 1 + self.source.byte() as u64 % self.next_id;
                if id < self.next_id {
                    let mut members = vec![header(CANCEL, id)];
                    if self.source.below(4) == 0 {
                        let other = self.next_id;
                        self.next_id += 1;
                        let member = plain(CREATE, other);
                        self.learn(other, member.clone(), Fate::Verbatim, None);
                        members.push(member);
                    }
                    self.client_sends(compound(&members));
                }
            }
            6..9 => self.fetch_ends(),
            9..14 if self.rewriter.takes_responses() => self.server_answers(),
            14.. => self.place_ends(),
            _ => {}
        }
        if !self.wild && !self.over {
            let begun = |id| self.slow.contains(id);
            let awaits = !self.sent.keys().all(begun);
            assert_eq!(self.rewriter.awaits_answers(), awaits);
        }
    }

    /// All that is under way comes to its end.
    fn finish(&mut self) {
        self.spoil = false;
        for _ in 0..100_000 {
            if self.sent.is_empty() && self.rewriter.is_idle() {
                break;
            }
            self.fetch_ends();
            self.server_answers();
            self.place_ends();
        }
        let left: Vec<_> = self.sent.keys().collect();
        assert!(left.is_empty(), "without answer: {left:?}");
        assert!(self.rewriter.is_idle());
        assert!(self.fetching.is_empty() && self.fetched.is_empty() && self.placing.is_empty());
        assert!(self.rewriter.takes_requests() && self.rewriter.takes_responses());
    }

    fn learn(&mut self, id: u64, member: Vec<u8>, fate: Fate, token: Option<u32>) {
        let sent = Sent {
            member,
            fate,
            token,
        };
        assert!(self.sent.insert(id, sent).is_none());
    }

    /// A new request of the client.
    fn request(&mut self) -> Vec<u8> {
        let id = self.next_id;
        self.next_id += 1;
        let length = self.source.length();
        let channel = if self.source.below(2) == 0 {
            V1
        } else {
            INVALIDATE
        };
        let memory = memory(id, length, 1 + length / 3);
        let token = (channel == INVALIDATE).then_some(token(id));
        let (member, fate, token) = match self.source.below(10) {
            0 => (plain(CREATE, id), Fate::Verbatim, None),
            1 => (read(id, length, NONE, &[]), Fate::Verbatim, None),
            2 => (inline_write(id, &[1; 999]), Fate::Verbatim, None),
            3 => {
                let mut signed = write(id, length, channel, &memory);
                put32(&mut signed, 16, SIGNED);
                (signed, Fate::Verbatim, None)
            }
            4 => (read(id, 0, channel, &memory), Fate::Refused, token),
            5 => (write(id, MAX_READ + 1, V1, &memory), Fate::Refused, None),
            6 | 7 => (
                read(id, length, channel, &memory),
                Fate::Read(length),
                token,
            ),
            _ => (
                write(id, length, channel, &memory),
                Fate::Write(length),
                token,
            ),
        };
        self.learn(id, member.clone(), fate, token);
        member
    }

    fn fetch_ends(&mut self) {
        if !self.fetching.is_empty() {
            let at = self.source.below(self.fetching.len());
            let (transfer, len) = self.fetching.swap_remove(at);
            self.fetched.insert(transfer, len);
            self.rewriter.read_finished(transfer);
            self.outputs(None);
        }
    }

    fn place_ends(&mut self) {
        if !self.placing.is_empty() {
            let at = self.source.below(self.placing.len());
            let (transfer, _) = self.placing.swap_remove(at);
            self.rewriter.placed(transfer);
            self.outputs(None);
        }
    }

    /// The server answers some of what it owes, in one message.
    fn server_answers(&mut self) {
        let mut answers = Vec::new();
        for _ in 0..1 + self.source.below(8).saturating_sub(5) {
            if self.owed.is_empty() {
                break;
            }
            let at = self.source.below(self.owed.len());
            let request = self.owed.swap_remove(at);
            let id = id(&request);
            let slow = self.slow.contains(&id);
            let mut answer = self.server_answer(&request);
            if slow {
                // [MS-SMB2] 2.2.1.1: all answers of what is asynchronous have the flag and its id.
                answer[16..20].copy_from_slice(&interim(&request)[16..20]);
                answer[32..40].copy_from_slice(&interim(&request)[32..40]);
            }
            self.answers
                .entry(id)
                .or_default()
                .push_back(answer.clone());
            answers.push(answer);
        }
        if !answers.is_empty() {
            self.server_sends(compound(&answers));
        }
    }

    fn server_answer(&mut self, request: &[u8]) -> Vec<u8> {
        let id = id(request);
        match self.source.below(8) {
            0 if self.slow.insert(id) => {
                self.owed.push(request.to_vec());
                return interim(request);
            }
            1 => return error_answer(request, DISK_FULL),
            // Of a spoiled message.
            _ if request.len() < 72 => return error_answer(request, INVALID_PARAMETER),
            _ => {}
        }
        match command(request) {
            READ => {
                let most = get32(request, 68).min(MAX_READ);
                let len = match self.source.below(3) {
                    0 => most,
                    1 => most / 2,
                    _ => most.min(self.source.byte().into()),
                };
                read_answer(request, SUCCESS, &data(id, len))
            }
            WRITE => write_answer(request, get32(request, 68)),
            _ => answer(request, SUCCESS, &[4, 0, 0, 0]),
        }
    }

    fn client_sends(&mut self, mut message: Vec<u8>) {
        self.spoil(&mut message);
        self.over |= self.rewriter.handle_request(message.into()).is_err();
        assert!(self.wild || !self.over);
        self.outputs(None);
    }

    fn server_sends(&mut self, mut message: Vec<u8>) {
        self.spoil(&mut message);
        // As from TCP: in two parts where there is room for the second.
        let mut payload = None;
        if message.len() > PREFIX
            && let Some(room) = self.rewriter.room_for(&message[..PREFIX])
            && (room >= message.len() - PREFIX || self.source.below(2) == 0)
        {
            payload = Some(message.split_off(PREFIX));
        }
        let len = payload.as_ref().map_or(0, Vec::len);
        let result = self.rewriter.handle_response(message.into(), len);
        assert!(self.wild || result.is_ok(), "{result:?}");
        self.over |= result.is_err();
        self.outputs(payload.as_deref());
    }

    /// Now and then some bytes of a message become others.
    fn spoil(&mut self, message: &mut Vec<u8>) {
        if !self.spoil || self.source.below(4) != 0 {
            return;
        }
        self.wild = true;
        for _ in 0..self.source.below(4) {
            let at = self.source.below(message.len().min(256));
            message[at] = self.source.byte();
        }
        if self.source.below(8) == 0 {
            let len = self.source.below(message.len().min(256)) + 1;
            message.truncate(len);
        }
    }

    fn outputs(&mut self, payload: Option<&[u8]>) {
        while let Some(output) = self.rewriter.poll_output() {
            match output {
                Output::Forward(message) => self.at_server(&message),
                Output::ForwardPieces(pieces) => {
                    let message = self.assemble(pieces);
                    self.at_server(&message);
                }
                Output::Fetch {
                    transfer,
                    len,
                    from,
                } => {
                    assert!(u64::from(len) <= from.len() && len > 0);
                    self.fetching.push((transfer, len));
                }
                Output::Answer {
                    message,
                    invalidate,
                } => self.at_client(&message, invalidate, None),
                Output::Place {
                    transfer,
                    data,
                    to,
                    response,
                    invalidate,
                } => {
                    let data = match data {
                        Data::Payload(range) => Bytes::copy_from_slice(
                            &payload.expect("a payload that was just given")[range],
                        ),
                        Data::Message(bytes) => bytes,
                    };
                    assert!(data.len() as u64 <= to.len() && !data.is_empty());
                    self.placing.push((transfer, data.len() as u32));
                    self.at_client(&response, invalidate, Some(&data));
                }
                Output::Warn(_) => {}
            }
        }
        // An interim response gives memory back that its answer takes again.
        if !self.wild && self.slow.is_empty() {
            let under_way = self.fetching.iter().chain(&self.placing);
            let under_way = under_way.map(|(_, len)| u64::from(*len)).sum::<u64>();
            let fetched: u64 = self.fetched.values().map(|len| u64::from(*len)).sum();
            let alone = 4 * u64::from(MAX_READ);
            assert!(under_way + fetched <= MAX_MEMORY.max(alone));
        }
    }

    fn assemble(&mut self, pieces: Vec<Piece>) -> Vec<u8> {
        let mut message = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Bytes(bytes) => message.extend_from_slice(&bytes),
                Piece::Fetched(transfer) => {
                    let len = self.fetched.remove(&transfer);
                    let len = len.expect("data that has been fetched and not been used");
                    message.resize(message.len() + len as usize, 0x77);
                }
            }
        }
        message
    }

    /// The server gets a message.
    fn at_server(&mut self, message: &[u8]) {
        if !message.starts_with(b"\xFESMB") {
            assert!(self.wild);
            return;
        }
        for member in split(message) {
            let id = id(member);
            if self.wild {
                self.owed.push(member.to_vec());
                continue;
            }
            if command(member) == CANCEL {
                assert!(
                    self.arrived.contains(&id),
                    "a CANCEL before its request {id}"
                );
                continue;
            }
            assert!(self.arrived.insert(id), "{id} arrives twice");
            let sent = self.sent.get(&id).expect("a request of the client");
            // CreditCharge, CreditRequest, tree and session.
            assert_eq!(member[..8], sent.member[..8]);
            assert_eq!(member[14..20], sent.member[14..20]);
            assert_eq!(member[24..64], sent.member[24..64]);
            match sent.fate {
                Fate::Verbatim => {
                    assert_eq!(member[24..sent.member.len()], sent.member[24..]);
                }
                Fate::Read(length) if command(member) == READ => {
                    assert!(member.len() == 113 || member.len() == 120);
                    assert_eq!((get32(member, 68), get32(member, 100)), (length, 0));
                }
                Fate::Write(length) if command(member) == WRITE => {
                    assert_eq!((get16(member, 66), get32(member, 68)), (112, length));
                    let (data, rest) = member[112..].split_at(length as usize);
                    assert!(data.iter().all(|byte| *byte == 0x77));
                    assert!(rest.len() < 8 && rest.iter().all(|byte| *byte == 0));
                }
                // Those that are refused, and members of a compound that is too large.
                _ => assert_eq!((command(member), get16(member, 64)), (ECHO, 4)),
            }
            self.owed.push(member.to_vec());
        }
    }

    /// The client gets a message, behind the data of a READ.
    fn at_client(&mut self, message: &[u8], invalidate: Option<u32>, data_: Option<&[u8]>) {
        if self.wild {
            return;
        }
        let members = split(message);
        let last = members.len() - 1;
        for (at, member) in members.into_iter().enumerate() {
            let id = id(member);
            let answers = self.answers.get_mut(&id).expect("an answer of the server");
            let given = answers.pop_front().expect("an answer of the server");
            // Credits are the server's.
            assert_eq!(member[14..20], given[14..20]);
            assert_eq!(member[24..64], given[24..64]);
            let sent = self.sent.get(&id).expect("a request of the client");
            assert_eq!(command(member), command(&sent.member));
            if status(&given) == PENDING {
                assert!(at < last || invalidate.is_none());
                continue;
            }
            if sent.token.is_some() {
                assert_eq!((at, invalidate), (last, sent.token), "{id}");
            } else {
                assert!(at < last || invalidate.is_none(), "{id}");
            }
            let echoed = command(&given) == ECHO;
            if echoed {
                assert_ne!(status(member), SUCCESS);
                assert_eq!(member[64..73], [9, 0, 0, 0, 0, 0, 0, 0, 0]);
            } else {
                assert_eq!(status(member), status(&given));
            }
            match sent.fate {
                Fate::Read(_) if !echoed && status(&given) == SUCCESS => {
                    let len = get32(&given, 68);
                    assert_eq!(member.len(), 80);
                    assert_eq!((get32(member, 68), get32(member, 72)), (0, len));
                    let expected = data(id, len);
                    assert_eq!(data_.unwrap_or_default(), expected);
                    assert_eq!(at, last);
                }
                _ if echoed => {}
                _ => assert_eq!(member[64..given.len()], given[64..]),
            }
            self.sent.remove(&id);
        }
    }
}

/// What a server has for a READ.
fn data(id: u64, len: u32) -> Vec<u8> {
    (0..len).map(|i| (i as u64 * 31 + id) as u8).collect()
}
