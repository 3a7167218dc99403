//! Why a connection cannot go on.

use std::fmt;

use super::message::BadHeader;

/// Why a connection cannot go on: a message that cannot be understood, or that would be answered
/// wrongly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The client sent what is no SMB message.
    ClientNotSmb,
    /// The client sent a header that is not one.
    ClientHeader(BadHeader),
    /// The client used a message id that is in use.
    MessageIdInUse(u64),
    /// The client used the message id of what servers send unasked.
    MessageIdReserved,
    /// The server sent what is no SMB message.
    BackendNotSmb,
    /// The server sent a header that is not one.
    BackendHeader(BadHeader),
    /// The server answered a request that it has not been sent yet.
    AnswerTooEarly(u64),
    /// The server answered a request with the response to another command.
    AnswerToOther {
        /// Of both.
        message_id: u64,
        /// The command of the response.
        found: u16,
    },
    /// The server signed the answer to a request that was rewritten.
    AnswerSigned,
    /// The server's answer to a READ names data outside of the message.
    DataOutside {
        /// `DataOffset`, in bytes.
        offset: u8,
        /// `DataLength`, in bytes.
        length: u32,
        /// Bytes of the message.
        len: usize,
    },
    /// The server's answer to a READ has more data than was asked for.
    MoreThanRequested {
        /// Bytes of data.
        data: u32,
        /// Bytes that were asked for.
        requested: u32,
    },
    /// The server sent a message that the client does not take.
    TooLargeForClient {
        /// Bytes.
        len: usize,
        /// The client's limit in bytes.
        max: u64,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClientNotSmb => f.write_str("the client sent what is no SMB message"),
            Self::ClientHeader(bad) => write!(f, "the client's message is not valid: {bad}"),
            Self::MessageIdInUse(id) => write!(f, "the client used message id {id} twice"),
            Self::MessageIdReserved => {
                f.write_str("the client used the message id that is for servers")
            }
            Self::BackendNotSmb => f.write_str("the backend sent what is no SMB message"),
            Self::BackendHeader(bad) => write!(f, "the backend's message is not valid: {bad}"),
            Self::AnswerTooEarly(id) => write!(
                f,
                "the backend answered message {id}, which it has not been sent yet"
            ),
            Self::AnswerToOther { message_id, found } => write!(
                f,
                "the backend answered message {message_id} with a response to command {found:#06x}"
            ),
            Self::AnswerSigned => f.write_str(
                "the backend signs answers to requests that are not signed, and such answers \
                 cannot be changed: set `server signing` of the backend so that the session is \
                 either signed as a whole or not at all",
            ),
            Self::DataOutside {
                offset,
                length,
                len,
            } => write!(
                f,
                "the backend answered a READ with {length} bytes at {offset} of a message of {len}"
            ),
            Self::MoreThanRequested { data, requested } => write!(
                f,
                "the backend answered a READ of {requested} bytes with {data}"
            ),
            Self::TooLargeForClient { len, max } => write!(
                f,
                "the backend sent a message of {len} bytes, the client takes {max} (its \
                 MaxFragmentedRecvSize): have the client ask for less at a time (Linux: \
                 rsize=131072), or set `smb2 max read` and `smb2 max trans` of the backend lower"
            ),
        }
    }
}

/// What the administrator should know though the connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Warning {
    /// Much data comes in signed messages.
    SignedBulk,
    /// Much data comes in encrypted messages.
    EncryptedBulk,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self {
            Self::SignedBulk => "signed",
            Self::EncryptedBulk => "encrypted",
        };
        write!(
            f,
            "its session is {how}, so that data goes in messages, slowly: clients place data by \
             RDMA only in sessions that are neither signed nor encrypted"
        )
    }
}
