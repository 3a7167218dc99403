use super::*;

#[test]
fn read_request_layout() {
    // From the golden capture: sink 0x200, 112 bytes from tag 0x401A00BC at 0x56000000_00ABCDE0.
    let bytes: [u8; 28] = [
        0x00, 0x00, 0x02, 0x00, 0, 0, 0, 0, 0, 0, 0x00, 0x70, 0, 0, 0, 0x40, 0x1A, 0x00, 0xBC,
        0x56, 0, 0, 0, 0, 0xAB, 0xCD, 0xE0, 0x12,
    ];
    let request = ReadRequest::decode(&bytes);
    assert_eq!(
        request,
        ReadRequest {
            sink_tag: 0x200,
            sink_offset: 0x70,
            len: 0x40,
            source_tag: 0x1A00_BC56,
            source_offset: 0xABCD_E012,
        }
    );
    assert_eq!(request.encode(), bytes);
}

fn offender(tagged: bool) -> Offender {
    let mut header = [0; UNTAGGED_LEN];
    let len = if tagged { TAGGED_LEN } else { UNTAGGED_LEN };
    for (i, byte) in header[..len].iter_mut().enumerate() {
        *byte = i as u8;
    }
    header[0] = if tagged { 0xC1 } else { 0x41 };
    header[1] = if tagged { 0x40 } else { 0x41 };
    Offender {
        ulpdu_len: 78,
        header,
        tagged,
        read_request: None,
    }
}

#[test]
fn terminates_survive_the_wire() {
    for tagged in [false, true] {
        for code in [TermCode::DDP_INVALID_TAG, TermCode::RDMAP_OPCODE] {
            let terminate = Terminate {
                code,
                offender: Some(offender(tagged)),
            };
            let mut out = [0xEE; MAX_TERMINATE];
            let len = terminate.encode(&mut out);
            assert_eq!(len, if tagged { 20 } else { 24 });
            assert_eq!(Terminate::decode(&out[..len]), Some(terminate));
        }
    }
    // Golden: an RDMA Write with an unknown tag.
    let mut header = [0; UNTAGGED_LEN];
    header[..6].copy_from_slice(&[0xC1, 0x40, 0xDE, 0xAD, 0xBE, 0x00]);
    let terminate = Terminate {
        code: TermCode::DDP_INVALID_TAG,
        offender: Some(Offender {
            header,
            ..offender(true)
        }),
    };
    let mut out = [0; MAX_TERMINATE];
    let len = terminate.encode(&mut out);
    assert_eq!(
        out[..len],
        [
            0x11, 0x00, 0xC0, 0x00, 0x00, 0x4E, 0xC1, 0x40, 0xDE, 0xAD, 0xBE, 0x00, 0, 0, 0, 0, 0,
            0, 0, 0
        ]
    );
}

#[test]
fn a_protection_error_of_a_read_carries_the_request() {
    let terminate = Terminate {
        code: TermCode::RDMAP_BOUNDS,
        offender: Some(Offender {
            read_request: Some([7; READ_REQUEST_LEN]),
            ..offender(false)
        }),
    };
    let mut out = [0; MAX_TERMINATE];
    let len = terminate.encode(&mut out);
    assert_eq!((len, out[2]), (MAX_TERMINATE, 0xE0));
    let decoded = Terminate::decode(&out[..len]).unwrap();
    assert_eq!(decoded, terminate);
    assert_eq!(
        decoded.offender.unwrap().opcode(),
        Some(Opcode::ReadRequest)
    );
}

#[test]
fn mpa_errors_carry_no_header() {
    let terminate = Terminate {
        code: TermCode::MPA_CRC,
        offender: Some(offender(true)),
    };
    let mut out = [0xEE; MAX_TERMINATE];
    assert_eq!(terminate.encode(&mut out), 4);
    assert_eq!(out[..4], [0x20, 0x02, 0, 0]);
}

#[test]
fn swapped_nibbles_of_siw_are_understood() {
    for (byte, code, expected) in [
        (0x21, 0x02, TermCode::DDP_NO_BUFFER),
        (0x12, 0x02, TermCode::DDP_NO_BUFFER),
        (0x02, 0x02, TermCode::MPA_CRC),
        (0x20, 0x02, TermCode::MPA_CRC),
        (0x10, 0x02, TermCode::RDMAP_ACCESS),
        (0x11, 0x00, TermCode::DDP_INVALID_TAG),
    ] {
        let decoded = Terminate::decode(&[byte, code, 0, 0]).unwrap();
        assert_eq!(decoded.code, expected, "{byte:#x}");
    }
    // Flags at the low end tell siw where the nibbles alone are ambiguous.
    let decoded = Terminate::decode(&[0x20, 0x06, 0x03, 0]).unwrap();
    assert_eq!(decoded.code, TermCode::RDMAP_OPCODE);
}

#[test]
fn truncated_terminates_never_panic() {
    let terminate = Terminate {
        code: TermCode::RDMAP_BOUNDS,
        offender: Some(Offender {
            read_request: Some([7; READ_REQUEST_LEN]),
            ..offender(false)
        }),
    };
    let mut out = [0; MAX_TERMINATE];
    let len = terminate.encode(&mut out);
    for cut in 0..len {
        assert_eq!(Terminate::decode(&out[..cut]).is_some(), cut >= 4);
    }
}

#[test]
fn every_defined_terminate_code_is_known() {
    let table = include_str!("testdata/terminate-codes.tsv");
    let mut defined = 0;
    for line in table.lines().skip(1) {
        let mut fields = line.split('\t');
        let mut number = |radix| u8::from_str_radix(fields.next().unwrap(), radix);
        let (layer, error_type) = (number(10).unwrap(), number(10).unwrap());
        let code = number(16).unwrap_or(0);
        assert!(
            TermCode::new(layer, error_type, code).is_defined(),
            "{line}"
        );
        defined += 1;
    }
    assert_eq!(defined, 33);
}
