//! SMB Direct ([MS-SMBD], SMB2/3 over RDMA) for user space, server and client.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![deny(unsafe_code)]

pub mod engine;
pub mod proto;
pub mod rdma;
pub mod smb2;
pub mod transport;

#[cfg(test)]
mod replay;

// The README's programs are compiled with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
