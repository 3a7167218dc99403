//! The RDMA parts of SMB2 messages: no bytes panic, and what is read is what would be written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use smbdirect::smb2::{
    ChannelRules, CryptoTransform, Dialect, NetworkInterface, PlacedRead, Placement, RdmaTransform,
    TransformCapabilities,
};

const ALL: TransformCapabilities = TransformCapabilities {
    encryption: true,
    signing: true,
};

fuzz_target!(|bytes: &[u8]| {
    let Some((&first, message)) = bytes.split_first() else {
        return;
    };
    let dialect = [Dialect::Smb300, Dialect::Smb302, Dialect::Smb311][usize::from(first % 3)];
    let transforms = match dialect {
        Dialect::Smb311 => TransformCapabilities {
            encryption: first & 0x40 != 0,
            signing: first & 0x80 != 0,
        },
        _ => TransformCapabilities::default(),
    };
    let rules = ChannelRules {
        dialect,
        transforms,
    };
    requests(message, &rules);
    if let Ok(response) = PlacedRead::parse(message, 8 << 20, &rules) {
        assert!(response.placed <= 8 << 20);
    }
    if let Ok(head) = RdmaTransform::parse(message) {
        assert_eq!(RdmaTransform::parse(&head.encode()), Ok(head));
    }
    if let Ok((transform, used)) = CryptoTransform::parse(message) {
        assert!(used <= message.len());
        let again = transform.encode().expect("it was read");
        assert_eq!(CryptoTransform::parse(&again), Ok((transform, used)));
    }
    if let Ok(set) = TransformCapabilities::parse_request(message) {
        assert_eq!(TransformCapabilities::parse_request(&set.encode()), Ok(set));
        let _ = TransformCapabilities::parse_response(message, set);
    }
    let _ = TransformCapabilities::parse_response(message, ALL);
    if let Ok(list) = NetworkInterface::parse_list(message) {
        let again = NetworkInterface::encode_list(&list);
        assert_eq!(NetworkInterface::parse_list(&again), Ok(list));
    }
});

/// What a server takes from a request is bounded by its bytes, and a client would ask for just that.
fn requests(message: &[u8], rules: &ChannelRules) {
    for (read, parsed) in [
        (true, Placement::parse_read(message, rules)),
        (false, Placement::parse_write(message, rules)),
    ] {
        let Ok(Some(placement)) = parsed else {
            continue;
        };
        // A READ may ask for more than its memory holds.
        assert!(read || placement.capacity() >= placement.length.into());
        assert!(16 * placement.descriptors.len() <= message.len());
        let mut again = message[..112].to_vec();
        let written = match read {
            true => placement.encode_read(&mut again, rules),
            false => placement.encode_write(&mut again, rules),
        };
        // Not everything that a peer may say is said by this side, but what is, is read back.
        if written.is_ok() {
            let parsed = match read {
                true => Placement::parse_read(&again, rules),
                false => Placement::parse_write(&again, rules),
            };
            assert_eq!(parsed, Ok(Some(placement)));
        }
    }
}
