//! No bytes panic, and what is encoded is read back.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;

fn dialects() -> impl Strategy<Value = Dialect> {
    prop_oneof![
        Just(Dialect::Smb300),
        Just(Dialect::Smb302),
        Just(Dialect::Smb311)
    ]
}

fn transforms() -> impl Strategy<Value = CryptoTransform> {
    let kinds = prop_oneof![
        Just(TransformType::Encryption),
        Just(TransformType::Signing)
    ];
    let signature = prop::collection::vec(any::<u8>(), 0..=16);
    let nonce = prop::collection::vec(any::<u8>(), 0..40);
    (kinds, signature, nonce).prop_map(|(kind, signature, nonce)| CryptoTransform {
        kind,
        signature,
        nonce,
    })
}

fn placements() -> impl Strategy<Value = Placement> {
    let pieces = (any::<u64>(), any::<u32>(), 1..u32::MAX).prop_map(|(o, t, l)| piece(o, t, l));
    (
        any::<u32>(),
        any::<bool>(),
        prop::collection::vec(pieces, 1..40),
        prop::option::of(transforms()),
    )
        .prop_map(|(length, invalidate, descriptors, transform)| {
            let capacity: u64 = descriptors.iter().map(|d| u64::from(d.length)).sum();
            Placement {
                length: u64::from(length).clamp(1, capacity) as u32,
                invalidate,
                descriptors,
                transform,
            }
        })
}

fn interfaces() -> impl Strategy<Value = NetworkInterface> {
    (
        any::<u32>(),
        any::<bool>(),
        any::<bool>(),
        any::<u64>(),
        any::<IpAddr>(),
    )
        .prop_map(
            |(if_index, rss_capable, rdma_capable, link_speed, address)| NetworkInterface {
                if_index,
                rss_capable,
                rdma_capable,
                link_speed,
                address,
            },
        )
}

/// Every reader, on the same bytes.
fn read_all(bytes: &[u8], rules: &ChannelRules) {
    let _ = Placement::parse_read(bytes, rules);
    let _ = Placement::parse_write(bytes, rules);
    let _ = PlacedRead::parse(bytes, 1000, rules);
    let _ = RdmaTransform::parse(bytes);
    let _ = CryptoTransform::parse(bytes);
    let _ = TransformCapabilities::parse_request(bytes);
    let _ = TransformCapabilities::parse_response(bytes, ALL);
    let _ = NetworkInterface::parse_list(bytes);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        dialect in dialects(),
    ) {
        read_all(&bytes, &rules(dialect));
    }

    #[test]
    fn spoilt_messages_never_panic(
        placement in placements(),
        interface in interfaces(),
        spoil in prop::collection::vec((64..200_usize, any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let rules = rules(Dialect::Smb311);
        let mut request = write_request();
        placement.encode_write(&mut request, &rules).unwrap();
        let mut response = read_response();
        let placed = PlacedRead { placed: 7, transform: placement.transform.clone() };
        placed.encode(&mut response, &rules).unwrap();
        let list = NetworkInterface::encode_list(&[interface; 3]);
        for mut message in [request, response, list] {
            for &(at, byte) in &spoil {
                if let Some(place) = message.get_mut(at) {
                    *place = byte;
                }
            }
            read_all(&message, &rules);
            read_all(&message[..cut.index(message.len())], &rules);
        }
    }

    #[test]
    fn writes_are_read_back(placement in placements()) {
        let rules = rules(Dialect::Smb311);
        let mut message = write_request();
        placement.encode_write(&mut message, &rules).unwrap();
        prop_assert_eq!(Placement::parse_write(&message, &rules), Ok(Some(placement)));
    }

    #[test]
    fn reads_are_read_back(placement in placements()) {
        let rules = rules(Dialect::Smb302);
        let placement = Placement { transform: None, ..placement };
        let mut message = read_request();
        placement.encode_read(&mut message, &rules).unwrap();
        prop_assert_eq!(Placement::parse_read(&message, &rules), Ok(Some(placement)));
    }

    #[test]
    fn responses_are_read_back(
        placed in any::<u32>(),
        transform in prop::option::of(transforms()),
    ) {
        let rules = rules(Dialect::Smb311);
        let response = PlacedRead { placed, transform };
        let mut message = read_response();
        response.encode(&mut message, &rules).unwrap();
        prop_assert_eq!(PlacedRead::parse(&message, placed, &rules), Ok(response));
    }

    #[test]
    fn transforms_are_read_back(transform in transforms()) {
        let bytes = transform.encode().unwrap();
        prop_assert_eq!(bytes.len() % 8, 0);
        let used = 8 + transform.signature.len() + transform.nonce.len();
        prop_assert_eq!(CryptoTransform::parse(&bytes), Ok((transform, used)));
    }

    #[test]
    fn heads_are_read_back(
        descriptor_offset: u16, descriptor_length: u16, channel: u32, transform_count: u16,
    ) {
        let head = RdmaTransform { descriptor_offset, descriptor_length, channel, transform_count };
        prop_assert_eq!(RdmaTransform::parse(&head.encode()), Ok(head));
    }

    #[test]
    fn capabilities_are_read_back(encryption: bool, signing: bool) {
        let set = TransformCapabilities { encryption, signing };
        prop_assert_eq!(TransformCapabilities::parse_request(&set.encode()), Ok(set));
        prop_assert_eq!(TransformCapabilities::parse_response(&set.encode(), set), Ok(set));
    }

    #[test]
    fn interfaces_are_read_back(list in prop::collection::vec(interfaces(), 0..5)) {
        let output = NetworkInterface::encode_list(&list);
        prop_assert_eq!(NetworkInterface::parse_list(&output), Ok(list));
    }
}
