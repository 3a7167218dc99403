//! The state machine that joins negotiation, credits, fragments and timers.

mod negotiation;

use std::time::Instant;

use super::credits::{Credits, Purpose, Spend};
use super::fragment::{Piece, Reassembler, SendQueue};
use super::timer::{Probe, Timer};
use super::wire::{
    self, DATA_OFFSET, DataTransfer, FLAG_RESPONSE_REQUESTED, NEGOTIATE_RECEIVE_SIZE,
    NegotiateResponse,
};
use super::{
    Config, ConfigError, CreditSnapshot, Delivery, DisconnectReason, Event, Loss, MessageId,
    Parameters, PeerMisbehaved, SendError, Stats, Timeout, Transmit, negotiate,
};

/// Which side of the connection this is ([MS-SMBD] 3.1.1.1 `Connection.Role`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Connects, and sends the first message (an SMB client).
    Initiator,
    /// Accepts (an SMB server).
    Acceptor,
}

/// One SMB Direct connection, sans I/O.
///
/// # Inputs
/// - what the RDMA device reports: [`handle_established`](Self::handle_established),
///   [`handle_receive`](Self::handle_receive), [`handle_lost`](Self::handle_lost);
/// - what the driver did: [`handle_receives_posted`](Self::handle_receives_posted),
///   [`handle_receives_unavailable`](Self::handle_receives_unavailable);
/// - time: [`handle_timeout`](Self::handle_timeout);
/// - the application: [`send`](Self::send), [`set_application_ready`](Self::set_application_ready),
///   [`close`](Self::close), [`abort`](Self::abort).
///
/// Completions of sends are no input: the driver counts its own free slots.
///
/// # Outputs
/// After any input, and in this order:
/// 1. [`receives_wanted`](Self::receives_wanted): post that many receives of
///    [`receive_size`](Self::receive_size) bytes, then say so. A credit is granted only for a
///    receive that was reported as posted.
/// 2. [`poll_transmit`](Self::poll_transmit) until it gives None, posting each Send in the order
///    given.
/// 3. [`poll_event`](Self::poll_event) until it gives None. An event may allow more to be sent, so
///    look at 1 again.
/// 4. [`poll_timeout`](Self::poll_timeout): when to call [`handle_timeout`](Self::handle_timeout).
///
/// One receive must be posted, and reported, before `rdma_connect` or `rdma_accept`; it takes the
/// negotiate message.
///
/// After [`Event::Disconnect`] everything is ignored, whatever still arrives.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct Connection {
    role: Role,
    config: Config,
    phase: Phase,
    /// The RDMA connection is up.
    established: bool,
    /// The receive for the negotiate message was posted.
    negotiate_posted: bool,
    credits: Credits,
    queue: SendQueue,
    reassembler: Reassembler,
    timer: Timer,
    probe: Probe,
    /// `Connection.SendImmediate`: the peer asked for an answer and nothing was sent since.
    answer_owed: bool,
    closing: bool,
    /// The last look at the queue found no credit; counted once per wait.
    waiting_for_credit: bool,
    parameters: Option<Parameters>,
    negotiated: bool,
    reason: Option<DisconnectReason>,
    disconnect: Option<Event>,
    stats: Stats,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Initiator: the request is to be sent once the connection is up. ACTIVE in the specification.
    SendRequest,
    /// Initiator: the request was sent.
    AwaitResponse,
    /// Initiator: the response was good; receives are to be posted.
    PostReceives,
    /// Acceptor: nothing received yet. PASSIVE in the specification.
    AwaitRequest,
    /// Acceptor: the request was good; receives are to be posted and the response to be sent.
    SendResponse,
    /// Acceptor: the request was refused; the response that says so is to be sent.
    SendFailure { status: u32 },
    /// Negotiated.
    Established,
    /// Ended.
    Closed,
}

impl Connection {
    /// A connection that is about to be connected or accepted. The negotiation timer runs from
    /// `now`.
    ///
    /// # Errors
    /// What [`Config::validate`] says.
    pub fn new(role: Role, config: &Config, now: Instant) -> Result<Self, ConfigError> {
        config.validate()?;
        let (phase, timeout) = match role {
            Role::Initiator => (Phase::SendRequest, config.initiator_timeout),
            Role::Acceptor => (Phase::AwaitRequest, config.acceptor_timeout),
        };
        Ok(Self {
            role,
            phase,
            established: false,
            negotiate_posted: false,
            credits: Credits::new(config),
            queue: SendQueue::default(),
            reassembler: Reassembler::default(),
            timer: Timer::start(now, timeout),
            probe: Probe::None,
            answer_owed: false,
            closing: false,
            waiting_for_credit: false,
            parameters: None,
            negotiated: false,
            reason: None,
            disconnect: None,
            stats: Stats::default(),
            config: config.clone(),
        })
    }

    // ---- What the device reports and the driver did

    /// The RDMA connection is up. Some devices report the first receive before this; that is fine.
    pub fn handle_established(&mut self, _now: Instant) {
        self.established = true;
    }

    /// The driver has posted `count` more receives.
    pub fn handle_receives_posted(&mut self, count: usize) {
        if count == 0 {
            return;
        }
        match self.phase {
            Phase::SendRequest | Phase::AwaitResponse | Phase::AwaitRequest => {
                self.negotiate_posted = true;
            }
            Phase::SendFailure { .. } | Phase::Closed => {}
            Phase::PostReceives | Phase::SendResponse | Phase::Established => {
                self.credits
                    .receives_posted(u32::try_from(count).unwrap_or(u32::MAX));
                if self.phase == Phase::PostReceives {
                    self.enter_established();
                }
            }
        }
    }

    /// The driver cannot post a single receive, and will not be able to. Before the end of
    /// negotiation this ends the connection (the acceptor tells the initiator so first); afterwards
    /// it changes nothing.
    pub fn handle_receives_unavailable(&mut self) {
        match self.phase {
            Phase::SendRequest | Phase::AwaitResponse | Phase::AwaitRequest
                if !self.negotiate_posted =>
            {
                self.disconnect(DisconnectReason::NoReceives, false);
            }
            Phase::PostReceives => self.disconnect(DisconnectReason::NoReceives, false),
            Phase::SendResponse if self.credits.posted() == 0 => {
                // [MS-SMBD] 3.1.5.6: without a receive, the answer is a failure.
                self.refuse(
                    wire::STATUS_INSUFFICIENT_RESOURCES,
                    DisconnectReason::NoReceives,
                );
            }
            _ => {}
        }
    }

    /// A receive completed with these bytes. `invalidated`: the local steering tag that the device
    /// says the peer invalidated along with it.
    ///
    /// The range in the answer is within `message`. The receive is used up, whatever the answer.
    pub fn handle_receive(
        &mut self,
        now: Instant,
        message: &[u8],
        invalidated: Option<u32>,
    ) -> Delivery {
        let result = match self.phase {
            Phase::AwaitRequest => self.receive_request(message),
            Phase::AwaitResponse => self.receive_response(now, message),
            Phase::SendRequest => Err(PeerMisbehaved::MessageBeforeRequest.into()),
            // Ours to speak: no credit was granted yet, or none counts any more.
            Phase::PostReceives | Phase::SendResponse => {
                Err(PeerMisbehaved::SentWithoutCredit.into())
            }
            Phase::SendFailure { .. } | Phase::Closed => return Delivery::Nothing,
            Phase::Established => self.receive_data_transfer(now, message, invalidated),
        };
        result.unwrap_or_else(|reason| {
            self.disconnect(reason, false);
            Delivery::Nothing
        })
    }

    /// The RDMA connection is gone.
    pub fn handle_lost(&mut self, _now: Instant, loss: Loss) {
        self.disconnect(loss.into(), false);
    }

    /// Time has passed. Does nothing before the time of [`poll_timeout`](Self::poll_timeout). To be
    /// called only when no receive is waiting to be handled: a process that was suspended must not
    /// take its peers for dead.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.credits.handle_timeout(now);
        if !self.timer.expired(now) {
            return;
        }
        match self.phase {
            Phase::Closed => {}
            // [MS-SMBD] 3.1.6.1.
            Phase::SendRequest
            | Phase::AwaitResponse
            | Phase::PostReceives
            | Phase::AwaitRequest
            | Phase::SendResponse
            | Phase::SendFailure { .. } => self.disconnect(Timeout::Negotiation.into(), false),
            // [MS-SMBD] 3.1.6.2. The timer restarts even if the probe cannot leave for want of
            // credits, else nothing would ever end the connection.
            Phase::Established if self.probe == Probe::None => {
                self.probe = Probe::Pending;
                self.timer.restart(now, self.config.keepalive_timeout);
            }
            Phase::Established => {
                let starved = self.credits.is_stalled() && self.credits.peer_is_starved();
                self.disconnect(
                    if starved {
                        DisconnectReason::ApplicationStalled
                    } else {
                        Timeout::Keepalive.into()
                    },
                    false,
                );
            }
        }
    }

    // ---- The application

    /// Queues a message of `len` bytes. It will be sent whole, behind all messages queued before
    /// it. `token`: the peer's steering tag to invalidate with the message's last fragment.
    ///
    /// The queue has no bound here; its owner bounds it in bytes, see
    /// [`queued_bytes`](Self::queued_bytes).
    ///
    /// # Errors
    /// [`SendError`]; nothing was queued then.
    pub fn send(&mut self, len: u64, token: Option<u32>) -> Result<MessageId, SendError> {
        if self.phase == Phase::Closed || self.closing || self.reason.is_some() {
            return Err(SendError::Closed);
        }
        let parameters = match &self.parameters {
            Some(parameters) if self.phase == Phase::Established => parameters,
            _ => return Err(SendError::NotEstablished),
        };
        if len == 0 {
            return Err(SendError::Empty);
        }
        // [MS-SMBD] 3.1.4.2.
        let max = parameters.max_fragmented_send_size;
        match u32::try_from(len) {
            Ok(len) if len <= max => Ok(self.queue.push(len, token)),
            _ => Err(SendError::TooLarge { len, max }),
        }
    }

    /// Whether the application takes its messages. While it does not, no receives are asked for
    /// that could hold more of them, and the peer runs out of credits. Keepalives go on: what they
    /// need comes from receives that held no data and from [`STALL_RESERVE`](super::STALL_RESERVE);
    /// when that is used up, the connection ends with [`DisconnectReason::ApplicationStalled`].
    /// Messages that the application sends meanwhile go out too: for each eight of them the peer,
    /// whose grants they need, may send one.
    pub fn set_application_ready(&mut self, ready: bool) {
        self.credits.set_application_ready(ready);
    }

    /// Closes in order: takes no more messages, sends what is queued, then gives
    /// [`Event::Disconnect`] with [`DisconnectReason::LocalClose`] and `flush` set. Messages
    /// received meanwhile are still delivered. How long this may take is for the driver to limit,
    /// with [`abort`](Self::abort).
    pub fn close(&mut self) {
        self.closing = true;
        match self.phase {
            Phase::Established => self.finish_close(),
            // The failure response leaves first.
            Phase::SendFailure { .. } => {}
            _ => self.disconnect(DisconnectReason::LocalClose, false),
        }
    }

    /// Ends the connection now; queued messages are lost.
    pub fn abort(&mut self) {
        self.disconnect(DisconnectReason::LocalClose, false);
    }

    // ---- Outputs

    /// How many more receives to post now. At least one is wanted before connecting or accepting.
    ///
    /// Never more than [`Config::receive_credit_max`] + 1 are posted at a time.
    pub fn receives_wanted(&self) -> usize {
        match self.phase {
            Phase::SendRequest | Phase::AwaitResponse | Phase::AwaitRequest => {
                usize::from(!self.negotiate_posted)
            }
            Phase::PostReceives | Phase::SendResponse | Phase::Established => {
                self.credits.wanted() as usize
            }
            Phase::SendFailure { .. } | Phase::Closed => 0,
        }
    }

    /// Bytes of each receive to be posted now: 512 before negotiation, then the negotiated size.
    /// Larger ones are fine.
    pub fn receive_size(&self) -> u32 {
        match &self.parameters {
            Some(parameters) => parameters.max_receive_size,
            None => NEGOTIATE_RECEIVE_SIZE,
        }
    }

    /// Whether [`poll_transmit`](Self::poll_transmit) has something to give as soon as slots and
    /// credits allow it. Else a driver need not make anything ready for it.
    pub(crate) fn wants_to_transmit(&self) -> bool {
        match self.phase {
            Phase::SendRequest | Phase::SendResponse | Phase::SendFailure { .. } => {
                self.established
            }
            Phase::Established => self.has_data_transfer(),
            Phase::AwaitResponse | Phase::PostReceives | Phase::AwaitRequest | Phase::Closed => {
                false
            }
        }
    }

    /// The next Send to post, if there are `slots` for it in the send queue and credits allow it.
    pub fn poll_transmit(&mut self, now: Instant, slots: usize) -> Option<Transmit> {
        if slots == 0 || !self.established {
            return None;
        }
        match self.phase {
            Phase::SendRequest => {
                self.phase = Phase::AwaitResponse;
                Some(Transmit::request(&negotiate::request(&self.config)))
            }
            // [MS-SMBD] 3.1.5.6: the receives are posted before the response grants them.
            Phase::SendResponse if self.credits.posted() > 0 => self.transmit_response(now),
            Phase::SendFailure { status } => {
                let reason = self.reason.take().unwrap_or(DisconnectReason::LocalClose);
                self.disconnect(reason, true);
                Some(Transmit::response(&NegotiateResponse::failure(status)))
            }
            Phase::Established => self.transmit_data_transfer(now),
            _ => None,
        }
    }

    /// What the layer above must hear of.
    pub fn poll_event(&mut self) -> Option<Event> {
        if self.negotiated {
            self.negotiated = false;
            if let Some(parameters) = &self.parameters {
                return Some(Event::Negotiated(parameters.clone()));
            }
        }
        self.disconnect.take()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout). It moves with every message received.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.phase {
            Phase::Closed => None,
            _ => [self.timer.deadline(), self.credits.deadline()]
                .into_iter()
                .flatten()
                .min(),
        }
    }

    // ---- Views

    /// Which side this is.
    pub fn role(&self) -> Role {
        self.role
    }

    /// What was negotiated; None before.
    pub fn parameters(&self) -> Option<&Parameters> {
        self.parameters.as_ref().filter(|_| {
            !matches!(self.phase, Phase::PostReceives | Phase::SendResponse)
                && !matches!(self.phase, Phase::SendFailure { .. })
        })
    }

    /// Messages can be exchanged: negotiated and not ended.
    pub fn is_established(&self) -> bool {
        self.phase == Phase::Established
    }

    /// The end is decided: [`Event::Disconnect`] was given or is waiting to be polled.
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// Why the connection ended, once it has.
    pub fn disconnect_reason(&self) -> Option<&DisconnectReason> {
        self.reason.as_ref()
    }

    /// The credits of both sides, now.
    pub fn credits(&self) -> CreditSnapshot {
        self.credits.snapshot()
    }

    /// Counters since the start.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Messages queued and not yet handed out completely.
    pub fn queued_messages(&self) -> usize {
        self.queue.messages()
    }

    /// Bytes of payload queued and not yet handed out.
    pub fn queued_bytes(&self) -> u64 {
        self.queue.bytes()
    }

    /// What decides the future while no time passes; for the exhaustive search.
    #[cfg(test)]
    pub(crate) fn fingerprint(&self) -> [u32; 7] {
        let credits = self.credits.snapshot();
        let flags = u32::from(self.answer_owed)
            | u32::from(self.probe == Probe::Pending) << 1
            | u32::from(self.probe == Probe::Sent) << 2;
        let queued = self.queue.messages() as u32;
        [
            credits.send,
            credits.posted,
            credits.granted,
            credits.target,
            queued,
            flags,
            self.credits.keeping(),
        ]
    }

    /// From how many credits on the last is kept.
    #[cfg(test)]
    pub(crate) fn keep_last_credit_from(&mut self, credits: u32) {
        self.credits.keep_last_from(credits);
    }

    /// Bytes still to come of the message being received in fragments.
    pub fn reassembly_remaining(&self) -> u64 {
        self.reassembler.remaining()
    }

    // ---- Data transfer

    /// [MS-SMBD] 3.1.5.5 and 3.1.5.8.
    fn receive_data_transfer(
        &mut self,
        now: Instant,
        message: &[u8],
        invalidated: Option<u32>,
    ) -> Result<Delivery, DisconnectReason> {
        self.timer.restart(now, self.config.keepalive_interval);
        self.probe = Probe::None;

        let (header, data) = self.check(message)?;
        if !self.credits.receive(now) {
            return Err(PeerMisbehaved::SentWithoutCredit.into());
        }
        self.credits.set_peer_target(header.credits_requested);
        self.answer_owed |= header.response_requested();
        if header.credits_granted > 0 {
            self.credits.add_send_credits(header.credits_granted);
            self.stats.credits_received += u64::from(header.credits_granted);
            self.waiting_for_credit = false;
        }

        let piece = self.reassembler.accept(&header)?;
        self.reassembler.latch_invalidated(invalidated);
        if data.is_empty() {
            self.stats.control_received += 1;
            self.credits.received_control();
        } else {
            self.stats.fragments_received += 1;
            self.stats.bytes_received += data.len() as u64;
        }
        if matches!(piece, Piece::Whole | Piece::Last) {
            self.stats.messages_received += 1;
        }
        Ok(match piece {
            Piece::Control => Delivery::Nothing,
            Piece::Whole => Delivery::Whole {
                data,
                invalidated: self.reassembler.take_invalidated(),
            },
            Piece::First { total } => Delivery::First { data, total },
            Piece::Continue => Delivery::Continue { data },
            Piece::Last => Delivery::Last {
                data,
                invalidated: self.reassembler.take_invalidated(),
            },
        })
    }

    /// The checks of [MS-SMBD] 3.1.5.8, and the negotiated size, which a device enforces only if
    /// the receive posted has exactly that size.
    fn check(
        &self,
        message: &[u8],
    ) -> Result<(DataTransfer, std::ops::Range<usize>), DisconnectReason> {
        let header = DataTransfer::parse(message)?;
        if header.credits_requested == 0 {
            return Err(PeerMisbehaved::NoCreditsRequested.into());
        }
        let data = header.payload(message.len())?;
        let max = self.config.max_fragmented_size;
        if header.total() > u64::from(max) {
            return Err(PeerMisbehaved::FragmentedSizeExceeded {
                total: header.total(),
                max,
            }
            .into());
        }
        let max = self.receive_size();
        if message.len() as u64 > u64::from(max) {
            return Err(PeerMisbehaved::MessageTooLarge {
                len: message.len(),
                max,
            }
            .into());
        }
        Ok((header, data))
    }

    /// Whether there is a reason for a message.
    fn has_data_transfer(&self) -> bool {
        !self.queue.is_empty()
            || self.probe == Probe::Pending
            || self.answer_owed
            || self.credits.grant_is_due()
    }

    /// [MS-SMBD] 3.1.5.1 and 3.1.5.4.
    fn transmit_data_transfer(&mut self, now: Instant) -> Option<Transmit> {
        if !self.has_data_transfer() {
            return None;
        }
        let probing = self.probe == Probe::Pending;
        let purpose = match (probing, self.answer_owed) {
            (true, _) => Purpose::Probe,
            (false, true) => Purpose::Answer,
            (false, false) => Purpose::Ordinary,
        };
        let max_payload = self
            .parameters
            .as_ref()
            .map_or(0, Parameters::max_send_payload);
        if self.closing && self.queue.is_last_fragment(max_payload) {
            self.credits.keep_no_more();
        }
        let granted = match self.credits.spend(purpose, now) {
            Spend::Granting(granted) => granted,
            Spend::Wait => {
                if !self.waiting_for_credit {
                    self.waiting_for_credit = true;
                    self.stats.credit_stalls += 1;
                }
                return None;
            }
            Spend::ReserveExhausted => {
                self.disconnect(DisconnectReason::ApplicationStalled, false);
                return None;
            }
        };
        self.waiting_for_credit = false;
        self.stats.credits_granted += u64::from(granted);

        let mut header = DataTransfer {
            credits_requested: self.config.send_credit_target,
            credits_granted: granted,
            ..DataTransfer::default()
        };
        // Any message answers a probe; the answer carries no flag, unless a probe of our own is
        // due.
        if self.answer_owed {
            self.answer_owed = false;
            self.stats.probes_answered += 1;
        }
        if probing {
            header.flags = FLAG_RESPONSE_REQUESTED;
            self.probe = Probe::Sent;
            self.timer.restart(now, self.config.keepalive_timeout);
            self.stats.probes_sent += 1;
        }

        let Some(fragment) = self.queue.pop_fragment(max_payload) else {
            self.stats.control_sent += 1;
            return Some(Transmit::control(&header));
        };
        header.remaining_data_length = fragment.remaining;
        header.data_offset = DATA_OFFSET;
        header.data_length = (fragment.range.end - fragment.range.start) as u32;
        self.stats.fragments_sent += 1;
        self.stats.bytes_sent += u64::from(header.data_length);
        if fragment.remaining == 0 {
            self.stats.messages_sent += 1;
        }
        let transmit = Transmit::data(&header, (fragment.id, fragment.range), fragment.token);
        self.finish_close();
        Some(transmit)
    }

    // ---- The end

    fn finish_close(&mut self) {
        if self.closing && self.queue.is_empty() {
            self.disconnect(DisconnectReason::LocalClose, true);
        }
    }

    /// Latches the reason: only the first one counts.
    fn disconnect(&mut self, reason: DisconnectReason, flush: bool) {
        if self.phase == Phase::Closed {
            return;
        }
        self.phase = Phase::Closed;
        self.timer.stop();
        self.queue.clear();
        self.answer_owed = false;
        // A refusal that could not be sent is still the reason.
        let reason = self.reason.get_or_insert(reason).clone();
        self.disconnect = Some(Event::Disconnect { reason, flush });
    }
}
