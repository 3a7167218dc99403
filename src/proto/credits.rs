//! The credit machine: who may send how much ([MS-SMBD] 3.1.5.1, 3.1.5.8, 3.1.5.9).
//!
//! Three numbers are kept apart: credits we hold (`send`), receives really posted (`posted`), and
//! those of them that the peer was told of and has not used (`granted`). A credit is granted only
//! out of `posted - granted`, so that a granted receive exists by the time the peer hears of it.
//!
//! When nothing else is to be sent, a grant of its own leaves only when the peer has used up most
//! of its credits. Granting each one back at once would let two idle peers bounce grants for ever.

use std::time::{Duration, Instant};

use super::{Config, CreditProfile};

/// How many receives beyond those still granted may be given away, in total, to keep keepalives
/// going while the application does not take its messages.
pub const STALL_RESERVE: u32 = 16;

/// Messages sent while the application is stalled that pay for one receive beyond the reserve: what
/// it queued needs the peer's grants, which ride on messages that take memory here. A peer that
/// grants less than this at a time is served from the reserve alone.
const SENT_PER_RECEIVE: u32 = 8;

const ADAPTIVE_START: u16 = 32;
const SMALL: u16 = 8;
/// A peer that asks for fewer gets as many as this. There are clients, the one of the public test
/// suite among them, that never grant beyond their own maximum, not even with their last credit
/// ([MS-SMBD] 3.1.5.9 says that they must). Such a client can send only while it holds two, so that
/// with fewer than three a connection would stand still after its first message.
const ENOUGH: u16 = 3;
/// With this many credits or more, the last of them is kept back for a while, see [`Kept`]. Of fewer
/// it is a large part, and a pause would be felt with every few messages: the public test suite has
/// peers with ten that grant only when all are used.
const MANY: u32 = 16;
/// How long. Peers grant in far less when three quarters of their receives are used.
const KEPT: Duration = Duration::from_millis(100);
/// A peer that uses up its credits within this time gets more of them.
const FAST: Duration = Duration::from_secs(1);
/// So does one that uses as many as it may hold this often within that time. Where data goes both
/// ways its credits are renewed all the time, and only its own side sees that it waits for them.
const BUSY: u32 = 8;

/// The credits of a connection at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CreditSnapshot {
    /// Messages we may send now.
    pub send: u32,
    /// Receives posted for data transfer messages.
    pub posted: u32,
    /// Receives the peer was granted and has not used. Never more than `posted`.
    pub granted: u32,
    /// What we aim to keep granted: the least of the peer's wish, our maximum and the profile's
    /// present level.
    pub target: u32,
}

/// What a message may be spent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Data or a grant.
    Ordinary,
    /// An answer to the peer's probe.
    Answer,
    /// A probe of ours.
    Probe,
}

/// Whether and with what grant a message may leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spend {
    /// Send it, granting this many.
    Granting(u16),
    /// Not now: no credit, or the last one and nothing to grant.
    Wait,
    /// Never: the application does not take messages and the reserve is used up.
    ReserveExhausted,
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct Credits {
    /// `Connection.SendCredits`. Saturating: a peer may grant without bound.
    send: u32,
    posted: u32,
    /// `Connection.ReceiveCredits`.
    granted: u32,
    receive_max: u16,
    /// `Connection.ReceiveCreditTarget`, as the peer last said.
    peer_target: u16,
    /// The profile's present level.
    level: u16,
    profile: CreditProfile,
    /// When the peer last held all of its target.
    full_since: Option<Instant>,
    /// Credits that the peer used since `used_since`.
    used: u32,
    used_since: Option<Instant>,
    stall: Option<Stall>,
    /// The most credits that we held at a time, since the last was kept for nothing.
    most_send: u32,
    /// [`MANY`], unless a test has it otherwise.
    many: u32,
    kept: Kept,
}

/// Our last credit, while the peer can speak without it.
///
/// The last credit of each side is to bring new ones ([MS-SMBD] 3.1.5.1). Linux before 7.0 spends
/// its last one without a grant, when its receives are all in use by what we have sent just before.
/// If ours has left by then, nobody can send any more. So ours waits until the peer runs dry, and
/// then pays for a grant of all that there is; or until the peer grants more. Not for ever: there
/// may be peers that grant only when they have heard from us, as ours does when it has memory for two
/// receives only. Nor again then, before such a peer has many to give.
#[derive(Debug, Clone, Copy, Default)]
enum Kept {
    #[default]
    No,
    Until(Instant),
    LongEnough,
}

/// While the application does not take its messages.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
struct Stall {
    /// Grants funded by receives that held no data and so are free again.
    recycled: u32,
    /// Grants left for keepalives.
    reserve: u32,
    /// Messages sent since one was last granted for sending more.
    sent: u32,
}

impl Credits {
    pub(crate) fn new(config: &Config) -> Self {
        let level = match config.credit_profile {
            CreditProfile::Adaptive => ADAPTIVE_START,
            CreditProfile::Full => u16::MAX,
            CreditProfile::Small => SMALL,
        };
        Self {
            send: 0,
            posted: 0,
            granted: 0,
            receive_max: config.receive_credit_max,
            peer_target: 0,
            level,
            profile: config.credit_profile,
            full_since: None,
            used: 0,
            used_since: None,
            stall: None,
            most_send: 0,
            many: MANY,
            kept: Kept::No,
        }
    }

    pub(crate) fn snapshot(&self) -> CreditSnapshot {
        CreditSnapshot {
            send: self.send,
            posted: self.posted,
            granted: self.granted,
            target: self.target(),
        }
    }

    /// The peer's `CreditsGranted`.
    pub(crate) fn add_send_credits(&mut self, granted: u16) {
        self.send = self.send.saturating_add(u32::from(granted));
        self.most_send = self.most_send.max(self.send);
        if granted > 0 {
            self.kept = Kept::No;
        }
    }

    /// The peer's `CreditsRequested`: absolute, those it holds included.
    pub(crate) fn set_peer_target(&mut self, target: u16) {
        self.peer_target = target;
    }

    /// Receives were really posted.
    pub(crate) fn receives_posted(&mut self, count: u32) {
        self.posted = self.posted.saturating_add(count);
    }

    pub(crate) fn posted(&self) -> u32 {
        self.posted
    }

    /// More receives to post now.
    ///
    /// One more than the target is kept posted, for the grant that a last credit needs: [MS-SMBD]
    /// 3.1.5.9 wants a receive to be posted for it even when the target is reached.
    pub(crate) fn wanted(&self) -> u32 {
        let goal = match &self.stall {
            None => (self.target().max(self.granted) + 1).min(u32::from(self.receive_max) + 1),
            Some(stall) => {
                let more = stall.reserve > 0 || stall.sent >= SENT_PER_RECEIVE;
                self.granted
                    .saturating_add(stall.recycled + u32::from(more))
            }
        };
        goal.saturating_sub(self.posted)
    }

    /// A message arrived and used one of the peer's credits. False: the peer held none.
    pub(crate) fn receive(&mut self, now: Instant) -> bool {
        // Receives are consumed whatever the peer was told.
        self.posted = self.posted.saturating_sub(1);
        if self.granted == 0 {
            return false;
        }
        self.granted -= 1;
        if self.granted <= low_water(self.target())
            && let Some(since) = self.full_since.take()
            && now.saturating_duration_since(since) <= FAST
        {
            self.grow();
        }
        self.used += 1;
        let since = *self.used_since.get_or_insert(now);
        let fast = now.saturating_duration_since(since) <= FAST;
        let busy = self.used >= BUSY * self.target();
        if busy && fast {
            self.grow();
        }
        if busy || !fast {
            self.used = 0;
            self.used_since = None;
        }
        true
    }

    /// The message that arrived held no data, so its receive is free at once.
    pub(crate) fn received_control(&mut self) {
        if let Some(stall) = &mut self.stall {
            stall.recycled = stall.recycled.saturating_add(1);
        }
    }

    pub(crate) fn set_application_ready(&mut self, ready: bool) {
        if ready {
            self.stall = None;
        } else if self.stall.is_none() {
            self.stall = Some(Stall {
                recycled: 0,
                reserve: STALL_RESERVE,
                sent: 0,
            });
        }
    }

    pub(crate) fn is_stalled(&self) -> bool {
        self.stall.is_some()
    }

    /// The peer cannot send anything, because we gave it no credit.
    pub(crate) fn peer_is_starved(&self) -> bool {
        self.granted == 0
    }

    /// Whether a message should be sent for no other reason than to grant.
    ///
    /// The peer must end above its low water by more than the one message that our grant costs,
    /// else it would answer the grant with a grant, and so on for ever. A single credit is
    /// therefore not worth a message while more receives may still be posted. When the driver
    /// cannot post all that is wanted, what there is counts as the target.
    pub(crate) fn grant_is_due(&self) -> bool {
        let goal = self.goal();
        let attainable = self.posted.min(goal);
        self.stall.is_none()
            && attainable > self.granted
            && self.granted <= low_water(attainable)
            && (attainable > 1 || goal == 1)
    }

    /// The grant of the negotiate response; it costs no credit.
    pub(crate) fn grant_initial(&mut self, now: Instant) -> u16 {
        // Here never more than was asked for; later, see `target`.
        let grant = self.grantable().min(self.peer_target);
        self.note_granted(grant, now);
        grant
    }

    /// When [`Credits::handle_timeout`] wants to be called.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.kept {
            Kept::Until(deadline) => Some(deadline),
            Kept::No | Kept::LongEnough => None,
        }
    }

    /// Time has passed, and nothing that arrived before is left to be handled.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.kept = Kept::LongEnough;
            // Of few that it gives from now on, the last is not kept.
            self.most_send = 0;
        }
    }

    /// The last message is about to leave: nobody will need the last credit for another one.
    pub(crate) fn keep_no_more(&mut self) {
        self.kept = Kept::LongEnough;
    }

    /// Takes one credit for a message, if the rules allow it, and decides what the message grants.
    pub(crate) fn spend(&mut self, purpose: Purpose, now: Instant) -> Spend {
        if self.send == 0 || (purpose == Purpose::Ordinary && self.keeps_last(now)) {
            return Spend::Wait;
        }
        let grant = match self.stall {
            None => self.ordinary_grant(),
            Some(_) => match self.stalled_grant(purpose) {
                Some(grant) => grant,
                None => return Spend::ReserveExhausted,
            },
        };
        // [MS-SMBD] 3.1.5.1: the last credit is spent only on a message that grants at least one,
        // else both sides could end without credits and without a way to get any.
        if self.send == 1 && grant == 0 {
            return Spend::Wait;
        }
        // A probe that the peer has no credit to answer would kill it for our own silence.
        if purpose == Purpose::Probe && self.granted == 0 && grant == 0 && self.stall.is_some() {
            return Spend::Wait;
        }
        self.send -= 1;
        self.kept = Kept::No;
        if let Some(stall) = &mut self.stall {
            stall.sent = stall.sent.saturating_add(1);
        }
        self.note_granted(grant, now);
        Spend::Granting(grant)
    }

    /// Whether the one credit that is left is better kept, see [`Kept`].
    fn keeps_last(&mut self, now: Instant) -> bool {
        let peer_can_speak = self.granted > low_water(self.target());
        if self.send > 1 || self.most_send < self.many || !peer_can_speak {
            return false;
        }
        if let Kept::No = self.kept {
            self.kept = Kept::Until(now + KEPT);
        }
        matches!(self.kept, Kept::Until(_))
    }

    /// Another number of credits from which the last is kept.
    #[cfg(test)]
    pub(crate) fn keep_last_from(&mut self, many: u32) {
        self.many = many;
    }

    /// What the snapshot does not tell of the future; for the exhaustive search.
    #[cfg(test)]
    pub(crate) fn keeping(&self) -> u32 {
        let kept = match self.kept {
            Kept::No => 0,
            Kept::Until(_) => 2,
            Kept::LongEnough => 4,
        };
        kept | u32::from(self.most_send >= self.many)
    }

    fn target(&self) -> u32 {
        let wish = self.peer_target.max(ENOUGH);
        u32::from(wish.min(self.receive_max).min(self.level))
    }

    fn grantable(&self) -> u16 {
        let up_to = self.posted.min(self.target());
        u16::try_from(up_to.saturating_sub(self.granted)).unwrap_or(u16::MAX)
    }

    /// What the next message may raise `granted` to.
    fn goal(&self) -> u32 {
        if self.send > 1 {
            return self.target();
        }
        // [MS-SMBD] 3.1.5.9: for the last credit at least one, even beyond the target. And so that
        // the peer holds two: one to answer with and one to keep. With a single credit in the
        // world, two peers would hand it to and fro.
        self.target().max(2).max(self.granted + 1)
    }

    fn ordinary_grant(&self) -> u16 {
        let up_to = self.posted.min(self.goal());
        u16::try_from(up_to.saturating_sub(self.granted)).unwrap_or(u16::MAX)
    }

    /// What to grant while the application is stalled: what costs no memory, and for keepalives
    /// from the reserve. None: a keepalive needs the reserve and it is used up.
    fn stalled_grant(&mut self, purpose: Purpose) -> Option<u16> {
        let stall = self.stall.as_mut()?;
        let available = self.posted.saturating_sub(self.granted);
        if stall.recycled == 0 {
            // Nobody could send any more, and the application may wait for just that before it takes
            // messages again.
            let stuck = purpose == Purpose::Ordinary && self.send == 1 && self.granted == 0;
            if stuck && stall.sent >= SENT_PER_RECEIVE && available > 0 {
                stall.sent = 0;
                return Some(1);
            }
            let needed = match purpose {
                // Half of the reserve is for keepalives.
                Purpose::Ordinary => stuck && stall.reserve > STALL_RESERVE / 2,
                Purpose::Answer => self.send == 1,
                // The peer must be able to answer, also one that keeps its last credit.
                Purpose::Probe => self.granted < 2,
            };
            if !needed {
                return Some(0);
            }
            if stall.reserve == 0 {
                return None;
            }
            let grant = available.min(1);
            stall.reserve -= grant;
            return Some(grant as u16);
        }
        let grant = stall.recycled.min(available).min(u32::from(u16::MAX));
        stall.recycled -= grant;
        Some(grant as u16)
    }

    fn note_granted(&mut self, grant: u16, now: Instant) {
        self.granted += u32::from(grant);
        if grant > 0 && self.granted >= self.target() {
            self.full_since = Some(now);
        }
    }

    /// Raises the level of a peer that could use more.
    fn grow(&mut self) {
        let limited = self.level < self.peer_target.min(self.receive_max);
        if self.profile == CreditProfile::Adaptive && limited {
            self.level = self.level.saturating_mul(2);
        }
    }
}

/// A peer that is left with this many of `target` credits, or fewer, is running dry.
fn low_water(target: u32) -> u32 {
    match target {
        0..=2 => 0,
        target => (target / 4).max(1),
    }
}
