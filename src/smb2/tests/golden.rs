//! Bytes computed by hand from [MS-SMB2].

use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;

const TWO: &str = "8877665544332211 04030201 00100000  0000000000000080 ffeeddcc 01000000";

fn two() -> Vec<BufferDescriptorV1> {
    vec![
        piece(0x1122_3344_5566_7788, 0x0102_0304, 4096),
        piece(0x8000_0000_0000_0000, 0xCCDD_EEFF, 1),
    ]
}

#[test]
fn read_request_names_two_pieces() {
    let rules = rules(Dialect::Smb302);
    let placement = Placement {
        invalidate: true,
        ..plain(4097, two())
    };
    let mut message = read_request();
    message[104] = 7;
    placement.encode_read(&mut message, &rules).unwrap();
    // StructureSize, padding, flags, Length; then Channel, RemainingBytes, the information's place.
    assert_eq!(message[64..72], hex("3100 00 00 01100000"));
    assert_eq!(message[100..112], hex("02000000 00000000 7000 2000"));
    assert_eq!(message[112..], hex(TWO));
    assert_eq!(
        Placement::parse_read(&message, &rules),
        Ok(Some(placement.clone()))
    );
    assert_eq!(placement.token_to_invalidate(), Some(0x0102_0304));
    assert_eq!(placement.channel(), Channel::RdmaV1Invalidate);
}

#[test]
fn write_request_names_two_pieces() {
    let rules = rules(Dialect::Smb300);
    let placement = plain(4097, two());
    let mut message = write_request();
    message[66] = 0x70;
    message[68] = 9;
    placement.encode_write(&mut message, &rules).unwrap();
    // StructureSize, DataOffset, Length; then Channel, RemainingBytes, place of the information.
    assert_eq!(message[64..72], hex("3100 0000 00000000"));
    assert_eq!(message[96..108], hex("01000000 01100000 7000 2000"));
    assert_eq!(message[112..], hex(TWO));
    assert_eq!(
        Placement::parse_write(&message, &rules),
        Ok(Some(placement.clone()))
    );
    assert_eq!(placement.token_to_invalidate(), None);
}

#[test]
fn write_request_with_encrypted_data() {
    let rules = rules(Dialect::Smb311);
    let placement = Placement {
        length: 4097,
        invalidate: true,
        descriptors: two(),
        transform: Some(encryption()),
    };
    let mut message = write_request();
    placement.encode_write(&mut message, &rules).unwrap();
    // 16 + 8 + 16 + 12 = 52, so the descriptors are at 56 and the information has 88 bytes.
    assert_eq!(message[96..108], hex("03000000 01100000 7000 5800"));
    assert_eq!(
        message[112..128],
        hex("3800 2000 02000000 0100 0000 00000000")
    );
    assert_eq!(
        message[128..168],
        hex(
            "0100 1000 0c00 0000 101112131415161718191a1b1c1d1e1f a0a1a2a3a4a5a6a7a8a9aaab 00000000"
        )
    );
    assert_eq!(message[168..], hex(TWO));
    assert_eq!(
        Placement::parse_write(&message, &rules),
        Ok(Some(placement))
    );
}

#[test]
fn read_response_for_placed_data() {
    let rules = rules(Dialect::Smb311);
    let response = PlacedRead {
        placed: 0x0001_0002,
        transform: None,
    };
    let mut message = read_response();
    response.encode(&mut message, &rules).unwrap();
    assert_eq!(
        message[64..],
        hex("1100 50 00 00000000 02000100 00000000 00")
    );
    assert_eq!(
        PlacedRead::parse(&message, 0x0001_0002, &rules),
        Ok(response)
    );
}

#[test]
fn read_response_for_signed_data() {
    let rules = rules(Dialect::Smb311);
    let response = PlacedRead {
        placed: 5,
        transform: Some(CryptoTransform {
            kind: TransformType::Signing,
            signature: vec![0xEE; 16],
            nonce: Vec::new(),
        }),
    };
    let mut message = read_response();
    response.encode(&mut message, &rules).unwrap();
    assert_eq!(
        message[64..80],
        hex("1100 50 00 28000000 05000000 01000000")
    );
    assert_eq!(
        message[80..96],
        hex("0000 0000 00000000 0100 0000 00000000")
    );
    assert_eq!(
        message[96..],
        hex("0200 1000 0000 0000 eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee")
    );
    assert_eq!(PlacedRead::parse(&message, 5, &rules), Ok(response));
}

#[test]
fn capabilities() {
    assert_eq!(ALL.encode(), hex("0200 0000 00000000 0100 0200"));
    assert_eq!(NO_TRANSFORMS.encode(), hex("0100 0000 00000000 0000"));
    // Reserved fields, an unknown transform and bytes behind the array are ignored.
    let request = hex("0300 ffff ffffffff 0200 0900 0100 77");
    assert_eq!(TransformCapabilities::parse_request(&request), Ok(ALL));
    assert_eq!(RDMA_TRANSFORM_CAPABILITIES, 7);
}

#[test]
fn interfaces() {
    let list = [
        NetworkInterface {
            if_index: 3,
            rss_capable: true,
            rdma_capable: true,
            link_speed: 100_000_000_000,
            address: Ipv4Addr::new(192, 0, 2, 7).into(),
        },
        NetworkInterface {
            if_index: 4,
            rss_capable: false,
            rdma_capable: true,
            link_speed: 1,
            address: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x1234).into(),
        },
    ];
    let output = NetworkInterface::encode_list(&list);
    assert_eq!(output.len(), 304);
    // 100 Gbit/s is 0x17_4876_E800.
    assert_eq!(
        output[..40],
        hex("98000000 03000000 03000000 00000000 00e8764817000000
             0200 0000 c0000207 0000000000000000")
    );
    assert_eq!(output[40..152], [0; 112]);
    assert_eq!(
        output[152..204],
        hex("00000000 04000000 02000000 00000000 0100000000000000
             1700 0000 00000000 20010db8000000000000000000001234 00000000")
    );
    assert_eq!(output[204..], [0; 100]);
    assert_eq!(NetworkInterface::parse_list(&output), Ok(list.to_vec()));
}
