//! The examples' own protocol around the echo.
//!
//! The client says how many messages will follow, sends them, and says when it has them all back.
//! The server answers that with its counts.

use smbdirect::transport::Stats;

/// A message that is not echoed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    /// Client: so many messages are to be echoed.
    Hello { messages: u64 },
    /// Client: all of them are back.
    Done,
    /// Server: what was counted.
    Report(Counts),
}

/// What one end counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Messages that were echoed.
    pub(crate) messages: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Messages of the transport below, which carry fragments, credits and keepalives.
    pub(crate) sends: u64,
    pub(crate) receives: u64,
    pub(crate) fragments_sent: u64,
    pub(crate) fragments_received: u64,
    pub(crate) credit_waits: u64,
    pub(crate) keepalives_sent: u64,
    pub(crate) keepalives_answered: u64,
    pub(crate) zero_copy_bytes: u64,
    pub(crate) copied_bytes: u64,
}

const MAGIC: u64 = u64::from_le_bytes(*b"SMBDecho");
const FIELDS: usize = 11;

impl Control {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (kind, fields) = match self {
            Self::Hello { messages } => (1, vec![*messages]),
            Self::Done => (2, vec![]),
            Self::Report(counts) => (3, counts.fields().to_vec()),
        };
        [MAGIC, kind]
            .into_iter()
            .chain(fields)
            .flat_map(u64::to_le_bytes)
            .collect()
    }

    pub(crate) fn decode(message: &[u8]) -> Option<Self> {
        let (words, []) = message.as_chunks::<8>() else {
            return None;
        };
        let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        match *words.strip_prefix(&[MAGIC])? {
            [1, messages] => Some(Self::Hello { messages }),
            [2] => Some(Self::Done),
            [3, ref fields @ ..] => {
                Some(Self::Report(Counts::from_fields(fields.try_into().ok()?)))
            }
            _ => None,
        }
    }
}

impl Counts {
    pub(crate) fn new(messages: u64, bytes: u64, stats: &Stats) -> Self {
        Self {
            messages,
            bytes,
            sends: stats.sends,
            receives: stats.receives,
            fragments_sent: stats.fragments_sent,
            fragments_received: stats.fragments_received,
            credit_waits: stats.stalls_send_credit.count,
            keepalives_sent: stats.keepalives_sent,
            keepalives_answered: stats.keepalives_answered,
            zero_copy_bytes: stats.zero_copy_bytes,
            copied_bytes: stats.copied_bytes,
        }
    }

    fn fields(&self) -> [u64; FIELDS] {
        [
            self.messages,
            self.bytes,
            self.sends,
            self.receives,
            self.fragments_sent,
            self.fragments_received,
            self.credit_waits,
            self.keepalives_sent,
            self.keepalives_answered,
            self.zero_copy_bytes,
            self.copied_bytes,
        ]
    }

    fn from_fields(fields: [u64; FIELDS]) -> Self {
        let [
            messages,
            bytes,
            sends,
            receives,
            fragments_sent,
            fragments_received,
            credit_waits,
            keepalives_sent,
            keepalives_answered,
            zero_copy_bytes,
            copied_bytes,
        ] = fields;
        Self {
            messages,
            bytes,
            sends,
            receives,
            fragments_sent,
            fragments_received,
            credit_waits,
            keepalives_sent,
            keepalives_answered,
            zero_copy_bytes,
            copied_bytes,
        }
    }
}
