mod golden;
mod properties;
mod rules;

use super::*;
use crate::proto::wire::BufferDescriptorV1;

pub(super) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// Header and body of a message, all zero but protocol, command and structure size.
pub(super) fn blank(command: u8, structure_size: u8, len: usize) -> Vec<u8> {
    let mut message = vec![0; len];
    message[..4].copy_from_slice(&[0xFE, 0x53, 0x4D, 0x42]);
    message[4] = 64;
    message[12] = command;
    message[64] = structure_size;
    message
}

pub(super) fn read_request() -> Vec<u8> {
    blank(8, 49, 113)
}

pub(super) fn write_request() -> Vec<u8> {
    blank(9, 49, 113)
}

pub(super) fn read_response() -> Vec<u8> {
    blank(8, 17, 81)
}

pub(super) const ALL: TransformCapabilities = TransformCapabilities {
    encryption: true,
    signing: true,
};

pub(super) const NO_TRANSFORMS: TransformCapabilities = TransformCapabilities {
    encryption: false,
    signing: false,
};

pub(super) fn rules(dialect: Dialect) -> ChannelRules {
    ChannelRules {
        dialect,
        transforms: if dialect == Dialect::Smb311 {
            ALL
        } else {
            NO_TRANSFORMS
        },
    }
}

pub(super) fn piece(offset: u64, token: u32, length: u32) -> BufferDescriptorV1 {
    BufferDescriptorV1 {
        offset,
        token,
        length,
    }
}

pub(super) fn plain(length: u32, descriptors: Vec<BufferDescriptorV1>) -> Placement {
    Placement {
        length,
        invalidate: false,
        descriptors,
        transform: None,
    }
}

pub(super) fn encryption() -> CryptoTransform {
    CryptoTransform {
        kind: TransformType::Encryption,
        signature: (0x10..0x20).collect(),
        nonce: (0xA0..0xAC).collect(),
    }
}
