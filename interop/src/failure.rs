//! Why a run failed.

use smb2::types::Command;
use smb2::types::status::NtStatus;
use smbdirect::smb2::{RequestError, ResponseError};

pub(crate) type Result<T> = std::result::Result<T, Failure>;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Smb(#[from] smb2::Error),
    #[error("transport: {0}")]
    Transport(#[from] smbdirect::transport::Error),
    #[error("request: {0}")]
    Request(#[from] RequestError),
    #[error("response: {0}")]
    Response(#[from] ResponseError),
    #[error("file: {0}")]
    File(#[from] std::io::Error),
    #[error("a task of this program failed: {0}")]
    Task(#[from] tokio::task::JoinError),
    #[error("{command:?} was answered with {status:?}")]
    Status { command: Command, status: NtStatus },
    #[error("the answer to {0:?} is not one")]
    Malformed(Command),
    #[error("no dialect for RDMA was negotiated")]
    Dialect,
    #[error("{command:?} moved {moved} of {asked} bytes at {offset}")]
    Short {
        command: Command,
        offset: u64,
        moved: u64,
        asked: u64,
    },
    #[error("{name}: byte {at} is wrong")]
    Different { name: String, at: u64 },
    #[error("the listing has {found:?} for {name}, which has {len} bytes")]
    Listing {
        name: String,
        len: u64,
        found: Option<u64>,
    },
    #[error("{placed} bytes were placed, {expected} should have been")]
    Placed { placed: u64, expected: u64 },
    #[error("{messages} bytes travelled in messages, beside {placed} by RDMA")]
    Messages { messages: u64, placed: u64 },
    #[error("{invalidated} of {requests} exposures were invalidated by the server")]
    Invalidated { invalidated: u64, requests: u64 },
    #[error("this connection does not have this way")]
    NoSuchWay,
}
