use super::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn zeros(count: usize) -> String {
    "00".repeat(count)
}

fn request(bytes: &str, expected: NegotiateRequest) {
    let bytes = hex(bytes);
    assert_eq!(NegotiateRequest::parse(&bytes), Ok(expected));
    assert_eq!(expected.encode().as_slice(), bytes);
}

fn response(bytes: &str, expected: NegotiateResponse) {
    let bytes = hex(bytes);
    assert_eq!(NegotiateResponse::parse(&bytes), Ok(expected));
    assert_eq!(expected.encode().as_slice(), bytes);
}

fn data(bytes: &str, expected: DataTransfer) {
    let bytes = hex(bytes);
    assert_eq!(DataTransfer::parse(&bytes), Ok(expected));
    assert_eq!(expected.encode(), bytes[..DataTransfer::LEN]);
    assert!(
        bytes[DataTransfer::LEN..].iter().all(|&b| b == 0),
        "padding"
    );
}

fn small_request() -> NegotiateRequest {
    NegotiateRequest {
        min_version: VERSION,
        max_version: VERSION,
        credits_requested: 10,
        preferred_send_size: 1024,
        max_receive_size: 1024,
        max_fragmented_size: 128 << 10,
    }
}

fn small_response() -> NegotiateResponse {
    NegotiateResponse {
        min_version: VERSION,
        max_version: VERSION,
        negotiated_version: VERSION,
        credits_requested: 10,
        credits_granted: 10,
        status: 0,
        max_read_write_size: 1 << 20,
        preferred_send_size: 1024,
        max_receive_size: 1024,
        max_fragmented_size: 128 << 10,
    }
}

fn transfer(
    requested: u16,
    granted: u16,
    flags: u16,
    remaining: u32,
    offset: u32,
    length: u32,
) -> DataTransfer {
    DataTransfer {
        credits_requested: requested,
        credits_granted: granted,
        flags,
        remaining_data_length: remaining,
        data_offset: offset,
        data_length: length,
    }
}

#[test]
fn v1_negotiate_request_of_the_specification() {
    request(
        "00 01 00 01 00 00 0A 00 00 04 00 00 00 04 00 00 00 00 02 00",
        small_request(),
    );
}

#[test]
fn v2_negotiate_response_of_the_specification() {
    response(
        "00 01 00 01 00 01 00 00 0A 00 0A 00 00 00 00 00 00 00 10 00 00 04 00 00 00 04 00 00 \
         00 00 02 00",
        small_response(),
    );
}

#[test]
fn v3_first_data_message() {
    data(
        "0A 00 0A 00 00 00 00 00 00 00 00 00 18 00 00 00 D2 04 00 00 00 00 00 00",
        transfer(10, 10, 0, 0, 24, 1234),
    );
}

#[test]
fn v4_v8_five_hundred_bytes() {
    data(
        "0A 00 01 00 00 00 00 00 00 00 00 00 18 00 00 00 F4 01 00 00 00 00 00 00",
        transfer(10, 1, 0, 0, 24, 500),
    );
}

#[test]
fn v5_fragments_of_64_kib() {
    for (bytes, remaining, length) in [
        (
            "0A 00 01 00 00 00 00 00 18 FC 00 00 18 00 00 00 E8 03 00 00 00 00 00 00",
            64536,
            1000,
        ),
        (
            "0A 00 01 00 00 00 00 00 30 F8 00 00 18 00 00 00 E8 03 00 00 00 00 00 00",
            63536,
            1000,
        ),
        (
            "0A 00 01 00 00 00 00 00 18 02 00 00 18 00 00 00 E8 03 00 00 00 00 00 00",
            536,
            1000,
        ),
        (
            "0A 00 01 00 00 00 00 00 00 00 00 00 18 00 00 00 18 02 00 00 00 00 00 00",
            0,
            536,
        ),
    ] {
        data(bytes, transfer(10, 1, 0, remaining, 24, length));
    }
}

#[test]
fn v6_v7_buffer_descriptors() {
    for (bytes, offset, token) in [
        (
            "12 E0 CD AB 00 00 00 00 56 BC 00 1A 00 00 10 00",
            0xABCD_E012,
            0x1A00_BC56,
        ),
        (
            "24 A0 CB 0D 00 00 00 00 57 BC 00 1A 00 00 10 00",
            0x0DCB_A024,
            0x1A00_BC57,
        ),
    ] {
        let expected = BufferDescriptorV1 {
            offset,
            token,
            length: 1 << 20,
        };
        let bytes = hex(bytes);
        assert_eq!(BufferDescriptorV1::parse(&bytes), Ok(expected));
        assert_eq!(expected.encode().as_slice(), bytes);
        assert_eq!(
            BufferDescriptorV1::parse_array(&bytes.repeat(3)),
            Ok(vec![expected; 3])
        );
        assert_eq!(
            BufferDescriptorV1::parse_array(&bytes.repeat(2)[..31]),
            Err(InvalidMessage::BufferDescriptorTooShort { len: 15 })
        );
    }
    assert_eq!(BufferDescriptorV1::parse_array(&[]), Ok(vec![]));
}

#[test]
fn v9_v10_failure_responses() {
    response(
        &format!(
            "00 01 00 01 00 00 00 00 00 00 00 00 BB 00 00 C0 {}",
            zeros(16)
        ),
        NegotiateResponse::failure(STATUS_NOT_SUPPORTED),
    );
    response(
        &format!(
            "00 01 00 01 00 00 00 00 00 00 00 00 9A 00 00 C0 {}",
            zeros(16)
        ),
        NegotiateResponse::failure(STATUS_INSUFFICIENT_RESOURCES),
    );
}

#[test]
fn v11_v12_v13_defaults_of_windows_and_linux() {
    let windows = NegotiateRequest {
        credits_requested: 255,
        preferred_send_size: 1364,
        max_receive_size: 8192,
        max_fragmented_size: 1 << 20,
        ..small_request()
    };
    request(
        "00 01 00 01 00 00 FF 00 54 05 00 00 00 20 00 00 00 00 10 00",
        windows,
    );
    response(
        "00 01 00 01 00 01 00 00 FF 00 FF 00 00 00 00 00 00 00 80 00 54 05 00 00 54 05 00 00 \
         00 00 10 00",
        NegotiateResponse {
            credits_requested: 255,
            credits_granted: 255,
            max_read_write_size: 8 << 20,
            preferred_send_size: 1364,
            max_receive_size: 1364,
            max_fragmented_size: 1 << 20,
            ..small_response()
        },
    );
    request(
        "00 01 00 01 00 00 FF 00 54 05 00 00 54 05 00 00 56 A7 02 00",
        NegotiateRequest {
            max_receive_size: 1364,
            max_fragmented_size: 173_910,
            ..windows
        },
    );
}

#[test]
fn v14_v15_v16_control_messages_and_an_empty_opener() {
    let probe = format!("FF 00 00 00 01 00 00 00 {}", zeros(12));
    data(&probe, transfer(255, 0, FLAG_RESPONSE_REQUESTED, 0, 0, 0));
    assert!(
        DataTransfer::parse(&hex(&probe))
            .unwrap()
            .response_requested()
    );
    data(
        &format!("FF 00 00 00 00 00 00 00 {}", zeros(12)),
        transfer(255, 0, 0, 0, 0, 0),
    );
    data(
        &format!("FF 00 BF 00 00 00 00 00 {}", zeros(12)),
        transfer(255, 191, 0, 0, 0, 0),
    );
    data(
        &format!("FF 00 01 00 00 00 00 00 70 00 01 00 {}", zeros(8)),
        transfer(255, 1, 0, 65648, 0, 0),
    );
}

#[test]
fn vectors_seen_elsewhere() {
    request("0001000100000a00000400000004000000000200", small_request());
    response(
        "00010001000100000a000a000000000000001000000400000004000000000200",
        small_response(),
    );
    data(
        "0a000a0000000000000000000000000000000000",
        transfer(10, 10, 0, 0, 0, 0),
    );
    data(
        "0a00010001000000000000000000000000000000",
        transfer(10, 1, 1, 0, 0, 0),
    );
}

#[test]
fn reserved_and_trailing_bytes_are_ignored() {
    let mut bytes = small_request().encode().to_vec();
    bytes[4] = 0xFF;
    bytes.extend([0xAA; 492]);
    assert_eq!(NegotiateRequest::parse(&bytes), Ok(small_request()));
    let mut bytes = small_response().encode().to_vec();
    bytes[7] = 0xFF;
    bytes.push(1);
    assert_eq!(NegotiateResponse::parse(&bytes), Ok(small_response()));
    let header = transfer(1, 2, 0, 0, 24, 4);
    let mut bytes = header.encode().to_vec();
    bytes[6] = 0xFF;
    bytes.extend([0xAA; 100]);
    assert_eq!(DataTransfer::parse(&bytes), Ok(header));
}

#[test]
fn every_shorter_length_is_refused() {
    let bytes = [0; 32];
    for len in 0..32 {
        let short = &bytes[..len];
        let is = |error: Option<InvalidMessage>, needed, expected| {
            assert_eq!(error, (len < needed).then_some(expected));
        };
        is(
            NegotiateRequest::parse(short).err(),
            20,
            InvalidMessage::NegotiateRequestTooShort { len },
        );
        is(
            NegotiateResponse::parse(short).err(),
            32,
            InvalidMessage::NegotiateResponseTooShort { len },
        );
        is(
            DataTransfer::parse(short).err(),
            20,
            InvalidMessage::DataTransferTooShort { len },
        );
        is(
            BufferDescriptorV1::parse(short).err(),
            16,
            InvalidMessage::BufferDescriptorTooShort { len },
        );
    }
}

#[test]
fn payload_is_inside_the_message_or_refused() {
    let payload = |offset, length, len| transfer(1, 0, 0, 0, offset, length).payload(len);
    assert_eq!(payload(24, 1000, 1024), Ok(24..1024));
    assert_eq!(payload(0, 0, 20), Ok(0..0));
    assert_eq!(payload(8, 4, 20), Ok(8..12), "strange, but inside");
    for offset in [1, 7, 20, 21, 22, 23, 25, 31, u32::MAX] {
        assert_eq!(
            payload(offset, 0, usize::MAX),
            Err(InvalidMessage::UnalignedDataOffset { offset })
        );
    }
    for (offset, length, message_len) in [
        (24, 1001, 1024),
        (24, 0, 20),
        (32, 500, 524),
        (24, u32::MAX, 1024),
        (u32::MAX - 7, u32::MAX, 1024),
        (0x8000_0000, 0x8000_0000, 20),
    ] {
        assert_eq!(
            payload(offset, length, message_len),
            Err(InvalidMessage::DataBeyondMessage {
                offset,
                length,
                message_len
            })
        );
    }
}
